"""Titans' three ways to join a memory with attention (Behrouz et al. 2025), as mixers that any trunk can hold.

    MAC  h_i = M(x_i W_Q; W at the segment's start)      y = Attention([p | h_j, j <= i | x_j, j <= i]) in the segment
         the memory learns y                              z = N_1(y) * gate(N_2(M(y_i; W_i)))
    MAG  y = WindowedAttention([p | x])                   z = N_1(y) * gate(N_2(M([p | x])))
    MAL  m = W_m M([p | x])                               z = WindowedAttention(m), m of p among its keys

p are N_p persistent tokens. The memory reads them before every document, from W_0, as a chunk of their own; in
attention they are keys that every token sees. They stand in no sequence and have no position. N_1, N_2 are RMS norms
over the width; the paper names neither norm nor gate.

MAC as printed leaks the future twice: its mask shows all of h to every token although h_j is made of x_j, and it reads
with a memory that has learned the whole segment. Here h is masked as x is, and token i reads the memory as it is after
token i. In MAC the memory learns y alone, not p and h; segments are counted from the document's start.

State: the memory's, a ring of keys (MAG, MAL), or the segment's keys so far and the weights at its start (MAC).
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, Cursor, MixerConfig, divide, locate
from jattn.flops import traced_flops
from jattn.memories import MEMORIES, MemoryConfig, MemoryState
from jattn.memories.tiles import lay, misplaced, pick
from jattn.memories.tokens import place
from jattn.nn.cache import KeyValues, RingCache
from jattn.nn.linear import Linear
from jattn.nn.norm import RMSNorm
from jattn.nn.rotary import rotate
from jattn.nn.windowed_attention import WindowedAttention, attend_beside
from jattn.taps import EDITS, tap
from jattn.typing import Array, Bool, Float, Int32, PyTree, at_least_float32

GATES = {'sigmoid': jax.nn.sigmoid, 'silu': jax.nn.silu}
DEFAULT = dataclasses.replace(MEMORIES['titans_lmm'], persistent=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TitansConfig(MixerConfig):
    """What the three have in common.

    Attributes:
        memory: the memory; its heads are the attention's too.
        persistent: N_p.
        gate: 'sigmoid' or 'silu', of what the memory reads (MAC, MAG).
        rotary_base: of the attention; None: no positions.
    """

    memory: MemoryConfig = DEFAULT
    persistent: int = 4
    gate: str = 'sigmoid'
    rotary_base: float | None = 10_000.0

    def __post_init__(self) -> None:
        if self.persistent < 0:
            raise ValueError(f'persistent={self.persistent} must not be negative')
        if self.memory.persistent:
            raise ValueError(
                f'memory.persistent={self.memory.persistent}: the mixer gives its own tokens to the memory'
            )
        if self.memory.shares_first_value:
            raise ValueError("memory: one that shares the first layer's values stands alone in its layer")
        if self.gate not in GATES:
            raise ValueError(f'gate={self.gate!r} must be one of {", ".join(GATES)}')
        if self.width is not None:
            memory = self.inner
            if memory.head_values != self.channels:
                raise ValueError(
                    f'memory has {memory.head_values} value channels a head, but the attention has {self.channels}'
                )
            if self.rotary_base is not None and self.channels % 2:
                raise ValueError(f'head_dim={self.channels} must be even for rotary positions (rotary_base=None: none)')

    @property
    def heads(self) -> int:
        """H."""
        return self.memory.heads

    @property
    def channels(self) -> int:
        """K = V of the attention's heads."""
        return divide('width', self.require_width(), 'memory.heads', self.heads)

    @property
    def inner(self) -> MemoryConfig:
        """The memory at this width, with the persistent tokens."""
        return dataclasses.replace(self.memory, width=self.require_width(), persistent=self.persistent)

    def flops(self, tokens: int) -> int:
        return traced_flops(self, tokens)

    def _tiny(self, **changes: object) -> Self:
        return dataclasses.replace(
            self, width=32, memory=self.memory.tiny(), persistent=min(self.persistent, 2), **changes
        )


