"""Circuits: the few heads that do what the model does, all others silenced (Wang et al. 2022; Conmy et al. 2023).

    faithfulness(C) = (m(C) - m(none)) / (m(all) - m(none))         m(C): the metric with every part outside C replaced

0 is what is left without any part, 1 the whole model; above 1 the parts left out worked against it. What silences a
part, zero, a mean or another run's values, decides what a circuit is: compare only circuits of one kind. Two ways to
find one:

    grow    the first n of a ranking, with the smallest n that is faithful enough: as good as the ranking, one sweep
    prune   part after part is left out for good where faithfulness moves by less than a tolerance: ACDC by parts

A circuit is faithful to one metric on one set of inputs. Measure it on inputs that it was not chosen on.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.typing import Array, Bool, Float, Int32, PyTree
from jattn.understanding import capture
from jattn.understanding.interventions import Metric, Replacement

Part = tuple[int, int]  # (layer, head)


@struct.dataclass
class Circuit:
    """The parts that were kept.

    Attributes:
        parts: (layer, part), in order.
        faithfulness: of the circuit.
        curve: what it was on the way: of the first 0, 1, .. N parts of the ranking (`grow`), or behind every part that
            was tried (`prune`).
    """

    parts: tuple[Part, ...] = struct.field(pytree_node=False)
    faithfulness: Float[Array, '']
    curve: Float[Array, 'N']


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How much two circuits share (Merullo et al. 2024).

    Attributes:
        shared: parts in both.
        of_union, of_smaller: as a share of the parts in either, and of the smaller circuit.
        chance: the probability that two random circuits of these sizes share as many or more.
    """

    shared: int
    of_union: float
    of_smaller: float
    chance: float


def overlap(first: Sequence[Part], second: Sequence[Part], among: int) -> Overlap:
    """What two circuits share.

    Args:
        first, second: their parts; neither is empty.
        among: how many parts the model has.

    Raises:
        ValueError: an empty circuit, or more parts than the model has.

    >>> found = overlap([(0, 1), (2, 3)], [(2, 3), (4, 0)], among=8)
    >>> found.shared, round(found.of_union, 3), found.of_smaller, round(found.chance, 3)
    (1, 0.333, 0.5, 0.464)
    """
    one, two = set(first), set(second)
    if not one or not two or len(one | two) > among:
        raise ValueError(f'overlap: circuits of {len(one)} and {len(two)} parts must each have some of among={among}')
    shared = len(one & two)
    ways = lambda both: math.comb(len(one), both) * math.comb(among - len(one), len(two) - both)
    chance = sum(ways(both) for both in range(shared, min(len(one), len(two)) + 1)) / math.comb(among, len(two))
    return Overlap(shared, shared / len(one | two), shared / min(len(one), len(two)), chance)


def measure_faithfulness(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    metric: Metric,
    replacement: Replacement,
    circuits: Sequence[Sequence[Part]],
    *,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
    batch_size: int = 4,
) -> Float[Array, 'C']:
    """The faithfulness of every circuit.

    Args:
        model, params, inputs, context, collections, state: as of `capture.run`.
        metric: of the outputs.
        replacement: what silences a part, from `ablate.prepare`.
        circuits: the parts that each keeps.
        batch_size: circuits that run at once.

    Raises:
        ValueError: a part that the model does not have.

    >>> from jattn.models import DecoderConfig
    >>> from jattn.understanding import ablate
    >>> model = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens = jnp.array([[1, 2, 3]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> silent = ablate.prepare(model, params, tokens, kind='zero')
    >>> metric = lambda logits: logits[0, -1, 3]
    >>> measure_faithfulness(model, params, tokens, metric, silent, [[], silent.parts]).round(3).tolist()
    [0.0, 1.0]
    """
    kept = jnp.stack([replacement.table(circuit) for circuit in ((), replacement.parts, *circuits)])
    arrays = (params, inputs, context, collections or {}, state, replacement)
    return _shares(_measured(model, metric, batch_size, arrays, kept))


