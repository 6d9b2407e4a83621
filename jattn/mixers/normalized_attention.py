"""Normalised attention (Sieber et al. 2024): linear attention without features, over a normaliser of the token alone.

    S_t = S_{t-1} + k_t v_t^T      y_t = S_t^T q_t / eta_t      eta_t = exp(w x_t + b)      q, k, v affine in x

As a dynamical system its state is h_t = S_t / eta_t, with the scalar transition eta_{t-1} / eta_t: the normaliser is a
decay that is learned, and that, unlike those of state spaces, may exceed 1. This file sums first and divides last,
which is the same and cannot overflow in between. Scores q.k have a sign, so a token's weights need not sum to 1.

As in the authors' code q.k is not scaled, and the maps start as normals of deviation .02 whatever the width: with
that of the other mixers, 1 / sqrt(D), a sum over 512 tokens starts in the hundreds. They take one head; their output
projection has a bias, ours has none, so that z = 0 is y = 0. State: S [B, H, K, V]. Taps: q, k, v, gates (eta,
[B, T, H]), z, state.
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, Cursor, MixerConfig, divide, locate
from jattn.flops import traced_flops
from jattn.nn.linear import Linear
from jattn.ops import gated_linear_attention
from jattn.taps import captures, tap
from jattn.typing import Array, Float, at_least_float32

INIT = nn.initializers.normal(0.02)
NORMALISERS = {'exp': jnp.exp, 'softplus': jax.nn.softplus, 'sigmoid': jax.nn.sigmoid}


@struct.dataclass
class MatrixState:
    """The state of normalised attention.

    Attributes:
        cursor: where the rows stand.
        memory: S [B, H, K, V] float32.
    """

    cursor: Cursor
    memory: Float[Array, 'B H K V']


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalizedAttentionConfig(MixerConfig):
    """Normalised attention.

    Attributes:
        heads: H.
        key_dim: K, the state expansion; None: width / heads.
        normaliser: eta as a function of w x + b: 'exp', 'softplus' or 'sigmoid'.
        use_bias: of the maps to q, k, v and eta.
        chunk: tokens of a chunk of `ops.gated_linear_attention`.
        implementation: of that op; None: the fastest that serves.

    >>> cfg = NormalizedAttentionConfig(width=16, heads=2, key_dim=32)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 16))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, cfg.init_state(batch=1, capacity=1000).memory.shape
    ((1, 5, 16), (1, 2, 32, 8))
    """

    sites: ClassVar[tuple[str, ...]] = ('q', 'k', 'v', 'gates', 'z', 'state')

    heads: int = 4
    key_dim: int | None = None
    normaliser: str = 'exp'
    use_bias: bool = True
    chunk: int = 64
    implementation: str | None = None

    def __post_init__(self) -> None:
        if self.normaliser not in NORMALISERS:
            raise ValueError(f'normaliser={self.normaliser!r} must be one of {", ".join(NORMALISERS)}')

    @property
    def values(self) -> int:
        """V, the value channels of a head."""
        return divide('width', self.require_width(), 'heads', self.heads)

    @property
    def keys(self) -> int:
        """K, the key channels of a head."""
        return self.key_dim or self.values

    def make(self, **flax_kwargs: object) -> nn.Module:
        return NormalizedAttention(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> MatrixState:
        del capacity, dtype  # constant in the length, float32
        return MatrixState(Cursor.fresh(batch), jnp.zeros((batch, self.heads, self.keys, self.values), jnp.float32))

    def flops(self, tokens: int) -> int:
        return traced_flops(self, tokens)

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, key_dim=None if self.key_dim is None else 16, chunk=4)


class NormalizedAttention(nn.Module):
    """The module of `NormalizedAttentionConfig`."""

    cfg: NormalizedAttentionConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: MatrixState | None = None
    ) -> tuple[Float[Array, 'B T D'], MatrixState | None]:
        cfg = self.cfg
        q, k, v = (self._project(name, size, x) for name, size in (('q', cfg.keys), ('k', cfg.keys), ('v', cfg.values)))
        eta = Linear((cfg.heads,), ('embed', 'heads'), cfg.use_bias, INIT, name='eta_proj')(x)
        eta = tap(self, 'gates', NORMALISERS[cfg.normaliser](eta.astype(at_least_float32(eta))))

        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        y, memory = gated_linear_attention(
            q,
            k,
            v,
            None,
            initial_state=None if state is None else rows.enter(state.memory, jnp.zeros((), jnp.float32)),
            return_state=True,
            scale=1.0,
            segments=rows.segments,
            chunk=cfg.chunk,
            implementation=cfg.implementation,
        )
        if state is not None or captures(self):
            memory = tap(self, 'state', memory)
        z = tap(self, 'z', (y.astype(eta.dtype) / eta[..., None]).astype(x.dtype))
        y = Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='o_proj')(z)
        return y, None if state is None else MatrixState(rows.cursor, memory)

    def _project(self, name: str, channels: int, x: Float[Array, 'B T D']) -> Float[Array, 'B T H K']:
        features, axes = (self.cfg.heads, channels), ('embed', 'heads', 'head')
        return tap(self, name, Linear(features, axes, self.cfg.use_bias, INIT, name=f'{name}_proj')(x))
