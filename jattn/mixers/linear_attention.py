"""Linear attention (Katharopoulos et al. 2020): softmax's exponential replaced by a product of positive features.

    S_t = S_{t-1} + phi(k_t) v_t^T      z_t = z_{t-1} + phi(k_t)      y_t = S_t^T phi(q_t) / (z_t . phi(q_t) + epsilon)

phi(x) = elu(x) + 1. The normaliser z is one more value channel that is always 1, so one op computes both. State: the
matrix [S | z] [B, H, K, V+1], constant in the length. Taps: q, k, v, z (the normalised output), state.
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, Cursor, MixerConfig, divide, locate
from jattn.nn.linear import Linear
from jattn.ops import gated_linear_attention
from jattn.taps import captures, tap
from jattn.typing import Array, Float, at_least_float32


@struct.dataclass
class MatrixState:
    """The state of a linear recurrence with a matrix per head.

    Attributes:
        cursor: where the rows stand.
        memory: [B, H, K, V] float32.
    """

    cursor: Cursor
    memory: Float[Array, 'B H K V']


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig(MixerConfig):
    """Linear attention.

    Attributes:
        heads: H.
        head_dim: K = V; None: width / heads.
        epsilon: added to the normaliser.
        chunk: tokens of a chunk of the parallel form; no effect on the result.
        implementation: of `ops.gated_linear_attention`; None: the fastest that serves.

    >>> cfg = LinearAttentionConfig(width=16, heads=2)
    >>> cfg.init_state(batch=3, capacity=1000).memory.shape
    (3, 2, 8, 9)
    """

    sites: ClassVar[tuple[str, ...]] = ('q', 'k', 'v', 'z', 'state')

    heads: int = 4
    head_dim: int | None = None
    epsilon: float = 1e-6
    chunk: int = 64
    implementation: str | None = None

    @property
    def channels(self) -> int:
        """K = V, the channels of a head."""
        return self.head_dim or divide('width', self.require_width(), 'heads', self.heads)

    def make(self, **flax_kwargs: object) -> nn.Module:
        return LinearAttention(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> MatrixState:
        del capacity, dtype  # constant in the length, and never below float32
        memory = jnp.zeros((batch, self.heads, self.channels, self.channels + 1), jnp.float32)
        return MatrixState(Cursor.fresh(batch), memory)

    def flops(self, tokens: int) -> int:
        chunk, keys, values = min(self.chunk, tokens), self.channels, self.channels + 1
        padded = -(-tokens // chunk) * chunk
        within, across = chunk * (keys + values), 2 * keys * values
        return tokens * 2 * 4 * self.require_width() * self.heads * keys + padded * 2 * self.heads * (within + across)

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, head_dim=None if self.head_dim is None else 8, chunk=8)


class LinearAttention(nn.Module):
    """The module of `LinearAttentionConfig`."""

    cfg: LinearAttentionConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: MatrixState | None = None
    ) -> tuple[Float[Array, 'B T D'], MatrixState | None]:
        cfg = self.cfg
        split = (cfg.heads, cfg.channels)
        q, k, v = (tap(self, name, Linear(split, ('embed', 'heads', 'head'), name=f'{name}_proj')(x)) for name in 'qkv')
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        memory = None if state is None else rows.enter(state.memory, jnp.zeros((), jnp.float32))
        read = gated_linear_attention(
            _features(q),
            _features(k),
            jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1).astype(at_least_float32(v)),
            None,
            initial_state=memory,
            return_state=state is not None or captures(self),
            scale=1.0,
            segments=rows.segments,
            chunk=cfg.chunk,
            implementation=cfg.implementation,
        )
        if state is not None or captures(self):
            read, memory = read
            memory = tap(self, 'state', memory)
        z = tap(self, 'z', (read[..., :-1] / (read[..., -1:] + cfg.epsilon)).astype(x.dtype))
        y = Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='o_proj')(z)
        return y, None if state is None else MatrixState(rows.cursor, memory)


def _features(x: Array) -> Array:
    """phi: positive, so that the normaliser is too."""
    return jax.nn.elu(x.astype(at_least_float32(x))) + 1
