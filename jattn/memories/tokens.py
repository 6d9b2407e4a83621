"""What a memory is told of its tokens: keys, values, queries and gates, whoever made them of the layer's input."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jattn.contract import Rows
from jattn.ops import segments as documents
from jattn.typing import Array, Bool, Float, Int32, at_least_float32


@struct.dataclass
class Tokens:
    """The tokens of a call.

    Attributes:
        q: [B, T, H, K] queries.
        k, v: [B, T, H, K] and [B, T, H, V] keys and values; with several steps a token [B, T, H, N, .].
        step: theta, [B, T, H], or [B, T, H, V] per value channel; with several steps [B, T, H, N].
        log_decay: ln a, [B, T, H], or [B, T, H, K] per key channel; None: nothing is forgotten.
        log_momentum: ln m [B, T, H]; None: no momentum.
        threshold: delta [B, T, H]; None: the loss has none.
        weight: gamma [B, T, H], in the windows of later tokens; None: 1.
        erase: (a, b) [B, T, H, K]: beside the gradient, what the memory holds along a is removed along b.
        extra: what only the layer's read-out needs, by name.
    """

    q: Float[Array, 'B T H K']
    k: Array
    v: Array
    step: Array
    log_decay: Array | None = None
    log_momentum: Float[Array, 'B T H'] | None = None
    threshold: Float[Array, 'B T H'] | None = None
    weight: Float[Array, 'B T H'] | None = None
    erase: tuple[Float[Array, 'B T H K'], Float[Array, 'B T H K']] | None = None
    extra: dict[str, Any] = struct.field(default_factory=dict)

    def wide(self) -> 'Tokens':
        """The tokens as a memory's own arithmetic takes them: float32 at least, without what is not its business."""
        return jax.tree.map(lambda x: x.astype(at_least_float32(x)), self.replace(extra={}))


@struct.dataclass
class Places:
    """Where the tokens of a call stand in the chunks of their documents.

    Attributes:
        real: [B, T], not padding.
        new: [B, T], a document opens here that is not the one of the state at the call's start.
        place: [B, T], the token's place in its chunk, 0 .. C-1.
        after: [B], the place that the row's next token takes.
    """

    real: Bool[Array, 'B T']
    new: Bool[Array, 'B T']
    place: Int32[Array, 'B T']
    after: Int32[Array, 'B']


def place(rows: Rows, shape: tuple[int, int], chunk: int, start: Int32[Array, 'B'] | None) -> Places:
    """Counts chunks from the start of every document; `start` [B] is the place of the state's next token."""
    batch, tokens = shape
    if rows.segments is None:
        index = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None], shape)
        return Places(
            real=jnp.ones(shape, bool),
            new=jnp.zeros(shape, bool),
            place=index % chunk,
            after=jnp.full(batch, tokens % chunk, jnp.int32),
        )
    real = rows.segments > 0
    if start is None:
        return Places(real, documents.resets(rows.segments), rows.index % chunk, jnp.zeros(batch, jnp.int32))
    at = (rows.index + jnp.where(rows.carried, start[:, None], 0)) % chunk
    last = tokens - 1 - jnp.argmax(real[:, ::-1], axis=1)
    after = (jnp.take_along_axis(at, last[:, None], axis=1)[:, 0] + 1) % chunk
    entered = jnp.where(rows.continues, start, 0)
    return Places(real, documents.resets(rows.segments), at, jnp.where(jnp.any(real, axis=1), after, entered))
