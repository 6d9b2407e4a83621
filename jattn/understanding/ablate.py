"""Ablation: what a model does without some of its heads, neurons, positions or whole parts.

    zero        the value becomes 0
    mean        its mean over the real tokens of the batch
    resample    what it is at a random real token of the batch: on average the mean, but a value that does occur
    uniform     a head looks at all that it may see alike (its scores become equal); its values stay as they are

Zero takes a head to where it never is and so overstates what it does; the mean keeps its constant part (Wang et al.
2022). Uniform is the form of Retrieval Head and AttentionInfluence, where it is q = 0. In a mixer whose softmax is
grouped (landmarks) equal scores are those before grouping. What is silenced are the tokens of the call: a prefix in
`state` stays as it was and is run once for the whole sweep. A head is a query head.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.typing import Array, Bool, Key, PyTree, Shape, at_least_float32
from jattn.understanding import capture
from jattn.understanding.interventions import OF_PAIRS, Edits, Effects, Metric, Replacement, shapes_of, sweep

KINDS = ('zero', 'mean', 'resample', 'uniform')


def prepare(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    *,
    kind: str = 'mean',
    site: str = 'z',
    axis: str = 'head',
    key: Key | None = None,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
) -> Replacement:
    """What silencing needs to know of a run.

    Args:
        model: a trunk.
        params: its parameters.
        inputs: what it reads.
        kind: 'zero', 'mean', 'resample' or 'uniform'.
        site: whose values are replaced: z (heads), mlp_act (neurons), attn_out or mlp_out (whole parts), ...
        axis: 'head', 'position', 'unit' (the last axis) or 'layer': what is silenced at once.
        key: of the draw, for 'resample'.
        context: positions and segments; padding enters no mean and no draw.
        collections: the model's slow state, if it has any.
        state: what stands before the inputs, from `capture.run`.

    Raises:
        ValueError: an unknown kind or axis; 'resample' without a key; 'uniform' of something else than heads; a model
            without the site.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens = jnp.array([[1, 2, 3]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> silent = prepare(model, params, tokens, kind='zero')
    >>> silent.counts, silent.table([(1, 3)]).tolist()[1]
    ({0: 4, 1: 4}, [False, False, False, True])
    >>> edits = silent.edits(silent.table([(0, 1), (1, 3)]))
    >>> found = capture.run(model, params, tokens, edits=edits, sites=['z'])
    >>> float(abs(found.at('z', 1)[:, :, 3]).max())
    0.0
    """
    if kind not in KINDS:
        raise ValueError(f'ablation: kind={kind!r} must be one of {", ".join(KINDS)}')
    if kind == 'resample' and key is None:
        raise ValueError("ablation: kind='resample' needs a key")
    if kind == 'uniform' and (site, axis) != ('z', 'head'):
        raise ValueError(f"ablation: kind='uniform' is of heads (site='z'), not of {axis} of {site!r}")
    site = 'scores' if kind == 'uniform' else site
    if kind in ('mean', 'resample') and site in OF_PAIRS:
        raise ValueError(f'ablation: kind={kind!r} is over tokens, but site {site!r} has pairs of them')
    run = dict(context=context, collections=collections, state=state)
    read = lambda: capture.run(model, params, inputs, sites=[site], **run).values[site]
    values = read() if kind in ('mean', 'resample') else jax.eval_shape(read)
    shapes = shapes_of('ablation', site, axis, values)
    if kind == 'uniform':
        return Replacement(site, axis, shapes, None)
    if kind == 'zero':
        return Replacement(site, axis, shapes, {layer: jnp.zeros((), value.dtype) for layer, value in values.items()})
    places, fill = capture.index(model, params, inputs, **run)[site], {}
    for layer, value in values.items():
        in_encoder = context.source is not None and places[layer][1][0] == 'encoder'  # of an encoder-decoder
        real = _real(context, in_encoder, value.shape[:2])
        fill[layer] = _mean(value, real) if kind == 'mean' else _draw(key, value, real)
    return Replacement(site, axis, shapes, fill)


def head_edits(
    model: nn.Module, params: PyTree, inputs: Array, heads: Sequence[tuple[int, int]], **kwargs: object
) -> Edits:
    """The edits for `capture.run` that silence heads (layer, head); the keywords are those of `prepare`."""
    silent = prepare(model, params, inputs, **kwargs)
    return silent.edits(silent.table(heads))


def ablate(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    metric: Metric,
    *,
    kind: str = 'mean',
    site: str = 'z',
    axis: str = 'head',
    layers: Sequence[int] | None = None,
    key: Key | None = None,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
    batch_size: int = 4,
) -> Effects:
    """What the metric loses or gains when each head (position, unit, layer) is silenced in turn.

    Args:
        model, params, inputs, kind, site, axis, key, context, collections, state: as of `prepare`.
        metric: of the outputs.
        layers: whose parts are tried; None: of all that have the site.
        batch_size: points of the sweep that run at once.

    Raises:
        ValueError: as of `prepare`; a layer without the site.
    """
    run = dict(context=context, collections=collections, state=state)
    silent = prepare(model, params, inputs, kind=kind, site=site, axis=axis, key=key, **run)
    if layers is not None:
        silent.table([(layer, 0) for layer in layers])
    parts = [part for part in silent.parts if layers is None or part[0] in layers]
    return sweep(model, params, inputs, metric, silent, parts, **run, batch_size=batch_size)


def ablate_heads(model: nn.Module, params: PyTree, inputs: Array, metric: Metric, **kwargs: object) -> Effects:
    """What the metric loses or gains when each head is silenced in turn; the keywords are those of `ablate`."""
    return ablate(model, params, inputs, metric, site='z', axis='head', **kwargs)


def _real(context: Context, in_encoder: bool, shape: Shape) -> Bool[Array, 'B T']:
    """Which tokens of a site are real."""
    name = 'source_segments' if in_encoder else 'segments'
    segments = getattr(context, name)
    if segments is None:
        return jnp.ones(shape, bool)
    if segments.shape != shape:
        raise ValueError(f'ablation: context.{name} has shape {segments.shape}, but the tokens of the site {shape}')
    return segments > 0


def _mean(value: Array, real: Bool[Array, 'B T']) -> Array:
    """The mean over real tokens, [1, 1, ...]; float32 at least."""
    where = real.reshape(*real.shape, *[1] * (value.ndim - 2))
    total = jnp.sum(jnp.where(where, value, 0), (0, 1), keepdims=True, dtype=at_least_float32(value))
    return total / jnp.sum(real)


def _draw(key: Key, value: Array, real: Bool[Array, 'B T']) -> Array:
    """For every token the value at a random real token."""
    tokens = jax.random.choice(key, real.size, real.shape, p=real.reshape(-1) / jnp.sum(real))
    return value.reshape(-1, *value.shape[2:])[tokens]
