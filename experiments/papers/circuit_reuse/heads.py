"""What heads do on pairs of prompts: how much of the answer hangs on each, where they look, what forced looks do."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.papers.circuit_reuse.prompts import Pairs
from experiments.papers.real_model import Real
from jattn.taps import Edit
from jattn.typing import Array, Bool, Float, Int32, PyTree
from jattn.understanding import capture
from jattn.understanding.attribution_patching import attribute
from jattn.understanding.interventions import Effects, Metric

Head = tuple[int, int]  # (layer, head)


@dataclasses.dataclass(frozen=True)
class Seen:
    """A task on a model.

    Attributes:
        metric: of the task: one function object, so that programs are compiled once.
        logits: [B, E], behind the clean prompts.
        looks: [L, B, H, T], attention of the last token.
        effects: on the metric of every head as on the corrupted prompts, to first order.
        change: of the metric with everything as on the corrupted prompts.
    """

    metric: Metric
    logits: Float[Array, 'B E']
    looks: Float[Array, 'L B H T']
    effects: Effects
    change: float

    def circuit(self, count: int) -> list[Head]:
        """The heads with the largest effects in either direction."""
        return self.effects.ranked()[:count]

    def attention(self, head: Head, place: Int32[Array, 'B']) -> float:
        """What a head pays from the last token to a place of each row, the mean over rows."""
        own = self.looks[head[0], :, head[1]]
        return float(jnp.mean(jnp.take_along_axis(own, place[:, None], 1)))


def look(real: Real, pairs: Pairs) -> Seen:
    """Runs a task, and attributes the change of its metric to all heads with one backward pass."""
    metric = pairs.metric()
    logits, looks = _read(real.model, real.params, pairs.clean)
    corrupted, _ = _read(real.model, real.params, pairs.corrupted)
    effects = attribute(real.model, real.params, pairs.corrupted, pairs.clean, metric)
    change = float(metric(corrupted[:, None]) - metric(logits[:, None]))
    return Seen(metric, logits, looks, effects, change)


def force_to_wrong(real: Real, pairs: Pairs, heads: Sequence[Head]) -> Float[Array, 'B E']:
    """The logits when heads look from the last token at the options that were not asked for, half at each.

    Args:
        real: a model.
        pairs: of colored objects, whose options have places.
        heads: (layer, head).
    """
    rows, length = pairs.clean.shape
    target = np.zeros((rows, length), np.float32)
    for option in ('option 1', 'option 2'):
        target[np.arange(rows), np.asarray(pairs.places[option])] = 0.5
    forced = np.zeros(_read(real.model, real.params, pairs.clean)[1].shape[:3:2], bool)
    for layer, head in heads:
        forced[layer, head] = True
    return _forced(real.model, real.params, pairs.clean, jnp.asarray(target), jnp.asarray(forced))


@functools.partial(jax.jit, static_argnums=0)
def _read(
    model: nn.Module, params: PyTree, tokens: Int32[Array, 'B T']
) -> tuple[Float[Array, 'B E'], Float[Array, 'L B H T']]:
    """Logits and patterns of the last token."""
    found = capture.run(model, params, tokens, sites=['pattern'])
    return found.outputs[:, -1], found.stack('pattern')[:, :, :, -1]


@functools.partial(jax.jit, static_argnums=0)
def _forced(
    model: nn.Module,
    params: PyTree,
    tokens: Int32[Array, 'B T'],
    target: Float[Array, 'B T'],
    forced: Bool[Array, 'L H'],
) -> Float[Array, 'B E']:
    """The logits of the last token with its row of some patterns replaced."""
    is_last = jnp.arange(tokens.shape[1]) == tokens.shape[1] - 1
    mask = forced[:, None, :, None, None] & is_last[None, None, None, :, None]
    edit = Edit(value=target[None, :, None, None], mask=mask)
    return capture.run(model, params, tokens, edits={'pattern': edit}).outputs[:, -1]
