"""Evaluation: the metrics of a state over the same batches every time."""

import functools
import operator
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
    is_mean = lambda node: isinstance(node, Mean)
    summed = functools.reduce(lambda a, b: jax.tree.map(operator.add, a, b, is_leaf=is_mean), totals)
    return {f'eval/{name}': np.asarray(mean.value()).tolist() for name, mean in summed.items()}
