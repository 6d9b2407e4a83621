"""What the residual stream already says: the logit lens, and what every head and layer adds to a logit.

    logit lens        read_out(norm(x_l))                       the stream behind layer l, read as if it were the last
    direct effect     <u, z_lh W_O>, <u, mlp_l>, <u, embed>     u = (W_U d) g / s: a direction d of logits, pulled back
                                                                through the last norm with its scale s held fixed

The direct effects of all parts add up to the logits along d (nostalgebraist 2020; Elhage et al. 2021). They say what a
part writes towards d itself, not what later parts make of it: a head that others depend on may have none. Blocks that
normalise what they add have no such sum, and are refused. A head is a query head.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.models.decoder import DecoderConfig
from jattn.taps import Edit
from jattn.typing import Array, Float, PyTree
from jattn.understanding import capture


@struct.dataclass
class DirectEffects:
    """What every part writes along a direction of logits, at one position of each row.

    Attributes:
        layers: the layers of `heads`, those with heads that write through one projection.
        embed: [B], of the read-in.
        heads: [l, B, H], of each head, without the projection's bias.
        attention: [L, B], of the whole mixer of every layer.
        feed_forward: [L, B].
        outputs: [B], the logits along the direction, before a cap: the sum of embed, attention and feed_forward and of
            the constant that the last norm's bias and the read-out have.
    """

    layers: tuple[int, ...] = struct.field(pytree_node=False)
    embed: Float[Array, 'B']
    heads: Float[Array, 'l B H']
    attention: Float[Array, 'L B']
    feed_forward: Float[Array, 'L B']
    outputs: Float[Array, 'B']


def logit_lens(
    model: nn.Module, params: PyTree, inputs: Array, *, position: int = -1, context: Context = Context()
) -> Float[Array, 'N B E']:
    """The logits of the stream at one position: before the first layer, and behind every layer (the last: the model's).

    Args:
        model: a decoder.
        params: its parameters.
        inputs: what it reads.
        position: of every row.
        context: positions and segments.

    >>> cfg = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8)
    >>> tokens = jnp.array([[1, 2, 3]])
    >>> params = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(0), tokens))['params']
    >>> logits = logit_lens(cfg.make(), params, tokens)
    >>> logits.shape, bool(jnp.allclose(logits[-1], cfg.make().apply({'params': params}, tokens)[0][:, -1], atol=1e-5))
    ((3, 1, 8), True)
    """
    found = capture.run(model, params, inputs, sites=('resid_pre', 'resid_post'), context=context)
    stream = jnp.concatenate([found.stack('resid_pre')[:1], found.stack('resid_post')])[:, :, position]
    return read_out(model, params, stream)


def read_out(model: nn.Module, params: PyTree, stream: Float[Array, '*N D']) -> Float[Array, '*N E']:
    """The outputs of values of the stream behind the last layer: the last norm, the read-out, the cap.

    Raises:
        ValueError: the model is no decoder.
    """
    cfg = model.cfg
    if type(cfg) is not DecoderConfig:
        raise ValueError(f'lens: the read-out of a decoder is known, not of {type(cfg).__name__}')
    # A model of one layer whose stream is replaced: nothing of the trunk is written here a second time.
    short = dataclasses.replace(cfg, layers=1, mixer=cfg.mixer[:1], max_positions=None, embed_norm=False, remat='none')
    slot, repeat = cfg.layer_sites()[0]
    first = jax.tree.map(lambda leaf: leaf[repeat : repeat + 1], params[slot[0]][slot[1]])
    ends = {name: value for name, value in params.items() if name not in ('body', 'tail', 'positions', 'embed_norm')}
    rows = stream.reshape(1, -1, stream.shape[-1])
    blank = (1, rows.shape[1]) if cfg.read_in == 'tokens' else (1, rows.shape[1], cfg.input_size)
    inputs = jnp.zeros(blank, jnp.int32 if cfg.read_in == 'tokens' else cfg.dtype)
    edits = {('resid_post', 0): Edit(value=rows)}
    outputs = capture.run(short.make(), {**ends, 'body': {'block_0': first}}, inputs, edits=edits).outputs
    return outputs.reshape(*stream.shape[:-1], -1)


def direct_effects(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    direction: Float[Array, 'B E'],
    *,
    position: int = -1,
    context: Context = Context(),
) -> DirectEffects:
    """What every part writes along a direction of logits.

    Args:
        model: a decoder with blocks of kind 'pre' or 'parallel'.
        params: its parameters.
        inputs: what it reads.
        direction: d of every row; for a difference of two tokens 1 and -1.
        position: where the logits are read.
        context: positions and segments.

    Raises:
        ValueError: the model is no decoder, or its blocks normalise what they add.
    """
    cfg = model.cfg
    if type(cfg) is not DecoderConfig or cfg.block not in ('pre', 'parallel') or cfg.layer_scale is not None:
        kind = f'{type(cfg).__name__} with block={getattr(cfg, "block", None)!r}'
        raise ValueError(f'direct_effects: needs a DecoderConfig whose blocks add what they compute, not {kind}')
    sites = ['embed', 'attn_out', 'resid_post', *(['mlp_out'] if cfg.feed_forward is not None else [])]
    there = capture.index(model, params, inputs, context)
    found = capture.run(model, params, inputs, sites=[*sites, *(['z'] if 'z' in there else [])], context=context)
    at = lambda site: found.stack(site)[:, :, position].astype(jnp.float32)
    last = at('resid_post')[-1]
    bare = dataclasses.replace(cfg, softcap=None).make()
    along = lambda x: jnp.sum(read_out(bare, params, x) * direction, axis=-1)
    pulled = _pull_back(cfg, along, last)
    dot = lambda x: jnp.einsum('...bd,bd->...b', x, pulled)
    heads, layers = [], []
    for layer, z in found.values.get('z', {}).items():
        kernel = _output_projection(params, cfg, layer)
        if kernel is not None:
            written = jnp.einsum('bhv,hvd->hbd', z[:, position].astype(jnp.float32), kernel)
            heads.append(dot(written).T)
            layers.append(layer)
    rows = len(last)
    return DirectEffects(
        layers=tuple(layers),
        embed=dot(found.at('embed')[:, position].astype(jnp.float32)),
        heads=jnp.stack(heads) if heads else jnp.zeros((0, rows, 0)),
        attention=dot(at('attn_out')),
        feed_forward=dot(at('mlp_out')) if cfg.feed_forward is not None else jnp.zeros((cfg.layers, rows)),
        outputs=along(last),
    )


def _pull_back(
    cfg: DecoderConfig, along: Callable[[Float[Array, 'B D']], Float[Array, 'B']], x: Float[Array, 'B D']
) -> Float[Array, 'B D']:
    """u: the gradient of the logits along d by the stream, the norm's scale held fixed.

    The true gradient of a norm is the frozen one without its part along the (centred) stream, which the scale takes
    away. What is taken away has the size along(x) less the constant, so it can be put back without knowing the norm:
    <u, x> must be along(x) - along(0).
    """
    gradient = jax.grad(lambda x: jnp.sum(along(x)))(x)
    own = x if cfg.norm == 'rms' else x - jnp.mean(x, axis=-1, keepdims=True)
    missing = along(x) - along(jnp.zeros_like(x)) - jnp.sum(gradient * x, axis=-1)
    return gradient + own * (missing / jnp.sum(own * x, axis=-1))[:, None]


def _output_projection(params: PyTree, cfg: DecoderConfig, layer: int) -> Float[Array, 'H V D'] | None:
    """W_O of a layer whose heads write through one projection; None: a mixer of another form."""
    slot, repeat = cfg.layer_sites()[layer]
    mixer = params[slot[0]][slot[1]]['mixer']
    kernel = mixer['o_proj']['kernel'][repeat] if 'o_proj' in mixer else None
    return kernel if kernel is not None and kernel.ndim == 3 else None