def grow(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    metric: Metric,
    replacement: Replacement,
    ranking: Sequence[Part],
    *,
    faithful: float = 0.9,
    **kwargs: object,
) -> Circuit:
    """The shortest beginning of a ranking that is faithful.

    Args:
        model, params, inputs, metric, replacement: as of `measure_faithfulness`, whose keywords follow.
        ranking: parts, the most important first: `Effects.ranked()` of an ablation, or of an attribution.
        faithful: the least faithfulness.

    Raises:
        ValueError: no beginning of the ranking is faithful; says how far it gets.
    """
    circuits = [tuple(ranking[:size]) for size in range(len(ranking) + 1)]
    curve = measure_faithfulness(model, params, inputs, metric, replacement, circuits, **kwargs)
    if not bool(jnp.any(curve >= faithful)):
        best = int(jnp.nanargmax(curve))
        raise ValueError(f'grow: no beginning reaches faithful={faithful}: {float(curve[best]):.3f} with {best} parts')
    size = int(jnp.argmax(curve >= faithful))
    return Circuit(tuple(sorted(circuits[size])), curve[size], curve)


def prune(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    metric: Metric,
    replacement: Replacement,
    order: Sequence[Part] | None = None,
    *,
    tolerance: float = 0.01,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
) -> Circuit:
    """What is left when every part whose absence moves faithfulness by less than a tolerance is left out, one by one.

    Args:
        model, params, inputs, metric, replacement, context, collections, state: as of `measure_faithfulness`.
        order: in which parts are tried; None: from the last layer to the first. Parts that are not named are kept.
        tolerance: below which a part is left out.

    Raises:
        ValueError: a part that the model does not have.
    """
    order = replacement.parts[::-1] if order is None else list(order)
    replacement.table(order)  # checks them
    arrays = (params, inputs, context, collections or {}, state, replacement)
    ends = _measured(model, metric, 2, arrays, jnp.stack([replacement.table(p) for p in ((), replacement.parts)]))
    points = jnp.array(order, jnp.int32).reshape(-1, 2)
    kept, curve = _pruned(model, metric, arrays, replacement.table(replacement.parts), points, ends, tolerance)
    kept, layers = np.asarray(kept), list(replacement.counts)
    parts = tuple((layers[row], int(part)) for row, part in zip(*np.nonzero(kept)))
    return Circuit(parts, curve[-1], curve)


def _shares(metrics: Float[Array, 'C+2']) -> Float[Array, 'C']:
    """Metrics as shares of the way from that without any part, the first, to that with all, the second."""
    return (metrics[2:] - metrics[0]) / (metrics[1] - metrics[0])


def _metric_of(model: nn.Module, metric: Metric, arrays: tuple[PyTree, ...], kept: Bool[Array, 'L N']) -> Array:
    """The metric with all silenced but what is kept."""
    params, inputs, context, collections, state, replacement = arrays
    edits = replacement.edits(~kept)
    run = capture.run(model, params, inputs, edits=edits, context=context, collections=collections, state=state)
    return metric(run.outputs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measured(
    model: nn.Module, metric: Metric, batch_size: int, arrays: tuple[PyTree, ...], kept: Bool[Array, 'C L N']
) -> Float[Array, 'C']:
    return jax.lax.map(lambda one: _metric_of(model, metric, arrays, one), kept, batch_size=batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pruned(
    model: nn.Module,
    metric: Metric,
    arrays: tuple[PyTree, ...],
    kept: Bool[Array, 'L N'],
    order: Int32[Array, 'P 2'],
    ends: Float[Array, '2'],
    tolerance: Float[Array, ''],
) -> tuple[Bool[Array, 'L N'], Float[Array, 'P']]:
    """The parts that are kept behind the last trial, and the faithfulness behind every one."""

    def trial(carry: tuple[Array, Array], point: Int32[Array, '2']) -> tuple[tuple[Array, Array], Array]:
        kept, share = carry
        without = kept & ~arrays[-1].one(point)
        left = _shares(jnp.append(ends, _metric_of(model, metric, arrays, without)))[0]
        drop = jnp.abs(left - share) < tolerance
        kept, share = jnp.where(drop, without, kept), jnp.where(drop, left, share)
        return (kept, share), share

    (kept, _), curve = jax.lax.scan(trial, (kept, jnp.ones((), ends.dtype)), order)
    return kept, curve
