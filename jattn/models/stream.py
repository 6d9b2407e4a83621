"""A stream of any length through a model: calls of a fixed size, a state between them, memory of one call.

    logits_t, state_t = model(x_t, state_{t-1})          nats_t = -log softmax(logits_{t-1})[x_t]

A token is scored by what the model said before it. The logits after the last token are therefore part of the stream,
and a stream that is cut anywhere counts what the unbroken one counts. With cuts at multiples of the call's size it is
equal bit for bit; elsewhere the calls hold other tokens, and the figures differ by rounding.

Memories and recurrences need a state that is constant in the length; so does attention with a window. Attention without
one keeps `capacity` keys, and reads NaN beyond.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.typing import Array, Bool, Float, Int32, PyTree, axis_sizes


@struct.dataclass
class Stream:
    """Where the rows of a stream stand.

    Attributes:
        state: of the model.
        logits: [B, E] float32, what the model expects next; zeros before the first token.
        tokens: [B], how many each row has read.
    """

    state: PyTree
    logits: Float[Array, 'B E']
    tokens: Int32[Array, 'B']


@struct.dataclass
class Scores:
    """What a call says of its tokens.

    Attributes:
        nats: [B, T] float32, -log p of every token; 0 where `counted` is false.
        hits: [B, T], the token was the likeliest.
        counted: [B, T]; a stream's first token and padding are not.
    """

    nats: Float[Array, 'B T']
    hits: Bool[Array, 'B T']
    counted: Bool[Array, 'B T']


def open_stream(model: nn.Module, batch: int, capacity: int = 1) -> Stream:
    """A stream before its first token.

    Args:
        model: a decoder of tokens; its config gives the state.
        batch: B, rows that are read side by side.
        capacity: keys that attention without a window must hold; other mixers do not need it.
    """

    # Compiled, so that no two leaves are one buffer: a stream's buffers are handed on from call to call.
    @jax.jit
    def fresh() -> Stream:
        logits = jnp.zeros((batch, model.cfg.output_size), jnp.float32)
        return Stream(model.cfg.init_state(batch, capacity), logits, jnp.zeros(batch, jnp.int32))

    return fresh()


def advance(
    model: nn.Module,
    params: PyTree,
    stream: Stream,
    tokens: Int32[Array, 'B T'],
    call: int | None = None,
    collections: Mapping[str, PyTree] | None = None,
) -> tuple[Scores, Stream]:
    """Reads the next tokens; the stream that was given is used up (its buffers become those of the new one).

    Args:
        model: a decoder of tokens.
        params: its parameters.
        stream: where the rows stand.
        tokens: the next T of every row.
        call: T is filled up to it with padding, so that a last, shorter piece needs no compilation of its own.
        collections: the model's slow state, if it has any.

    Raises:
        ValueError: T is larger than `call`, or the stream has other rows.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=1, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens = jnp.array([[1, 2, 3, 4, 5]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> scores, stream = advance(model, params, open_stream(model, 1, capacity=8), tokens[:, :3], call=3)
    >>> scores.counted.tolist(), stream.tokens.tolist()
    ([[False, True, True]], [3])
    >>> scores, stream = advance(model, params, stream, tokens[:, 3:], call=3)
    >>> scores.nats.shape, scores.counted.tolist(), stream.tokens.tolist()
    ((1, 2), [[True, True]], [5])
    """
    axis_sizes('advance', tokens=(tokens, 'B T'), logits=(stream.logits, 'B E'))
    given = tokens.shape[1]
    call = given if call is None else call
    if given > call:
        raise ValueError(f'advance: tokens has T={given}, but call={call} must be at least that')
    real = jnp.broadcast_to(jnp.arange(call)[None] < given, (len(tokens), call))
    variables = {'params': params, **(collections or {})}
    scores, stream = _advance(model, variables, stream, jnp.pad(tokens, ((0, 0), (0, call - given))), real)
    return jax.tree.map(lambda x: x[:, :given], scores), stream


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(model: nn.Module, variables: PyTree, stream: Stream, tokens: Array, real: Array) -> tuple[Scores, Stream]:
    logits, state = model.apply(variables, tokens, Context(segments=real.astype(jnp.int32)), stream.state)
    logits = logits.astype(jnp.float32)
    before = jnp.concatenate([stream.logits[:, None], logits[:, :-1]], axis=1)
    said = jnp.take_along_axis(before, tokens[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(before, axis=-1) - said
    count = jnp.sum(real, axis=1, dtype=jnp.int32)
    is_first = (stream.tokens[:, None] == 0) & (jnp.arange(tokens.shape[1])[None] == 0)
    counted = real & ~is_first
    last = jnp.take_along_axis(logits, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    last = jnp.where((count > 0)[:, None], last, stream.logits)
    hits = jnp.argmax(before, axis=-1) == tokens
    return Scores(jnp.where(counted, nats, 0), hits & counted, counted), Stream(state, last, stream.tokens + count)