@struct.dataclass
class BranchState:
    """The state of MAG and MAL.

    Attributes:
        cursor: where the rows stand.
        memory: of the memory.
        keys: the ring of the attention.
    """

    cursor: Cursor
    memory: MemoryState
    keys: KeyValues


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowedTitansConfig(TitansConfig):
    """MAG and MAL.

    Attributes:
        arrangement: 'gate' (MAG: both branches read x) or 'layer' (MAL: attention reads the memory's output).
        window: of the attention.

    >>> cfg = WindowedTitansConfig(width=64, window=8)
    >>> cfg.init_state(1, 1000).keys.k.shape
    (1, 8, 4, 16)
    """

    arrangement: str = 'gate'
    window: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arrangement not in ('gate', 'layer'):
            raise ValueError(f"arrangement={self.arrangement!r} must be 'gate' or 'layer'")
        if self.window < 1:
            raise ValueError(f'window={self.window} must be at least 1')

    @property
    def document_align(self) -> int:
        return self.memory.document_align

    @property
    def sites(self) -> tuple[str, ...]:
        return self.memory.sites if self.width is None else self.inner.sites

    def make(self, **flax_kwargs: object) -> nn.Module:
        return WindowedTitans(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> BranchState:
        return BranchState(
            cursor=Cursor.fresh(batch),
            memory=self.inner.init_state(batch, capacity, dtype),
            keys=RingCache(self.window).init(batch, capacity, self.heads, self.channels, self.channels, dtype),
        )

    def tiny(self) -> Self:
        return self._tiny(window=4)


class WindowedTitans(nn.Module):
    """The module of `WindowedTitansConfig`."""

    cfg: WindowedTitansConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: BranchState | None = None
    ) -> tuple[Float[Array, 'B T D'], BranchState | None]:
        cfg = self.cfg
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        before = (None, None) if state is None else (state.memory, state.keys)
        persistent = _persistent(self, cfg)
        memory = cfg.inner.make(name='memory')
        attention = WindowedAttention(cfg.heads, cfg.channels, cfg.window, cfg.rotary_base, name='attention')
        m, of_memory, m_p = memory.reads(x, context, before[0], persistent)
        if cfg.arrangement == 'gate':
            y, keys = attention(x, rows, persistent, before[1])
            z = Joined(cfg, name='join')(y, m)
        else:
            out = Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='memory_proj')
            z, keys = attention(out(m), rows, None if m_p is None else out(m_p), before[1])
        z = tap(self, 'z', z)
        y = Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='o_proj')(z)
        return y, None if state is None else BranchState(rows.cursor, of_memory, keys)


class Joined(nn.Module):
    """N_1(y) * gate(N_2(m)), both [B, T, H, K], norms over the width."""

    cfg: TitansConfig

    @nn.compact
    def __call__(self, y: Float[Array, 'B T H K'], m: Float[Array, 'B T H K']) -> Float[Array, 'B T H K']:
        flat = (*y.shape[:2], -1)
        y_norm, m_norm = RMSNorm(axis='mlp', name='y_norm'), RMSNorm(axis='mlp', name='m_norm')
        return (y_norm(y.reshape(flat)) * GATES[self.cfg.gate](m_norm(m.reshape(flat)))).reshape(y.shape)


