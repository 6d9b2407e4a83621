"""Sweeps of interventions over layer, head and position: ablation and activation patching (Meng et al. 2022).

A sweep is one compiled function mapped over its points, `batch_size` at a time; the point is data, so nothing is
compiled twice. A metric is a function of the model's outputs [B, T, E] that returns a number.

    effect[l, h] = metric(outputs with head h of layer l ablated)
    effect[l, t] = metric(outputs on `corrupted` with the site of layer l at position t as it is on `clean`)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jattn.contract import Context
from jattn.taps import Edit
from jattn.typing import Array, Float, PyTree
from jattn.understanding import capture

Metric = Callable[[Float[Array, 'B T E']], Float[Array, '']]
KINDS = ('zero', 'mean')


def ablate_heads(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    metric: Metric,
    *,
    kind: str = 'mean',
    context: Context = Context(),
    batch_size: int = 4,
) -> Float[Array, 'L H']:
    """The metric with each head silenced in turn, at the site z; NaN where a layer has fewer heads than the widest.

    Args:
        model: a trunk.
        params: its parameters.
        inputs: what it reads.
        metric: of the outputs.
        kind: 'zero', or 'mean': the head's output is replaced by its mean over the real tokens of the batch.
        context: positions and segments; padding does not enter the mean.
        batch_size: points of the sweep that run at once.
    """
    if kind not in KINDS:
        raise ValueError(f'ablate_heads: kind={kind!r} must be one of {", ".join(KINDS)}')
    values = capture.run(model, params, inputs, sites=['z'], context=context).values['z']
    real = jnp.ones(inputs.shape[:2]) if context.segments is None else context.segments > 0
    weights = (real / jnp.sum(real))[:, :, None, None]
    fill = {
        layer: jnp.sum(z * weights.astype(z.dtype), (0, 1), keepdims=True) * (kind == 'mean')
        for layer, z in values.items()
    }
    points = [(layer, head) for layer, z in values.items() for head in range(z.shape[2])]

    def effect(point: Array) -> Array:
        edits = {}
        for layer, z in values.items():
            chosen = (point[0] == layer) & (jnp.arange(z.shape[2]) == point[1])
            edits['z', layer] = Edit(value=fill[layer], mask=chosen[None, None, :, None])
        return metric(capture.run(model, params, inputs, edits=edits, context=context).outputs)

    return _sweep(effect, points, batch_size)


def patch(
    model: nn.Module,
    params: PyTree,
    clean: Array,
    corrupted: Array,
    metric: Metric,
    *,
    site: str = 'resid_post',
    axis: str = 'position',
    context: Context = Context(),
    batch_size: int = 4,
) -> Float[Array, 'L N']:
    """The metric on `corrupted` when one layer's site is, at one position or head, as it is on `clean`.

    Args:
        model: a trunk.
        params: its parameters.
        clean, corrupted: inputs of one shape.
        metric: of the outputs.
        site: what is patched, [B, T, ...] or by head [B, T, H, ...].
        axis: 'position' (N = T) or 'head' (N = H).
        context: positions and segments of both inputs.
        batch_size: points of the sweep that run at once.
    """
    if axis not in ('position', 'head'):
        raise ValueError(f"patch: axis={axis!r} must be 'position' or 'head'")
    if clean.shape != corrupted.shape:
        raise ValueError(f'patch: clean has shape {clean.shape}, corrupted {corrupted.shape}: they must be equal')
    number = {'position': 1, 'head': 2}[axis]
    values = capture.run(model, params, clean, sites=[site], context=context).values[site]
    if any(value.ndim <= number + (axis == 'head') for value in values.values()):
        raise ValueError(f'patch: site {site!r} has no {axis} axis')
    points = [(layer, n) for layer, value in values.items() for n in range(value.shape[number])]

    def effect(point: Array) -> Array:
        edits = {}
        for layer, value in values.items():
            chosen = (point[0] == layer) & (jnp.arange(value.shape[number]) == point[1])
            shape = [1] * value.ndim
            shape[number] = -1
            edits[site, layer] = Edit(value=value, mask=chosen.reshape(shape))
        return metric(capture.run(model, params, corrupted, edits=edits, context=context).outputs)

    return _sweep(effect, points, batch_size)


def _sweep(effect: Callable[[Array], Array], points: list[tuple[int, int]], batch_size: int) -> Float[Array, 'L N']:
    """Maps over the points and lays the results out by layer; NaN where a layer has no such point."""
    results = jax.jit(lambda points: jax.lax.map(effect, points, batch_size=batch_size))(jnp.array(points))
    layers = list(dict.fromkeys(layer for layer, _ in points))
    table = np.full((len(layers), 1 + max(n for _, n in points)), np.nan, np.float32)
    for (layer, n), result in zip(points, np.asarray(results)):
        table[layers.index(layer), n] = result
    return jnp.asarray(table)
