"""Interventions by part, and what they do to a number: what the tools of ablation, patching and circuits share.

    values[l, n] = metric(outputs with part n of layer l replaced) - before           before = metric(outputs)

A part is a head, a position, a unit or the whole of a site in one layer. A metric is a function of the model's outputs
that returns one number. A sweep is one compiled function mapped over its points, `batch_size` at a time; the point is
data, so nothing is compiled twice, and a second sweep with the same model, metric (the same function object) and shapes
compiles nothing. A head is a query head.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.taps import Edit, Function
from jattn.typing import Array, Bool, Float, Int32, PyTree, Shape
from jattn.understanding import capture

Metric = Callable[[Float[Array, 'B T E']], Float[Array, '']]
Edits = Mapping[capture.EditKey, Edit]
# Where a site's value [B, T, ...] or [B, T, H, ...] has an axis, and the least rank; 'layer' is the whole value.
AXES = {'layer': (None, 1), 'position': (1, 2), 'head': (2, 4), 'unit': (-1, 3)}
OF_PAIRS = ('scores', 'pattern')  # [B, H, T, S]


@struct.dataclass
class Effects:
    """What the interventions change.

    Attributes:
        layers: one a row of `values`.
        values: [L, N], changes of the metric; NaN where a layer has fewer than N parts.
        before: the metric without an intervention.
    """

    layers: tuple[int, ...] = struct.field(pytree_node=False)
    values: Float[Array, 'L N']
    before: Float[Array, '']

    def at(self, layer: int, part: int = 0) -> float:
        """The change at one place."""
        return float(self.values[self.layers.index(layer), part])

    def ranked(self) -> list[tuple[int, int]]:
        """(layer, part), the largest change in either direction first.

        >>> Effects((1, 4), jnp.array([[0.5, jnp.nan], [-2.0, 1.0]]), jnp.zeros(())).ranked()
        [(4, 0), (4, 1), (1, 0)]
        """
        size = np.abs(np.asarray(self.values)).reshape(-1)
        order = np.argsort(-size, kind='stable')[: np.sum(~np.isnan(size))].tolist()
        return [(self.layers[n // self.values.shape[1]], n % self.values.shape[1]) for n in order]

    def above(self, threshold: float) -> list[tuple[int, int]]:
        """(layer, part) of the changes larger than a threshold in either direction, the largest first.

        >>> Effects((1, 4), jnp.array([[0.5, jnp.nan], [-2.0, 1.0]]), jnp.zeros(())).above(0.9)
        [(4, 0), (4, 1)]
        """
        return [part for part in self.ranked() if abs(self.at(*part)) > threshold]


@struct.dataclass
class Replacement:
    """What takes the place of a site's values, part by part.

    Attributes:
        site: whose values are replaced.
        axis: what a part is: 'head', 'position', 'unit' or 'layer'.
        shapes: (layer, shape of the site's value), of every layer that has it.
        fill: layer -> what takes its place, broadcast to it, or a function of the site's value (`taps.Edit`);
            None: values become 0 by scaling.
    """

    site: str = struct.field(pytree_node=False)
    axis: str = struct.field(pytree_node=False)
    shapes: tuple[tuple[int, Shape], ...] = struct.field(pytree_node=False)
    fill: dict[int, Array | Function] | None

    @property
    def counts(self) -> dict[int, int]:
        """layer -> how many parts it has."""
        number = axis_of(self.site, self.axis)
        return {layer: 1 if number is None else shape[number] for layer, shape in self.shapes}

    @property
    def parts(self) -> list[tuple[int, int]]:
        """(layer, part) of all."""
        return [(layer, part) for layer, count in self.counts.items() for part in range(count)]

    def table(self, parts: Sequence[tuple[int, int]]) -> Bool[Array, 'L N']:
        """Which parts are meant: a row a layer that has the site, a column a part.

        Raises:
            ValueError: a layer without the site, or a part that it does not have; names how many there are.
        """
        counts = self.counts
        table = np.zeros((len(counts), max(counts.values())), bool)
        for layer, part in parts:
            if layer not in counts:
                raise ValueError(f'{self.axis} ({layer}, {part}): site {self.site!r} exists at layers {list(counts)}')
            if not 0 <= part < counts[layer]:
                there = f'layer {layer} has {counts[layer]} (0 .. {counts[layer] - 1})'
                raise ValueError(f'{self.axis} ({layer}, {part}): no such {self.axis}, {there}')
            table[list(counts).index(layer), part] = True
        return jnp.asarray(table)

    def one(self, point: Int32[Array, '2']) -> Bool[Array, 'L N']:
        """The table of one part (layer, part), which may be traced."""
        counts = self.counts
        layers, parts = jnp.array(list(counts)), jnp.arange(max(counts.values()))
        return (layers == point[0])[:, None] & (parts == point[1])[None]

    def edits(self, chosen: Bool[Array, 'L N']) -> Edits:
        """The edits that replace what a table chooses; all arrays, so that a sweep over tables compiles once."""
        number, edits = axis_of(self.site, self.axis), {}
        for row, (layer, shape) in enumerate(self.shapes):
            sizes = [1] * len(shape)
            if number is not None:
                sizes[number] = -1
            mask = chosen[row, : self.counts[layer]].reshape(sizes)
            edits[self.site, layer] = (
                Edit(scale=1.0 - mask) if self.fill is None else Edit(value=self.fill[layer], mask=mask)
            )
        return edits


def axis_of(site: str, axis: str) -> int | None:
    """Where a site's values have an axis; None for 'layer', which is all of them."""
    return 1 if axis == 'head' and site in OF_PAIRS else AXES[axis][0]


def shapes_of(who: str, site: str, axis: str, values: Mapping[int | None, Array]) -> tuple[tuple[int, Shape], ...]:
    """The shapes of a site's values, for a `Replacement`.

    Raises:
        ValueError: an unknown axis; a site that is in no layer or has no such axis.
    """
    if axis not in AXES:
        raise ValueError(f'{who}: axis={axis!r} must be one of {", ".join(AXES)}')
    if None in values:
        raise ValueError(f'{who}: site {site!r} is in no layer')
    for layer, value in values.items():
        if value.ndim < AXES[axis][1] or (site in OF_PAIRS and axis not in ('head', 'layer')):
            raise ValueError(f'{who}: site {site!r} has no {axis} axis: its shape is {value.shape} at layer {layer}')
    return tuple((layer, value.shape) for layer, value in values.items())


def check_pair(who: str, clean: Array, corrupted: Array) -> None:
    """Raises a ValueError where two inputs, one of which is to lend the other its values, differ in shape."""
    if clean.shape != corrupted.shape:
        raise ValueError(f'{who}: clean has shape {clean.shape}, corrupted {corrupted.shape}: they must be equal')


def sweep(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    metric: Metric,
    replacement: Replacement,
    parts: Sequence[tuple[int, int]] | None = None,
    *,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
    batch_size: int = 4,
) -> Effects:
    """The change of the metric with each part replaced in turn.

    Args:
        model, params, inputs, context, collections, state: as of `capture.run`.
        metric: of the outputs.
        replacement: of a site.
        parts: (layer, part); None: all.
        batch_size: parts of the sweep that run at once.
    """
    if parts is None:
        parts = replacement.parts
    else:
        replacement.table(parts)  # checks them
    arrays = (params, inputs, context, collections or {}, state, replacement, jnp.array(parts, jnp.int32))
    before, after = _measured(model, metric, batch_size, arrays)
    return lay_out(parts, after - before, before)


def lay_out(parts: Sequence[tuple[int, int]], results: Float[Array, 'P'], before: Float[Array, '']) -> Effects:
    """One result a part (layer, part) as a table; NaN where a layer has no such part."""
    layers = tuple(dict.fromkeys(layer for layer, _ in parts))
    table = np.full((len(layers), 1 + max(part for _, part in parts)), np.nan, np.asarray(results).dtype)
    for (layer, part), result in zip(parts, np.asarray(results)):
        table[layers.index(layer), part] = result
    return Effects(layers, jnp.asarray(table), before)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measured(
    model: nn.Module, metric: Metric, batch_size: int, arrays: tuple[PyTree, ...]
) -> tuple[Float[Array, ''], Float[Array, 'P']]:
    """The metric without an intervention, and with every part replaced."""
    params, inputs, context, collections, state, replacement, points = arrays

    def measure(edits: Edits) -> Float[Array, '']:
        run = capture.run(model, params, inputs, edits=edits, context=context, collections=collections, state=state)
        return metric(run.outputs)

    one = lambda point: measure(replacement.edits(replacement.one(point)))
    return measure({}), jax.lax.map(one, points, batch_size=batch_size)
