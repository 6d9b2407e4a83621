"""What a memory finds new: the norm of its inner gradient at every token, layer by layer and head by head (Titans).

    surprise_t = norm of the gradient of bias(M(k_t; W), v_t) by W        write_size_t = norm of the step
    state_norm_t = norm of the weights W at which the gradient is taken

Read from the taps of the memories, whatever path computes them. With chunks gradients are taken at the chunk's start,
so within a chunk a token is still new when it comes again.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.typing import Array, Float, Int32, PyTree, axis_sizes
from jattn.understanding import capture

SITES = ('surprise', 'write_size', 'state_norm')


@struct.dataclass
class Surprise:
    """The readings of every memory.

    Attributes:
        layers: the layers that are memories, one a row.
        surprise, write_size, state_norm: [L, B, T, H].
        nats: [B, T], -log p of every token by the model's own outputs; the first token, which nothing predicts, is NaN.
    """

    layers: tuple[int, ...] = struct.field(pytree_node=False)
    surprise: Float[Array, 'L B T H']
    write_size: Float[Array, 'L B T H']
    state_norm: Float[Array, 'L B T H']
    nats: Float[Array, 'B T']


def surprise(
    model: nn.Module,
    params: PyTree,
    tokens: Int32[Array, 'B T'],
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
) -> Surprise:
    """Reads whole sequences.

    Args:
        model: a decoder of tokens; layers that are no memories are not read.
        params: its parameters.
        tokens: one document a row, or as the context says.
        context: positions and segments.
        collections: the model's slow state, if it has any.

    Raises:
        ValueError: no layer of the model is a memory.

    >>> from jattn.memories import MEMORIES
    >>> from jattn.models import DecoderConfig
    >>> fields = dict(width=16, layers=2, read_in='tokens', input_size=8, output_size=8)
    >>> model = DecoderConfig(mixer=(MEMORIES['deltanet'].tiny(),), **fields).make()
    >>> tokens = jnp.array([[1, 2, 1, 2, 1, 2]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> found = surprise(model, params, tokens)
    >>> found.layers, found.surprise.shape, found.nats.shape
    ((0, 1), (2, 1, 6, 4), (1, 6))
    """
    axis_sizes('surprise', tokens=(tokens, 'B T'))
    if SITES[0] not in capture.index(model, params, tokens, context, collections):
        raise ValueError('surprise: no layer of this model is a memory')
    captured = capture.run(model, params, tokens, sites=SITES, context=context, collections=collections)
    log_p = jax.nn.log_softmax(captured.outputs.astype(jnp.float32), axis=-1)
    said = jnp.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    return Surprise(
        layers=tuple(captured.values[SITES[0]]),
        nats=jnp.pad(-said, ((0, 0), (1, 0)), constant_values=jnp.nan),
        **{site: captured.stack(site) for site in SITES},
    )
