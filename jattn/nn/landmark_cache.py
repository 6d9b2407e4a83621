"""Retrieval by landmarks (Mohtashami & Jaggi 2023): a query reads the few blocks whose last key it scores highest.

The document is processed in chunks of `chunk` tokens. The queries of a chunk see all of it up to themselves, the block
that was unfinished when it began, and of the n blocks that were finished by then the `retrieved` = R best, in the order
of time. Positions 'stingy' keep every distance within what a short training sequence has shown: with n > R blocks,

    scoring      the landmarks of the last R blocks stand in the slots 1 .. R, all older ones in slot 0
    attention    the s-th retrieved block stands in slot s, or s + 1 if it is one of the last R
    the chunk    begins (with the unfinished block) in slot R + 1

so none reaches (R + 2) blocks and a chunk; with n <= R blocks positions are the true ones. (The authors' code moves
the last R blocks on by one slot at n = R too, where the query then stands upon the last of them.)

A query head chooses for itself. 'heads' and 'tokens' choose as one: probabilities over the landmarks first, then the
largest over the heads, or over those tokens of the query's chunk that are in its call, later ones too: with 'tokens' a
call is the authors' chunk, and calls of other lengths choose otherwise. In the first layer all landmarks are the same
key, so that blocks older than the last R tie: of those the later are read. Positions are counted by tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jattn.contract import Rows
from jattn.nn.block_cache import BlockCache, BlockState, Finished, Laid, best_blocks
from jattn.nn.block_view import BlockView, map_queries
from jattn.nn.cache import Rotate
from jattn.typing import Array, Float, Int32, at_least_float32

SELECTIONS = ('token_and_head', 'heads', 'tokens')
POSITIONS = ('stingy', 'true')


@dataclasses.dataclass(frozen=True)
class LandmarkCache(BlockCache):
    """Keeps every block of the document and reads the best.

    Attributes:
        block: C = l + 1, tokens of a block, the landmark that ends it included.
        retrieved: R, blocks that a query reads beside its own chunk.
        chunk: tokens that are processed together, from the start of the document; 1: a query retrieves by itself.
        selection: who chooses: 'token_and_head' (each), 'heads' (all of a token), 'tokens' (all of a chunk).
        positions: 'stingy', or 'true': as they stand.

    >>> LandmarkCache(block=1, retrieved=2)
    Traceback (most recent call last):
    ...
    ValueError: block=1 must be at least 2: a landmark and a token that it stands for
    """

    block: int = 16
    retrieved: int = 2
    chunk: int = 1
    selection: str = 'token_and_head'
    positions: str = 'stingy'

    def __post_init__(self) -> None:
        if self.block < 2:
            raise ValueError(f'block={self.block} must be at least 2: a landmark and a token that it stands for')
        for name in ('retrieved', 'chunk'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
        for name, known in (('selection', SELECTIONS), ('positions', POSITIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f'{name}={getattr(self, name)!r} must be one of {", ".join(known)}')

    @property
    def size(self) -> int:
        return self.block

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
        del heads
        blocks = -(-capacity // self.block)
        if self.retrieved > blocks:
            raise ValueError(
                f'retrieved={self.retrieved} blocks are more than the {blocks} of block={self.block} tokens '
                f'that capacity={capacity} holds'
            )
        return self._empty(batch, capacity, key_heads, key_dim, value_dim, dtype)

    def extend(
        self, state: BlockState | None, q: Array, k: Array, v: Array, rows: Rows, rotate: Rotate
    ) -> tuple[BlockState | None, BlockView]:
        new, laid, overflow = self._lay(state, k, v, rows)
        finished = self._finished(state, laid)
        # The new cache holds the old blocks: to read the old one would cost a copy of it.
        landmarks = laid.k[:, self.block - 1 : finished.stored * self.block : self.block]
        if state is not None and q.shape[1] == 1:
            finished = finished.of_state()
        else:
            ended = jnp.take_along_axis(k, finished.of_call().place[:, :, None, None], axis=1)
            landmarks = jnp.concatenate([landmarks, ended], axis=1)
        queries = q, laid.index, laid.origin, laid.segments
        retrieved = self._retrieve(queries, landmarks, laid.k, finished, rotate)

        # The chunk, and the block that was unfinished when it began: the last blocks, the query's own among them.
        number, before = laid.index // self.block, self._before(laid.index)
        local = number[..., None] - jnp.arange((self.block + self.chunk - 2) // self.block + 1)[None, None, ::-1]
        local = jnp.where(local >= before[..., None], local, -1)[:, :, None]
        heads = (*q.shape[:3], local.shape[-1])
        chosen = jnp.concatenate([retrieved, jnp.broadcast_to(local, heads)], axis=-1)
        return new, self._view(q, laid, chosen, rotate, overflow)

    def _view(self, q: Array, laid: Laid, chosen: Array, rotate: Rotate, overflow: Array | None) -> BlockView:
        index, number = laid.index[:, :, None, None], laid.index[:, :, None, None] // self.block
        shift = self._shift(laid.index)[:, :, None, None]
        slot = chosen - shift
        if self.positions == 'stingy':
            before = self._before(laid.index)[:, :, None, None]
            rank = jnp.cumsum(chosen >= 0, axis=-1) - 1
            recent = (before > self.retrieved) & (chosen >= before - self.retrieved)
            slot = jnp.where(chosen < before, rank + recent, slot)
        seen = jnp.where(chosen == number, index % self.block + 1, self.block)
        return BlockView(
            q=q,
            k=laid.k,
            v=laid.v,
            chosen=chosen,
            starts=jnp.where(chosen < 0, 0, laid.origin[:, :, None, None] + chosen * self.block),
            seen=jnp.where(chosen < 0, 0, seen),
            distance=jnp.where(chosen < 0, 0, index - (shift + slot) * self.block),
            overflow=overflow,
            size=self.block,
            rotate=rotate,
        )

    def _before(self, index: Int32[Array, 'B T']) -> Int32[Array, 'B T']:
        """n, the blocks that were finished when a token's chunk began."""
        return (index - index % self.chunk) // self.block

    def _shift(self, index: Int32[Array, 'B T']) -> Int32[Array, 'B T']:
        """How many slots nearer to the document's start a token stands than it does in truth."""
        if self.positions == 'true':
            return jnp.zeros_like(index)
        return jnp.maximum(self._before(index) - self.retrieved - 1, 0)

    def _retrieve(
        self, queries: tuple[Array, ...], landmarks: Array, k: Array, finished: Finished, rotate: Rotate
    ) -> Int32[Array, 'B T H R']:
        """The numbers of the blocks that each query and head retrieves."""
        offset = self.block - 1
        place = finished.number * self.block if self.positions == 'true' else jnp.zeros_like(finished.number)
        landmarks = rotate(landmarks, place + offset)

        def scores(part: tuple[Array, ...]) -> tuple[Array, Array]:
            q, index, origin, segments = part
            before, shift = self._before(index), self._shift(index)
            q = rotate(q, index - shift * self.block)
            scores = _products(q, landmarks)
            if self.positions == 'stingy':
                recent = before[..., None] - self.retrieved + jnp.arange(self.retrieved)[None, None]
                scores = self._score_recent(q, recent, shift, origin, k, finished, rotate, scores)
            candidates = (finished.segments[:, None] == segments[..., None]) & (segments[..., None] > 0)
            candidates &= finished.number[:, None] < before[..., None]
            if self.selection != 'token_and_head':
                scores = jax.nn.softmax(jnp.where(candidates[:, None], scores * q.shape[-1] ** -0.5, -1e30), axis=-1)
            if self.selection == 'heads':
                scores = jnp.broadcast_to(jnp.max(scores, axis=1, keepdims=True), scores.shape)
            return scores, candidates

        def choose(part: tuple[Array, ...]) -> Int32[Array, 'B T H R']:
            return best_blocks(*scores(part), finished.number, self.retrieved)

        if self.selection == 'tokens':
            alone, candidates = scores(queries)
            shared = self._over_chunk(alone, queries[1] // self.chunk, queries[3])
            return best_blocks(shared, candidates, finished.number, self.retrieved)
        return map_queries(choose, queries, queries[0].shape[2] * landmarks.shape[1])

    def _score_recent(
        self,
        q: Array,
        recent: Int32[Array, 'B T R'],
        shift: Array,
        origin: Array,
        k: Array,
        finished: Finished,
        rotate: Rotate,
        scores: Float[Array, 'B H T N'],
    ) -> Float[Array, 'B H T N']:
        """The scores with those of the last blocks as they are in their own slots."""
        offset = self.block - 1
        place = jnp.clip(origin[..., None] + recent * self.block + offset, 0, k.shape[1] - 1)
        keys = jax.vmap(lambda row, place: row[place])(k, place)
        at = (recent - shift[..., None]) * self.block + offset
        # Every token has last blocks of its own.
        own = jax.vmap(lambda q, keys, at: _products(q[:, None], rotate(keys, at))[:, :, 0], 1, 2)(q, keys, at)
        which = finished.number[:, None] - recent[..., :1]
        scattered = jnp.take_along_axis(own, jnp.clip(which, 0, self.retrieved - 1)[:, None], axis=-1)
        return jnp.where(((which >= 0) & (which < self.retrieved))[:, None], scattered, scores)

    def _over_chunk(
        self, scores: Float[Array, 'B H T N'], chunk: Int32[Array, 'B T'], segments: Int32[Array, 'B T']
    ) -> Float[Array, 'B H T N']:
        """The largest among the tokens of the call that are of the same chunk: a run of neighbours."""
        begins = jnp.pad((chunk[:, 1:] != chunk[:, :-1]) | (segments[:, 1:] != segments[:, :-1]), ((0, 0), (1, 0)))
        run = jnp.cumsum(begins, axis=1)

        def row(scores: Array, run: Array) -> Array:
            largest = jax.ops.segment_max(jnp.moveaxis(scores, 1, 0), run, num_segments=len(run))
            return jnp.moveaxis(largest[run], 0, 1)

        return jax.vmap(row)(scores, run)


def _products(q: Float[Array, 'B T H K'], k: Float[Array, 'B N G K']) -> Float[Array, 'B H T N']:
    """Scores without a scale."""
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    products = jnp.einsum('btgrk,bngk->bgrtn', grouped, k, preferred_element_type=at_least_float32(q, k))
    return products.reshape(products.shape[0], -1, *products.shape[3:])
