"""Cross-attention: queries from the trunk, keys and values from a source, for the decoder of an encoder-decoder.

    y_t = W_o concat_h sum_s softmax_s(q_th . k_sh / sqrt(K)) v_sh     s: the source tokens of t's document

State: the source's keys and values, computed at the first call (which has `context.source`) and read by the later ones.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, Cursor, divide, locate
from jattn.nn.linear import Linear
from jattn.ops import attention
from jattn.taps import tap
from jattn.typing import Array, Float, Int32


@struct.dataclass
class SourceState:
    """The source of each row.

    Attributes:
        cursor: where the rows stand.
        k, v: [B, S, H, K].
        segments: [B, S], the document of each source token; 0: none.
    """

    cursor: Cursor
    k: Float[Array, 'B S H K']
    v: Float[Array, 'B S H K']
    segments: Int32[Array, 'B S']


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig:
    """Cross-attention.

    Attributes:
        heads: H; they divide the width.
        capacity: tokens of a source that a state holds.
        use_bias: biases on every projection.
    """

    heads: int = 4
    capacity: int = 256
    use_bias: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1 or self.capacity < 1:
            raise ValueError(f'cross: heads={self.heads} and capacity={self.capacity} must be at least 1')

    def make(self, **flax_kwargs: object) -> nn.Module:
        """The linen module."""
        return CrossAttention(self, **flax_kwargs)

    def init_state(self, batch: int, width: int, dtype: jnp.dtype) -> SourceState:
        """A state without a source."""
        shape = (batch, self.capacity, self.heads, divide('width', width, 'cross.heads', self.heads))
        keys = jnp.zeros(shape, dtype)
        return SourceState(Cursor.fresh(batch), keys, keys, jnp.zeros(shape[:2], jnp.int32))

    def flops(self, width: int, tokens: int, source: int) -> int:
        """Operations of the matrix products of one row's forward pass."""
        return 4 * width * width * (tokens + source) + 4 * tokens * source * width


class CrossAttention(nn.Module):
    """The module of `CrossAttentionConfig`: `y, state = cross(x, context, state)`."""

    cfg: CrossAttentionConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context, state: SourceState | None = None
    ) -> tuple[Float[Array, 'B T D'], SourceState | None]:
        cfg = self.cfg
        if context.source is None and state is None:
            raise ValueError('cross-attention needs context.source: there is no state that could hold an earlier one')
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        split = (cfg.heads, divide('width', x.shape[-1], 'cross.heads', cfg.heads))
        q = tap(self, 'cross_q', Linear(split, ('embed', 'heads', 'head'), cfg.use_bias, name='q_proj')(x))
        if context.source is not None or self.is_initializing():
            own = self._source(context, split)
            state = own if state is None else self._stored(state, own)
        k, v = state.k.astype(q.dtype), state.v.astype(q.dtype)
        own_ids = jnp.ones(x.shape[:2], jnp.int32) if rows.segments is None else rows.segments
        z = attention(q, k, v, causal=False, segments=(own_ids, state.segments))
        z = tap(self, 'cross_z', z)
        y = Linear(x.shape[-1:], ('heads', 'head', 'embed'), cfg.use_bias, name='o_proj')(z)
        return y, None if rows.cursor is None else state.replace(cursor=rows.cursor)

    def _source(self, context: Context, split: tuple[int, int]) -> SourceState:
        """Keys and values of the call's source."""
        source, segments = context.source, context.source_segments
        if segments is None:
            segments = jnp.ones(source.shape[:2], jnp.int32)
        axes, bias = ('embed', 'heads', 'head'), self.cfg.use_bias
        k, v = (Linear(split, axes, bias, name=f'{name}_proj')(source) for name in 'kv')
        return SourceState(Cursor.fresh(len(source)), k, v, segments)

    def _stored(self, state: SourceState, own: SourceState) -> SourceState:
        """The state with a new source in its slots."""
        tokens, slots = own.k.shape[1], state.k.shape[1]
        if tokens > slots:
            raise ValueError(f'a source of {tokens} tokens does not fit in cross.capacity={slots}')

        def fill(old: Array, new: Array) -> Array:
            return jnp.pad(new.astype(old.dtype), ((0, 0), (0, slots - tokens), *[(0, 0)] * (new.ndim - 2)))

        return state.replace(
            k=fill(state.k, own.k), v=fill(state.v, own.v), segments=fill(state.segments, own.segments)
        )
