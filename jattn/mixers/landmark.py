"""Landmark attention (Mohtashami & Jaggi 2023): the last token of a block is a landmark, the attention's gate to it.

    z_t = sum_s g_t(b(s)) r_ts v_s      `jattn/ops/softmax_attention/landmark.py`: r inside the blocks, g between them

The document is a row of blocks of l tokens and a landmark; the landmark's token carries no value, its key is trained to
say what the block holds. So the attention itself can retrieve: trained on short sequences, where all blocks are read,
it reads on long ones the R blocks of the best landmarks:

    dataclasses.replace(cfg, cache=LandmarkCache(block=cfg.block, retrieved=2))        # the same parameters

Landmarks are every `block`-th token of a document, the last of each block, or those of `Context.landmarks`. They come
with the tokens: who makes the sequences inserts one after every l tokens and, where a landmark follows, asks for the
token after it (`jattn/testbeds/landmarked.py`). Nothing is learned but the landmark's embedding. A first layer without
rotation tells no block from another: all landmarks are there the same key.

State: keys and values in the slots of a plain cache, whose positions are 2 p + 1 for landmarks and 2 p for others; or
the blocks of a `LandmarkCache`. Taps: those of softmax attention. The authors' dropout of blocks and jumps of positions
in training are not here; the latter are `Context.positions` where all blocks are read.
"""

import dataclasses
from typing import Self

import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, locate
from jattn.mixers.softmax import Softmax, SoftmaxConfig
from jattn.nn.block_cache import BlockCache, BlockState
from jattn.nn.block_view import BlockView, attend_blocks
from jattn.nn.cache import KeyValues, PlainCache, View
from jattn.nn.landmark_cache import LandmarkCache
from jattn.ops.softmax_attention.landmark import (
    IMPLEMENTATIONS,
    grouped_pattern,
    landmark_attention,
    landmark_mask,
    landmark_pattern,
)
from jattn.ops.softmax_attention.reference import attend, attention_scores
from jattn.taps import PATTERNS, tap, wants_patterns
from jattn.typing import Array, Bool, Float, Int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandmarkConfig(SoftmaxConfig):
    """Landmark attention: the fields of softmax attention, without window, sinks and softcap, always causal, and

    Attributes:
        block: l + 1, tokens of a block, the landmark that ends it included.
        cache: None: every block is read; a `LandmarkCache` of the same block: the best.
        implementation: of `ops.landmark_attention`; None: the fastest that serves.

    >>> import jax
    >>> cfg = LandmarkConfig(width=16, heads=2, block=4)
    >>> mixer, x = cfg.make(), jnp.ones((1, 6, 16))
    >>> variables = mixer.init(jax.random.key(0), x)
    >>> _, captured = mixer.apply(variables, x, mutable=['patterns'])
    >>> (captured['patterns']['pattern'][0, 0, 5] > 0).tolist()      # all but the landmark
    [True, True, True, False, True, True]
    """

    block: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 2:
            raise ValueError(f'block={self.block} must be at least 2: a landmark and a token that it stands for')
        for name, value in (('window', None), ('softcap', None), ('causal', True)):
            if getattr(self, name) != value:
                raise ValueError(f'{name}={getattr(self, name)} does not go with landmarks: {name} must be {value}')
        if isinstance(self.cache, LandmarkCache) and self.cache.block != self.block:
            raise ValueError(f'cache.block={self.cache.block} must be the block={self.block} of the landmarks')
        if self.cache is not None and type(self.cache) not in (PlainCache, LandmarkCache):
            raise ValueError(f'cache={self.cache} must be a LandmarkCache or a PlainCache: others lose landmarks')
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(f'implementation={self.implementation!r} must be one of {IMPLEMENTATIONS}')

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Landmark(self, **flax_kwargs)

    def tiny(self) -> Self:
        small = super().tiny()
        cache = small.cache
        if isinstance(cache, LandmarkCache):
            cache = dataclasses.replace(cache, block=4)
        return dataclasses.replace(small, block=4, cache=cache)


class Landmark(Softmax):
    """The module of `LandmarkConfig`."""

    cfg: LandmarkConfig

    def _read(
        self, q: Array, k: Array, v: Array, context: Context, state: KeyValues | BlockState | None
    ) -> tuple[Float[Array, 'B T H V'], KeyValues | BlockState | None]:
        batch, tokens = q.shape[:2]
        if context.landmarks is not None and context.landmarks.shape != (batch, tokens):
            raise ValueError(
                f'context.landmarks has shape {context.landmarks.shape}, but the call has [B, T] = {(batch, tokens)}'
            )
        if isinstance(self.cfg.cache, BlockCache):
            if context.landmarks is not None:
                raise ValueError(
                    'context.landmarks: a LandmarkCache has a landmark every `block` tokens, and only there'
                )
            return super()._read(q, k, v, context, state)

        rows = locate(context, (batch, tokens), None if state is None else state.cursor)
        whole = jnp.arange(tokens, dtype=jnp.int32)[None]
        index = whole if rows.index is None else rows.index
        if state is not None:
            index += jnp.where(rows.carried, state.length[:, None], 0)
        landmarks = (index + 1) % self.cfg.block == 0 if context.landmarks is None else context.landmarks
        positions = whole if rows.positions is None else rows.positions
        marked = rows.replace(positions=2 * positions + landmarks)
        state, view = PlainCache().extend(state, q, k, v, marked, lambda x, _: self._rotate(x, positions))
        if view.positions is not None:
            landmarks = view.positions[1] % 2 == 1
        # Where each query's own key stands: a step reads the cache alone, a longer call the cache and its own keys.
        own = index if state is not None and tokens == 1 else view.k.shape[1] - tokens + whole
        z = self._attend_all(view, landmarks, own)
        return z if view.overflow is None else jnp.where(view.overflow[:, :, None, None], jnp.nan, z), state

    def _attend_all(
        self, view: View, landmarks: Bool[Array, 'B S'], own: Int32[Array, 'B T']
    ) -> Float[Array, 'B T H V']:
        """Attention that reads every block."""
        cfg, q, k = self.cfg, view.q, view.k
        if not wants_patterns(self):
            options = dict(segments=view.segments, own=own, tile=cfg.block, implementation=cfg.implementation)
            return landmark_attention(q, k, view.v, landmarks, **options)
        mask = landmark_mask(view.segments, own, k.shape[1])
        scores = tap(self, 'scores', attention_scores(q, k, mask), PATTERNS)
        pattern = tap(self, 'pattern', landmark_pattern(scores, mask, landmarks, view.segments, own), PATTERNS, mask)
        return attend(pattern, view.v)

    def _attend(self, view: BlockView) -> Float[Array, 'B T H V']:
        return attend_blocks(self, view, grouped_pattern)
