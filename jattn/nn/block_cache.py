"""Cache policies that read a part of the past: every query and head chooses blocks of the document.

Keys are stored before rotation, in blocks of `size` tokens counted from the document's start. A policy says which
blocks each query reads and how far before the query each of them shall seem to stand (`block_view.py`).

The tokens of a call are laid behind the stored ones, those of the state's own document into their slots, so that every
block is one slice wherever its document began. A call of one token writes first and reads the cache alone. A call
without a state is one with an empty cache: it gives the same outputs.
"""

import abc
import dataclasses

import jax.numpy as jnp
from flax import struct
from jax import lax

from jattn.contract import Cursor, Rows
from jattn.nn.block_view import BlockView
from jattn.nn.cache import Rotate
from jattn.typing import Array, Bool, Float, Int32

TIE_BITS = 12  # scores that agree to so many bits tie: calls of other lengths round differently


@struct.dataclass
class BlockState:
    """The keys and values of the current document in S = M C slots, block after block.

    Attributes:
        cursor: where the rows stand.
        length: [B], tokens of the document so far.
        k, v: [B, S, G, K] and [B, S, G, V], keys not rotated.
    """

    cursor: Cursor
    length: Int32[Array, 'B']
    k: Float[Array, 'B S G K']
    v: Float[Array, 'B S G V']


@struct.dataclass
class Laid:
    """The tokens of a call behind the stored ones.

    Attributes:
        segments: [B, T], the document of each token.
        index: [B, T], how many tokens of its document stand before it, those of earlier calls too.
        origin: [B, T], where the first token of its document stands (or would) among the laid ones.
        stored: [B], tokens of the state's document before the call.
        k, v: [B, S, G, K] and [B, S, G, V].
    """

    segments: Int32[Array, 'B T']
    index: Int32[Array, 'B T']
    origin: Int32[Array, 'B T']
    stored: Int32[Array, 'B']
    k: Float[Array, 'B S G K']
    v: Float[Array, 'B S G V']


@struct.dataclass
class Finished:
    """Blocks whose last token has been read: those of the state, then those that end in the call, in order of time.

    Attributes:
        segments: [B, N], the document of each; 0: there is none.
        number: [B, N], how many blocks of its document stand before it.
        place: [B, N], for those that end in the call the token of the call that ends it.
        stored: static, how many of them are the state's.
    """

    segments: Int32[Array, 'B N']
    number: Int32[Array, 'B N']
    place: Int32[Array, 'B N']
    stored: int = struct.field(pytree_node=False)

    def of_state(self) -> 'Finished':
        """Those of the state: all that a call of one token can choose."""
        return Finished(*(x[:, : self.stored] for x in (self.segments, self.number, self.place)), self.stored)

    def of_call(self) -> 'Finished':
        """Those that end in the call."""
        return Finished(*(x[:, self.stored :] for x in (self.segments, self.number, self.place)), 0)


