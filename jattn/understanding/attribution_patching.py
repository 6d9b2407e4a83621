"""Attribution patching: what patching every part would do, to first order, from one forward and one backward pass.

    effect[l, n] ~ sum over the part of (value' - value) * d metric / d value        value' what would take its place

(Nanda 2023; Syed et al. 2023.) The gradient is that of an added zero at the site, taken on the run that stays; what
takes its place is what the same part is on another run, or an ablation's value. True effects (`patch`, `ablate`) cost a
run a part; this costs two runs and a backward pass for all. It is exact where the metric is linear in the value, good
for small changes and late parts, poor where a softmax or a norm saturates: screen with it and confirm the largest.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.taps import Edit
from jattn.typing import Array, Float, PyTree, at_least_float32
from jattn.understanding import capture
from jattn.understanding.interventions import (
    Edits,
    Effects,
    Metric,
    Replacement,
    axis_of,
    check_pair,
    lay_out,
    shapes_of,
)

Values = dict[str, dict[int | None, Array]]


def gradients(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    metric: Metric,
    sites: tuple[str, ...],
    *,
    edits: Edits | None = None,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
) -> tuple[Float[Array, ''], Values, Values]:
    """The metric, the values of sites and the gradients of the metric by them: site -> layer -> array, one program.

    Args:
        model, params, inputs, edits, context, collections, state: as of `capture.run`.
        metric: of the outputs.
        sites: names, which the edits must not have.

    Raises:
        ValueError: a site that the model does not have.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens = jnp.array([[1, 2, 3]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> _, values, slopes = gradients(model, params, tokens, lambda logits: logits[0, -1, 3], ('logits',))
    >>> slopes['logits'][None][0, -1].tolist()
    [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    edits = edits or {}
    arrays = (params, inputs, context, collections or {}, state, list(edits.values()))
    return _pulled(model, metric, tuple(sites), tuple(edits), arrays)


def attribute(
    model: nn.Module,
    params: PyTree,
    clean: Array,
    corrupted: Array,
    metric: Metric,
    *,
    site: str = 'z',
    axis: str = 'head',
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
) -> Effects:
    """The change of the metric on `corrupted`, to first order, when each part is as on `clean`: `patch.patch` at once.

    Args:
        model: a trunk.
        params: its parameters.
        clean, corrupted: inputs of one shape; exchanged, the same call asks what breaks the clean run.
        metric: of the outputs.
        site: any.
        axis: 'head', 'position', 'unit' or 'layer': what a part is.
        context: positions and segments of both inputs; what stands at padding adds nothing.
        collections: the model's slow state, if it has any.
        state: what stands before both inputs, from `capture.run`.

    Raises:
        ValueError: shapes differ; the site is in no layer, or has no such axis.
    """
    check_pair('attribute', clean, corrupted)
    run = dict(context=context, collections=collections, state=state)
    values = capture.run(model, params, clean, sites=[site], **run).values[site]
    replacement = Replacement(site, axis, shapes_of('attribute', site, axis, values), values)
    return attribute_replacement(model, params, corrupted, metric, replacement, **run)


def attribute_replacement(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    metric: Metric,
    replacement: Replacement,
    *,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
) -> Effects:
    """The change of the metric, to first order, when each part is replaced: `ablate.ablate` at once.

    Args:
        model, params, inputs, metric, context, collections, state: as of `attribute`.
        replacement: what takes a part's place, from `ablate.prepare`.

    Raises:
        ValueError: a replacement of kind 'uniform', whose scores do not change by a small step.
    """
    if replacement.fill is None:
        raise ValueError("attribute: kind='uniform' has no value that takes the place: use zero, mean or resample")
    site, number = replacement.site, axis_of(replacement.site, replacement.axis)
    run = dict(context=context, collections=collections, state=state)
    before, values, slopes = gradients(model, params, inputs, metric, (site,), **run)
    results = []
    for layer, value in values[site].items():
        wide = at_least_float32(value)  # a sum over batch, tokens and channels
        slope = slopes[site][layer].astype(wide)
        change = (replacement.fill[layer].astype(wide) - value.astype(wide)) * slope
        change = jnp.where(slope == 0, 0, change)  # hidden scores are huge, padding may be anything
        rest = [n for n in range(value.ndim) if number is None or n != number % value.ndim]
        results.append(jnp.sum(change, rest).reshape(-1))
    return lay_out(replacement.parts, jnp.concatenate(results), before)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _pulled(
    model: nn.Module,
    metric: Metric,
    sites: tuple[str, ...],
    edited: tuple[capture.EditKey, ...],
    arrays: tuple[PyTree, ...],
) -> tuple[Float[Array, ''], Values, Values]:
    params, inputs, context, collections, state, edits = arrays
    run = functools.partial(
        capture.run, model, params, inputs, sites=sites, context=context, collections=collections, state=state
    )

    def measure(added: Values) -> tuple[Array, Values]:
        own = dict(zip(edited, edits))
        for site, layers in added.items():
            for layer, add in layers.items():
                own[site if layer is None else (site, layer)] = Edit(add=add)
        found = run(edits=own)
        return metric(found.outputs), found.values

    zeros = jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), jax.eval_shape(run).values)
    (before, values), slopes = jax.value_and_grad(measure, has_aux=True)(zeros)
    return before, values, slopes
