"""Evaluation: the metrics of a state over the same batches every time."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jattn.nn.losses import Mean
from jattn.testbeds.task import Batch
from jattn.training.partition import Partition
from jattn.training.step import TrainState


def evaluate(partition: Partition, state: TrainState, batches: list[Batch]) -> dict[str, Any]:
    """name -> mean over all batches, as numbers (curves as lists), under `eval/`."""
    totals = [jax.device_get(partition.evaluate(state, batch)) for batch in batches]
    return {f'eval/{name}': value for name, value in mean_metrics(totals).items()}


def mean_metrics(parts: Sequence[dict[str, Mean]]) -> dict[str, Any]:
    """name -> mean over the batches that the parts are of, as numbers (curves as lists).

    >>> mean_metrics([{'loss': Mean(np.float32(2), np.float32(1))}, {'loss': Mean(np.float32(1), np.float32(2))}])
    {'loss': 1.0}
    """
    is_mean = lambda node: isinstance(node, Mean)
    summed = functools.reduce(lambda a, b: jax.tree.map(operator.add, a, b, is_leaf=is_mean), parts)
    return {name: np.asarray(mean.value()).tolist() for name, mean in summed.items()}
