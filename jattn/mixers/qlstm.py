"""The quasi-LSTM (qLSTM) in the block that the dynamical-systems comparison gives it (Sieber et al. 2024).

    u = conv(W_x x)      [f_t, i_t, o_t] = W u_t + b
    h_t = a_t h_{t-1} + sigmoid(i_t) u_t      a_t = sigmoid(f_t)      y = W_o (gelu(W_g x) sigmoid(o) h)

An LSTM whose gates do not see the last output, so that its cell is a diagonal linear recurrence. With
`forget='reversed'` it forgets as S6 does, the paper's proposal:

    a_t = sigmoid(-f_t)^relu(alpha) = exp(-relu(alpha) softplus(f_t))

alpha one learned number, at first 1; once it falls to 0 nothing is forgotten any more and it has no gradient. As in the
authors' code the convolution's output is both what is written and what the gates are made of, without an activation;
their gelu is the exact one, ours the tanh form. State: the vector h [B, E] (E = expansion * width) and the
convolution's tail. Taps: gates (a, sigmoid(i), sigmoid(o), [B, T, 3, E]), v (u, [B, T, 1, E]), z [B, T, 1, E], state.
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, MixerConfig, locate
from jattn.nn.linear import Linear
from jattn.nn.short_convolution import ShortConvolution
from jattn.nn.vector_state import VectorState, scan
from jattn.taps import tap
from jattn.typing import Array, Float, at_least_float32

FORGET = ('sigmoid', 'reversed')


@dataclasses.dataclass(frozen=True, kw_only=True)
class QLSTMConfig(MixerConfig):
    """The quasi-LSTM.

    Attributes:
        expansion: E as a multiple of the width.
        taps: W, of the short convolution.
        forget: 'sigmoid' (qLSTM) or 'reversed' (with the state transition of S6).
        implementation: of `ops.linear_scan`; None: the fastest that serves.

    >>> cfg = QLSTMConfig(width=16)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 16))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, cfg.init_state(batch=1, capacity=1000).hidden.shape
    ((1, 5, 16), (1, 32))
    """

    sites: ClassVar[tuple[str, ...]] = ('v', 'gates', 'z', 'state')
    heads: ClassVar[int] = 1

    expansion: float = 2.0
    taps: int = 4
    forget: str = 'sigmoid'
    implementation: str | None = None

    def __post_init__(self) -> None:
        if self.forget not in FORGET:
            raise ValueError(f'forget={self.forget!r} must be one of {", ".join(FORGET)}')
        if self.taps < 1:
            raise ValueError(f'taps={self.taps} must be at least 1')

    @property
    def channels(self) -> int:
        """E."""
        return round(self.expansion * self.require_width())

    def make(self, **flax_kwargs: object) -> nn.Module:
        return QLSTM(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> VectorState:
        del capacity  # constant in the length
        return VectorState.fresh(batch, self.channels, self.taps, dtype)

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.channels * 3 * (self.require_width() + self.channels)

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32)


class QLSTM(nn.Module):
    """The module of `QLSTMConfig`."""

    cfg: QLSTMConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: VectorState | None = None
    ) -> tuple[Float[Array, 'B T D'], VectorState | None]:
        cfg = self.cfg
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        u = Linear((cfg.channels,), ('embed', 'mlp'), name='x_proj')(x)
        u, tail = ShortConvolution(cfg.taps, name='conv')(u, rows, None if state is None else state.tail)
        u = tap(self, 'v', u[:, :, None])[:, :, 0]
        kept, written, read = jnp.moveaxis(self._gates(u), 2, 0)
        h, hidden = scan(self, kept, written * u.astype(written.dtype), rows, state, cfg.implementation)
        gate = jax.nn.gelu(Linear((cfg.channels,), ('embed', 'mlp'), name='gate_proj')(x))
        z = tap(self, 'z', (gate * (read * h).astype(x.dtype))[:, :, None])
        y = Linear(x.shape[-1:], ('mlp', 'embed'), name='o_proj')(z[:, :, 0])
        return y, None if state is None else VectorState(rows.cursor, hidden, tail)

    def _gates(self, u: Float[Array, 'B T E']) -> Float[Array, 'B T 3 E']:
        """What is kept of the state, written to it and read from it; float32 at least."""
        gates = Linear((3, self.cfg.channels), ('hidden', 'gate', 'mlp'), use_bias=True, name='gates_proj')(u)
        gates = gates.astype(at_least_float32(gates))
        if self.cfg.forget == 'sigmoid':
            return tap(self, 'gates', jax.nn.sigmoid(gates))
        alpha = self.param('alpha', nn.with_logical_partitioning(nn.initializers.ones, ()), (), jnp.float32)
        kept = jnp.exp(-jax.nn.relu(alpha).astype(gates.dtype) * jax.nn.softplus(gates[:, :, :1]))
        return tap(self, 'gates', jnp.concatenate([kept, jax.nn.sigmoid(gates[:, :, 1:])], axis=2))