@struct.dataclass
class SegmentState:
    """The state of MAC.

    Attributes:
        cursor: where the rows stand.
        place: [B], tokens of the segment so far.
        memory: of the memory.
        start: the memory's weights at the segment's start.
        keys, values: [B, 2, S, H, K], of the segment's h and x so far.
    """

    cursor: Cursor
    place: Int32[Array, 'B']
    memory: MemoryState
    start: PyTree
    keys: Float[Array, 'B 2 S H K']
    values: Float[Array, 'B 2 S H K']


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextTitansConfig(TitansConfig):
    """MAC.

    Attributes:
        segment: tokens of a segment, a multiple of the memory's chunk.

    >>> cfg = ContextTitansConfig(width=64, segment=32)
    >>> cfg.init_state(1, 1000).keys.shape
    (1, 2, 32, 4, 16)
    """

    segment: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        divide('segment', self.segment, 'memory.chunk', self.memory.chunk)
        if self.segment < 1:
            raise ValueError(f'segment={self.segment} must be at least 1')

    @property
    def document_align(self) -> int:
        return self.segment

    @property
    def sites(self) -> tuple[str, ...]:
        return ('z',)

    @property
    def inner(self) -> MemoryConfig:
        # The memory learns the segments alone.
        return dataclasses.replace(self.memory, width=self.require_width())

    def make(self, **flax_kwargs: object) -> nn.Module:
        return ContextTitans(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> SegmentState:
        memory, heads = self.inner, self.heads
        shapes = memory.architecture.shapes(memory.keys, memory.values)
        keys = jnp.zeros((batch, 2, self.segment, heads, self.channels), dtype)
        return SegmentState(
            cursor=Cursor.fresh(batch),
            place=jnp.zeros(batch, jnp.int32),
            memory=memory.init_state(batch, capacity, dtype),
            start=tuple(jnp.zeros((batch, heads, *shape), jnp.float32) for shape in shapes),
            keys=keys,
            values=keys,
        )

    def tiny(self) -> Self:
        return self._tiny(segment=8)


class ContextTitans(nn.Module):
    """The module of `ContextTitansConfig`: a scan over segments, which attention and memory alternate in."""

    cfg: ContextTitansConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: SegmentState | None = None
    ) -> tuple[Float[Array, 'B T D'], SegmentState | None]:
        cfg, (batch, tokens) = self.cfg, x.shape[:2]
        before = cfg.init_state(batch, tokens, x.dtype) if state is None else state
        rows = locate(context, (batch, tokens), before.cursor)
        places = place(rows, (batch, tokens), cfg.segment, before.place)
        size = 1 if tokens == 1 else cfg.segment
        first = jnp.argmax(places.real, axis=1)
        start = jnp.take_along_axis(places.place, first[:, None], axis=1)[:, 0]
        shift = (start - first) % size
        count = 1 if size == 1 else -(-(tokens + size - 1) // size)
        slots = Slots(x, rows.segments, rows.positions, places.real, places.place)
        slots = jax.tree.map(lambda leaf: lay(leaf, shift, count, size), slots)

        segments = nn.scan(
            nn.remat(Segment, prevent_cse=False),
            variable_broadcast=('params', EDITS),
            split_rngs={'params': False},
            length=count,
        )
        after, z = segments(cfg, name='segment')(before, slots)
        z = pick(z, shift, tokens)
        z = jnp.where(misplaced(places, cfg.segment)[..., None, None], jnp.nan, z)
        z = tap(self, 'z', z)
        y = Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='o_proj')(z)
        return y, None if state is None else after.replace(cursor=rows.cursor, place=places.after)


@struct.dataclass
class Slots:
    """The tokens of a segment, [B, S, ...]; what is not real has segment 0."""

    x: Float[Array, 'B S D']
    segments: Int32[Array, 'B S']
    positions: Int32[Array, 'B S']
    real: Bool[Array, 'B S']
    place: Int32[Array, 'B S']


