"""Path patching: what a head does to a number through chosen readers alone (Wang et al. 2022; Merullo et al. 2024).

    pass A   run `clean` with the sender's z as on `corrupted` and everything that other parts add to the stream frozen
             at its clean value; record what the receivers then have
    pass B   run `clean` with the receivers as recorded, everything behind them recomputed
    effect   metric(pass B) - metric(clean)

So the sender reaches the receivers over the residual stream and no head or feed-forward in between. Norms are computed
anew on the changed stream. A receiver is a site of a layer, whole or one head of it: q, k or v of later heads (of k and
v a key head), z (all that a head reads), mlp_act (all that a feed-forward reads, since it acts token by token), and
`logits` for the direct path to the outputs. Walk back from there: what reaches the logits, then the queries of what
does, and so on. A sender behind all receivers cannot reach them: its effect is 0 and it is not run.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.taps import Edit
from jattn.typing import Array, Bool, Float, Int32, PyTree
from jattn.understanding import capture
from jattn.understanding.attribution_patching import Values
from jattn.understanding.interventions import Effects, Metric, Replacement, axis_of, check_pair, lay_out, shapes_of

Receiver = tuple[str, int | None, int | None]  # site, layer, head; None: of the whole model, all heads
LOGITS: tuple[Receiver, ...] = (('logits', None, None),)
ADDED = ('attn_out', 'cross_out', 'mlp_out')  # what parts add to the stream


def patch_paths(
    model: nn.Module,
    params: PyTree,
    clean: Array,
    corrupted: Array,
    metric: Metric,
    receivers: Sequence[Receiver] = LOGITS,
    *,
    senders: Sequence[tuple[int, int]] | None = None,
    positions: Bool[Array, 'B T'] | None = None,
    through_feed_forward: bool = False,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
    batch_size: int = 4,
) -> Effects:
    """The change of the metric on `clean` by every sender through the receivers.

    Args:
        model: a trunk whose layers have z and attn_out.
        params: its parameters.
        clean, corrupted: inputs of one shape, whose tokens stand in the same places.
        metric: of the outputs; divided by metric(corrupted) - before, an effect is the share of the whole change.
        receivers: (site, layer, head); layer None where the site is of the whole model, head None for all of it.
        senders: (layer, head); None: all heads.
        positions: where the sender is as on `corrupted`; None: at all tokens.
        through_feed_forward: whether the feed-forwards in between are recomputed in pass A, so that paths through them
            count, as in the published code.
        context: positions and segments of both inputs.
        collections: the model's slow state, if it has any.
        state: what stands before both inputs, from `capture.run`.
        batch_size: senders that run at once.

    Raises:
        ValueError: shapes differ; a sender or a receiver that the model does not have.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens, other = jnp.array([[1, 2, 3]]), jnp.array([[4, 2, 3]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> found = patch_paths(model, params, tokens, other, lambda y: y[0, -1, 3], [('q', 1, 0)])
    >>> found.values.shape, bool(jnp.any(found.values[0] != 0)), found.values[1].tolist()
    ((2, 4), True, [0.0, 0.0, 0.0, 0.0])
    """
    check_pair('patch_paths', clean, corrupted)
    run = dict(context=context, collections=collections, state=state)
    there = capture.index(model, params, clean, **run)
    frozen = tuple(site for site in ADDED if site in there or site == 'attn_out')
    kept = capture.run(model, params, clean, sites={'z', *frozen, *(site for site, _, _ in receivers)}, **run).values
    z = capture.run(model, params, corrupted, sites=['z'], **run).values['z']
    if positions is not None:
        where = positions[:, :, None, None]
        z = {layer: jnp.where(where, value, kept['z'][layer]) for layer, value in z.items()}
    replacement = Replacement('z', 'head', shapes_of('patch_paths', 'z', 'head', z), z)
    senders = replacement.parts if senders is None else list(senders)
    replacement.table(senders)  # checks them
    heads = _receiving(receivers, kept)

    furthest = max(max(replacement.counts) if layer is None else layer for _, layer in heads)
    reaching = [sender for sender in senders if sender[0] <= furthest]
    fixed = {site: kept[site] for site in frozen if not (site == 'mlp_out' and through_feed_forward)}
    arrays = (params, clean, context, collections or {}, state, replacement, fixed)
    points = jnp.array(reaching or senders[:1], jnp.int32)  # one must run, for the metric without an intervention
    before, after = _measured(model, metric, batch_size, tuple(heads.items()), arrays, points)
    effects = dict.fromkeys(senders, jnp.zeros((), before.dtype)) | dict(zip(reaching, after - before))
    return lay_out(senders, jnp.stack(list(effects.values())), before)


def _receiving(receivers: Sequence[Receiver], values: Values) -> dict[tuple[str, int | None], tuple[int, ...] | None]:
    """(site, layer) -> its heads; None: all."""
    if not receivers:
        raise ValueError('patch_paths: receivers=() must name at least one')
    heads: dict[tuple[str, int | None], tuple[int, ...] | None] = {}
    for site, layer, head in receivers:
        if layer not in values[site]:
            there = sorted(values[site], key=str)
            raise ValueError(f'receiver {(site, layer, head)}: site {site!r} exists at layers {there}')
        if head is not None:
            shape = values[site][layer].shape
            count = shape[axis_of(site, 'head')] if len(shape) == 4 else 0
            if not 0 <= head < count:
                raise ValueError(f'receiver {(site, layer, head)}: no such head, the site has {count} in layer {layer}')
        others = heads.get((site, layer), ())
        heads[site, layer] = None if head is None or others is None else (*others, head)
    return heads


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _measured(
    model: nn.Module,
    metric: Metric,
    batch_size: int,
    heads: tuple[tuple[tuple[str, int | None], tuple[int, ...] | None], ...],
    arrays: tuple[PyTree, ...],
    senders: Int32[Array, 'P 2'],
) -> tuple[Float[Array, ''], Float[Array, 'P']]:
    """The metric on the clean run, and through the receivers of every sender."""
    params, inputs, context, collections, state, replacement, fixed = arrays
    run = functools.partial(capture.run, model, params, inputs, context=context, collections=collections, state=state)

    def effect(sender: Int32[Array, '2']) -> Float[Array, '']:
        edits = dict(replacement.edits(replacement.one(sender)))
        for site, layers in fixed.items():
            for layer, value in layers.items():
                own = (site == 'attn_out') & (layer == sender[0])  # what the sender itself adds
                edits[site, layer] = Edit(value=value, mask=~own)
        arrived = run(edits=edits, sites={site for (site, _), _ in heads}).values
        edits = {}
        for (site, layer), chosen in heads:
            value, mask = arrived[site][layer], None
            if chosen is not None:
                number = axis_of(site, 'head')
                own = jnp.zeros(value.shape[number], bool).at[jnp.array(chosen)].set(True)
                mask = own.reshape([-1 if n == number else 1 for n in range(value.ndim)])
            edits[site if layer is None else (site, layer)] = Edit(value=value, mask=mask)
        return metric(run(edits=edits).outputs)

    return metric(run().outputs), jax.lax.map(effect, senders, batch_size=batch_size)