@dataclasses.dataclass(frozen=True)
class BlockCache(abc.ABC):
    """The base of these policies; `size` is C. Past the capacity, in whole blocks, outputs are NaN."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """C, tokens of a block."""

    @abc.abstractmethod
    def init(
        self,
        batch: int,
        capacity: int,
        key_heads: int,
        key_dim: int,
        value_dim: int,
        dtype: jnp.dtype,
        heads: int | None = None,
    ) -> BlockState:
        """An empty cache."""

    @abc.abstractmethod
    def extend(
        self, state: BlockState | None, q: Array, k: Array, v: Array, rows: Rows, rotate: Rotate
    ) -> tuple[BlockState | None, BlockView]:
        """Takes a call's tokens in; returns the new state and what their queries see."""

    def _empty(
        self, batch: int, capacity: int, key_heads: int, key_dim: int, value_dim: int, dtype: jnp.dtype
    ) -> BlockState:
        slots = (batch, -(-capacity // self.size) * self.size, key_heads)
        return BlockState(
            cursor=Cursor.fresh(batch),
            length=jnp.zeros(batch, jnp.int32),
            k=jnp.zeros((*slots, key_dim), dtype),
            v=jnp.zeros((*slots, value_dim), dtype),
        )

    def _lay(
        self, state: BlockState | None, k: Array, v: Array, rows: Rows
    ) -> tuple[BlockState | None, Laid, Bool[Array, 'B T'] | None]:
        """The new state, the call's tokens behind the stored ones, and which of them are past the capacity."""
        batch, tokens = k.shape[:2]
        place = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None], (batch, tokens))
        padded = [jnp.pad(x, ((0, 0), (0, self.size), (0, 0), (0, 0))) for x in (k, v)]
        if state is None:
            segments = jnp.ones((batch, tokens), jnp.int32) if rows.segments is None else rows.segments
            index = place if rows.index is None else rows.index
            return None, Laid(segments, index, place - index, jnp.zeros(batch, jnp.int32), *padded), None

        slots = state.k.shape[1]
        index = rows.index + jnp.where(rows.carried, state.length[:, None], 0)
        last = (rows.segments > 0) & (rows.segments == rows.cursor.segment[:, None])
        length = jnp.max(jnp.where(last, index + 1, 0), axis=1)
        carried_on = rows.cursor.segment == state.cursor.segment
        length = jnp.maximum(length, jnp.where(carried_on, state.length, 0))
        new = [write(old, x, jnp.where(last, index, slots)) for old, x in ((state.k, k), (state.v, v))]
        overflow = (index >= slots) & (rows.segments > 0)
        if tokens == 1:
            origin, seen = jnp.zeros_like(index), [x.astype(own.dtype) for x, own in zip(new, (k, v))]
        else:
            # The state's document may not be the last of the call: its tokens have their slots beside the new state.
            slot = jnp.where(rows.carried, index, slots)
            old = [write(old, x, slot).astype(x.dtype) for old, x in ((state.k, k), (state.v, v))]
            seen = [jnp.concatenate(parts, axis=1) for parts in zip(old, padded)]
            origin = jnp.where(rows.carried, 0, slots + place - index)
        after = state.replace(cursor=rows.cursor, length=length, k=new[0], v=new[1])
        return after, Laid(rows.segments, index, origin, state.length, *seen), overflow

    def _finished(self, state: BlockState | None, laid: Laid) -> Finished:
        """The finished blocks; `state` is that before the call."""
        batch, tokens = laid.index.shape
        ends = ((laid.index + 1) % self.size == 0) & (laid.segments > 0)
        most = max(1, (tokens + (0 if state is None else self.size - 1)) // self.size)
        place = jnp.sort(jnp.where(ends, jnp.arange(tokens)[None], tokens), axis=1)[:, :most]
        there, place = place < tokens, jnp.minimum(place, tokens - 1)
        segments, index = (jnp.take_along_axis(x, place, axis=1) for x in (laid.segments, laid.index))
        parts = [(jnp.where(there, segments, 0), index // self.size, place)]
        stored = 0
        if state is not None:
            stored = state.k.shape[1] // self.size
            number = jnp.broadcast_to(jnp.arange(stored, dtype=jnp.int32)[None], (batch, stored))
            full = number < (state.length // self.size)[:, None]
            parts.insert(0, (jnp.where(full, state.cursor.segment[:, None], 0), number, jnp.zeros_like(number)))
        segments, number, place = (jnp.concatenate(x, axis=1).astype(jnp.int32) for x in zip(*parts))
        return Finished(segments, number, place, stored)


def write(slots: Float[Array, 'B S G K'], x: Float[Array, 'B T G K'], slot: Int32[Array, 'B T']) -> Array:
    """The tokens in their slots; those whose slot there is not are dropped."""
    return slots.at[jnp.arange(x.shape[0])[:, None], slot].set(x.astype(slots.dtype), mode='drop')


def best_blocks(
    scores: Float[Array, 'B H T N'], candidates: Bool[Array, 'B T N'], number: Int32[Array, 'B N'], count: int
) -> Int32[Array, 'B T H n']:
    """The numbers of the `count` candidates of the highest scores, in the order of time; first -1 for each that lacks.

    Of blocks whose scores tie the later ones are taken.

    >>> scores, candidates = jnp.array([[[[3.0, 1.0, 1.0, 9.0]]]]), jnp.array([[[True, True, True, False]]])
    >>> best_blocks(scores, candidates, jnp.arange(4)[None], 2).tolist()
    [[[[0, 2]]]]
    """
    few = min(count, scores.shape[-1])
    scores = lax.reduce_precision(lax.stop_gradient(scores).astype(jnp.float32), 8, TIE_BITS)
    scores = jnp.where(candidates[:, None], scores, -jnp.inf)[..., ::-1]  # of equal ones top_k takes the first
    highest, best = lax.top_k(scores, few)
    numbers = jnp.broadcast_to(number[:, None, None, ::-1], scores.shape)
    chosen = jnp.where(highest > -jnp.inf, jnp.take_along_axis(numbers, best, axis=-1), -1)
    chosen = jnp.pad(jnp.sort(chosen, axis=-1), ((0, 0), (0, 0), (0, 0), (count - few, 0)), constant_values=-1)
    return jnp.moveaxis(chosen, 1, 2)