class Segment(nn.Module):
    """One segment, or a part of it, of every row: `state, z = segment(state, slots)`."""

    cfg: ContextTitansConfig

    @nn.compact
    def __call__(self, state: SegmentState, slots: Slots) -> tuple[SegmentState, Float[Array, 'B S H K']]:
        cfg, x = self.cfg, slots.x
        memory = cfg.inner.make(name='memory')
        opens = jnp.any(slots.real & (slots.segments != state.memory.cursor.segment[:, None]), axis=1)
        fresh = memory.weights(len(x))
        start = jax.tree.map(lambda new, old: jnp.where(_wide(opens, old), new, old), fresh, state.start)
        cached = jnp.where(opens, 0, state.place)

        h = self._retrieve(memory, start, x)
        y, keys, values = self._attend(x, h, slots, cached, state)
        m, of_memory, _ = memory.reads(
            Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='y_proj')(y),
            Context(segments=slots.segments),
            state.memory,
        )
        done = jnp.any(slots.real & (slots.place == cfg.segment - 1), axis=1)
        current = memory.weights(len(x), of_memory)
        start = jax.tree.map(lambda new, old: jnp.where(_wide(done, old), new, old), current, start)
        count = jnp.sum(slots.real, axis=1)
        after = state.replace(
            place=jnp.where(done, 0, jnp.where(count > 0, cached + count, state.place)).astype(jnp.int32),
            memory=of_memory,
            start=start,
            keys=keys,
            values=values,
        )
        z = Joined(cfg, name='join')(y, m)
        return after, jnp.where(slots.real[..., None, None], z, 0)

    def _retrieve(self, memory: nn.Module, weights: PyTree, x: Array) -> Float[Array, 'B S D']:
        """h: what the memory at the segment's start says to each token."""
        inner = self.cfg.inner
        q = Linear((inner.heads, inner.keys), ('embed', 'heads', 'head'), name='retrieve_proj')(x)
        q = q.astype(at_least_float32(q))
        q = q * jax.lax.rsqrt(jnp.sum(jnp.square(q), axis=-1, keepdims=True) + 1e-6)
        read = memory.retrieve(weights, q).astype(x.dtype)
        return Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='h_proj')(read)

    def _attend(
        self, x: Array, h: Array, slots: Slots, cached: Int32[Array, 'B'], state: SegmentState
    ) -> tuple[Float[Array, 'B S H K'], Array, Array]:
        """Every token over p and the h and x of its segment up to itself; the segment's keys and values after it."""
        cfg, split, axes = self.cfg, (self.cfg.heads, self.cfg.channels), ('embed', 'heads', 'head')
        q_proj, k_proj, v_proj = (Linear(split, axes, name=f'{name}_proj') for name in 'qkv')
        own = jnp.stack([h, x], axis=1)
        k, v = k_proj(own), v_proj(own)
        plain = q_proj(x)
        q = self._rotate(plain, slots.positions)
        k = jnp.stack([self._rotate(k[:, n], slots.positions) for n in (0, 1)], axis=1)
        row, slot = jnp.arange(len(x))[:, None], jnp.where(slots.real, slots.place, cfg.segment)
        keys, values = (
            old.at[row, :, slot].set(jnp.moveaxis(new, 1, 2).astype(old.dtype), mode='drop')
            for old, new in ((state.keys, k), (state.values, v))
        )
        at = jnp.arange(cfg.segment)
        filled = (at[None] < cached[:, None]) | jnp.any(slot[:, :, None] == at[None, None], axis=1)
        mask = filled[:, None, :] & (at[None, None] <= slots.place[..., None]) & slots.real[..., None]
        mask = jnp.concatenate([mask, mask], axis=2)
        k_all, v_all = (old.reshape(len(x), -1, *old.shape[3:]).astype(x.dtype) for old in (keys, values))
        persistent, always = _persistent(self, cfg), None
        if persistent is not None:
            fixed = persistent.astype(x.dtype)
            always = tuple(jnp.broadcast_to(f(fixed)[None], (len(x), *f(fixed).shape)) for f in (k_proj, v_proj))
        y = attend_beside(q, plain, k_all, v_all, mask, slots.real, always)
        return y, keys, values

    def _rotate(self, x: Array, positions: Array) -> Array:
        return x if self.cfg.rotary_base is None else rotate(x, positions, self.cfg.rotary_base)


def _persistent(module: nn.Module, cfg: TitansConfig) -> Float[Array, 'N D'] | None:
    """The persistent tokens."""
    if not cfg.persistent:
        return None
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('position', 'channel'))
    return module.param('persistent', init, (cfg.persistent, cfg.require_width()), jnp.float32)


def _wide(mask: Array, like: Array) -> Array:
    """[B] with the rank of `like`."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))
