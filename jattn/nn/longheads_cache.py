"""LongHeads (Lu et al. 2024): a trained rotary decoder reads far, each head a few chunks, at distances it has seen.

Closed chunks of w tokens have a representative a head, from queries and keys rotated by their place in the chunk:

    O = softmax(Q K^T / sqrt K) V      both ways, within the chunk
    c = softmax(mean(O) K^T / sqrt K) K      a convex combination of the chunk's keys

which needs K = V. The query at token t, in chunk o, reads n chunks: 0 (the first tokens), o - 1, o, and of those
between the n - 3 whose c has the largest product with it. In the order of time they take the positions 0, 1, 2, ...
and the query the last, so that no distance reaches n w, which must not exceed the trained length. While there are no
more than n chunks all are read where they stand: this is the plain model.

As published the query that chooses is not rotated, though the keys in c are; `rotate_selection_query` turns it to the
position from which it reads. A chunk is open until its last token has been read, and a query always reads its own key:
the authors' prefill leaves it out, their decoding takes a chunk's last token for one past it. Query heads that share
keys choose each for itself. Nothing is trained. Positions are counted by tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jattn.contract import Rows
from jattn.nn.block_cache import BlockCache, BlockState, Finished, Laid, best_blocks, write
from jattn.nn.block_view import BlockView, map_queries
from jattn.nn.cache import Rotate
from jattn.typing import Array, Float, Int32, at_least_float32

SELECTIONS = ('top', 'last', 'random')


@struct.dataclass
class LongHeadsState(BlockState):
    """The keys and values of the document, and

    Attributes:
        chunks: [B, M, H, K], the representatives of the closed chunks.
        queries: [B, w, H, K], those of the last token's chunk, not rotated.
    """

    chunks: Float[Array, 'B M H K']
    queries: Float[Array, 'B C H K']


@dataclasses.dataclass(frozen=True)
class LongHeadsCache(BlockCache):
    """Keeps the whole document and reads `chunks` chunks of it.

    Attributes:
        chunk: w, tokens of a chunk.
        chunks: n, the chunks that a query reads; n w is at most the trained length.
        rotate_selection_query: whether the query that chooses is rotated.
        selection: 'top', or for comparison 'last' (the last n chunks, a window) or 'random' (between 0 and o - 1).

    >>> LongHeadsCache(chunk=8, chunks=3)
    Traceback (most recent call last):
    ...
    ValueError: chunks=3 must be at least 4: the first, the last two and one that is chosen
    """

    chunk: int = 16
    chunks: int = 8
    rotate_selection_query: bool = False
    selection: str = 'top'

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f'chunk={self.chunk} must be at least 1')
        if self.chunks < 4:
            raise ValueError(f'chunks={self.chunks} must be at least 4: the first, the last two and one that is chosen')
        if self.selection not in SELECTIONS:
            raise ValueError(f'selection={self.selection!r} must be one of {", ".join(SELECTIONS)}')

    @property
    def size(self) -> int:
        return self.chunk

    def init(
        self,
        batch: int,
        capacity: int,
        key_heads: int,
        key_dim: int,
        value_dim: int,
        dtype: jnp.dtype,
        heads: int | None = None,
    ) -> LongHeadsState:
        heads = heads or key_heads
        _check_widths(key_dim, value_dim)
        if self.chunk * self.chunks > capacity:
            raise ValueError(
                f'chunk={self.chunk} times chunks={self.chunks} is {self.chunk * self.chunks} tokens, '
                f'more than capacity={capacity} holds'
            )
        base = self._empty(batch, capacity, key_heads, key_dim, value_dim, dtype)
        return LongHeadsState(
            cursor=base.cursor,
            length=base.length,
            k=base.k,
            v=base.v,
            chunks=jnp.zeros((batch, base.k.shape[1] // self.chunk, heads, key_dim), dtype),
            queries=jnp.zeros((batch, self.chunk, heads, key_dim), dtype),
        )

    def extend(
        self, state: LongHeadsState | None, q: Array, k: Array, v: Array, rows: Rows, rotate: Rotate
    ) -> tuple[LongHeadsState | None, BlockView]:
        _check_widths(k.shape[-1], v.shape[-1])
        new, laid, overflow = self._lay(state, k, v, rows)
        finished = self._finished(state, laid)
        if state is not None:
            new = new.replace(queries=self._keep_queries(state, q, laid, rows, last=True))
        ended = finished.of_call()
        chunks = self._close(state, new, lax.stop_gradient(q), lax.stop_gradient(laid), ended, rows, rotate)
        if state is not None:
            new = new.replace(chunks=self._keep_chunks(state, chunks, ended, rows))
        if state is not None and q.shape[1] == 1:
            finished, chunks = finished.of_state(), new.chunks
        elif state is not None:
            chunks = jnp.concatenate([state.chunks.astype(chunks.dtype), chunks], axis=1)
        chosen = self._choose(q, laid, chunks, finished, rotate)
        return new, self._view(q, laid, chosen, rotate, overflow)

    def _keep_queries(
        self, state: LongHeadsState, q: Array, laid: Laid, rows: Rows, *, last: bool
    ) -> Float[Array, 'B C H K']:
        """The state's queries with those of the call that belong to the chunk of the call's last token, or (not `last`)
        to the chunk that was open before the call."""
        if last:
            kept = (laid.segments > 0) & (laid.segments == rows.cursor.segment[:, None])
            chunk = jnp.max(jnp.where(kept, laid.index // self.chunk, -1), axis=1)
        else:
            kept, chunk = rows.carried, state.length // self.chunk
        kept &= laid.index // self.chunk == chunk[:, None]
        return write(state.queries, q, jnp.where(kept, laid.index % self.chunk, self.chunk))

    def _keep_chunks(
        self, state: LongHeadsState, chunks: Array, ended: Finished, rows: Rows
    ) -> Float[Array, 'B M H K']:
        """The state's chunks with those of the call that belong to its last document."""
        kept = (ended.segments > 0) & (ended.segments == rows.cursor.segment[:, None])
        return write(state.chunks, chunks, jnp.where(kept, ended.number, state.chunks.shape[1]))

    def _close(
        self,
        state: LongHeadsState | None,
        new: LongHeadsState | None,
        q: Array,
        laid: Laid,
        ended: Finished,
        rows: Rows,
        rotate: Rotate,
    ) -> Float[Array, 'B N H K']:
        """The representatives of the chunks that end in the call; nothing is computed where none does."""
        size, number, place = self.chunk, ended.number, ended.place

        def of_call() -> Float[Array, 'B N H K']:
            starts = jnp.take_along_axis(laid.origin, place, axis=1) + number * size
            if state is None:  # behind `size` others, so that no slice leaves a call shorter than a chunk
                queries, q_starts = jnp.pad(q, ((0, 0), (size, 0), (0, 0), (0, 0))), place + 1
            elif q.shape[1] == 1:
                queries, q_starts = new.queries.astype(q.dtype), jnp.zeros_like(place)
            else:
                open_chunk = self._keep_queries(state, q, laid, rows, last=False)
                queries = jnp.concatenate([open_chunk.astype(q.dtype), q], axis=1)
                was_open = jnp.take_along_axis(rows.carried, place, axis=1)
                was_open &= number == (laid.stored // size)[:, None]
                q_starts = jnp.where(was_open, 0, place + 1)
            cut = jax.vmap(jax.vmap(lambda row, at: lax.dynamic_slice_in_dim(row, at, size), (None, 0)))
            local = jnp.arange(size)[None]
            turn = jax.vmap(lambda x: rotate(x, local), 1, 1)
            return jax.vmap(representative, 1, 1)(
                turn(cut(queries, q_starts)), turn(cut(laid.k, starts)), cut(laid.v, starts)
            )

        shape = (*place.shape, *q.shape[2:])
        empty = jnp.zeros(shape, at_least_float32(q))
        return lax.cond(jnp.any(ended.segments > 0), of_call, lambda: empty)

    def _choose(
        self, q: Array, laid: Laid, chunks: Float[Array, 'B N H K'], finished: Finished, rotate: Rotate
    ) -> Int32[Array, 'B T H n']:
        """The numbers of the chunks that each query and head reads, in the order of time."""

        def choose(part: tuple[Array, ...]) -> Int32[Array, 'B T H n']:
            q, index, segments = part
            own = index // self.chunk
            if self.selection == 'last':
                numbers = own[..., None] - jnp.arange(self.chunks)[None, None, ::-1]
                numbers = jnp.broadcast_to(numbers[:, :, None], (*q.shape[:3], self.chunks))
                return jnp.maximum(numbers, -1)
            if self.selection == 'random':
                scores = _random_scores(index, q.shape[2], finished.number)
            else:
                if self.rotate_selection_query:
                    q = rotate(q, index - self._skipped(own) * self.chunk)
                scores = jnp.einsum('bthk,bnhk->bhtn', q, chunks, preferred_element_type=at_least_float32(q, chunks))
            candidates = (finished.segments[:, None] == segments[..., None]) & (segments[..., None] > 0)
            number = finished.number[:, None]
            candidates &= (number >= 1) & (number <= own[..., None] - 2)
            middle = best_blocks(scores, candidates, finished.number, self.chunks - 3)
            always = jnp.stack([jnp.where(own > 0, 0, -1), jnp.where(own > 1, own - 1, -1), own], axis=-1)
            always = jnp.broadcast_to(always[:, :, None], (*q.shape[:3], 3))
            return jnp.sort(jnp.concatenate([always, middle], axis=-1), axis=-1)

        return map_queries(choose, (q, laid.index, laid.segments), q.shape[2] * chunks.shape[1])

    def _skipped(self, own: Int32[Array, '...']) -> Int32[Array, '...']:
        """How many chunks a query that stands in chunk `own` does not read."""
        return jnp.maximum(own + 1 - self.chunks, 0)

    def _view(self, q: Array, laid: Laid, chosen: Array, rotate: Rotate, overflow: Array | None) -> BlockView:
        index, own = laid.index[:, :, None, None], laid.index[:, :, None, None] // self.chunk
        slot = jnp.cumsum(chosen >= 0, axis=-1) - 1
        seen = jnp.where(chosen == own, index % self.chunk + 1, self.chunk)
        return BlockView(
            q=q,
            k=laid.k,
            v=laid.v,
            chosen=chosen,
            starts=jnp.where(chosen < 0, 0, laid.origin[:, :, None, None] + chosen * self.chunk),
            seen=jnp.where(chosen < 0, 0, seen),
            distance=jnp.where(chosen < 0, 0, index - (self._skipped(own) + slot) * self.chunk),
            overflow=overflow,
            size=self.chunk,
            rotate=rotate,
        )


def representative(
    q: Float[Array, 'B C H K'], k: Float[Array, 'B C G K'], v: Float[Array, 'B C G K']
) -> Float[Array, 'B H K']:
    """c of a chunk, from its queries and keys rotated by their place in it.

    >>> q, k = jnp.zeros((1, 2, 1, 2)), jnp.array([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    >>> representative(q, k, 0 * k)[0, 0].tolist()
    [0.5, 0.5]
    """
    dtype = at_least_float32(q, k, v)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scale = k.shape[-1] ** -0.5
    inside = jax.nn.softmax(scale * jnp.einsum('bchk,bshk->bhcs', q, k), axis=-1)
    mean = jnp.mean(jnp.einsum('bhcs,bshk->bhck', inside, v), axis=2)
    return jnp.einsum('bhs,bshk->bhk', jax.nn.softmax(scale * jnp.einsum('bhk,bshk->bhs', mean, k), axis=-1), k)


def _random_scores(index: Int32[Array, 'B T'], heads: int, number: Int32[Array, 'B N']) -> Float[Array, 'B H T N']:
    """Numbers in [0, 1) by token, head and chunk alone (MurmurHash3's last step), so that calls do not matter."""
    token = index[:, None, :, None].astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    head = jnp.arange(heads, dtype=jnp.uint32).reshape(1, -1, 1, 1) * jnp.uint32(0x85EBCA77)
    x = token + head + number[:, None, None].astype(jnp.uint32) * jnp.uint32(0xC2B2AE3D)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return (x >> 8).astype(jnp.float32) / 2**24


def _check_widths(key_dim: int, value_dim: int) -> None:
    if key_dim != value_dim:
        raise ValueError(
            f'longheads: key_dim={key_dim} and value_dim={value_dim} must be equal: '
            'the mean of values asks the keys of its chunk'
        )
