"""The recurrent block of Griffin (De et al. 2024): a short convolution and a gated diagonal recurrence, the RG-LRU.

    u = conv(W_x x)      r_t = sigmoid(A u_t + b_a)      i_t = sigmoid(I u_t + b_i)
    log a_t = -c softplus(Lambda) r_t                    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t)
    y = W_o (gelu(W_g x) h)

A and I are block-diagonal with one block a head (as in the authors' released model). Lambda starts so that a_t at
r = 1 is uniform in [0.9, 0.999]. The authors' code scales the first token of a document by 1 in place of
sqrt(1 - a^2); this file keeps the paper's equation everywhere. State: the vector h [B, R] (R the recurrent width) and
the convolution's tail. Taps: gates (r and i, [B, T, 2, R]), z (gelu(...) h by head [B, T, H, R/H]), state [B, R].
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, MixerConfig, divide, locate
from jattn.nn.linear import Linear
from jattn.nn.short_convolution import ShortConvolution
from jattn.nn.vector_state import VectorState, scan
from jattn.taps import tap
from jattn.typing import Array, Float, Key, at_least_float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class RGLRUConfig(MixerConfig):
    """The recurrent block of Griffin.

    Attributes:
        recurrent_width: R; None: the width (the paper takes about 4/3 of it).
        heads: blocks of the gates' matrices.
        taps: W, of the short convolution.
        sharpness: c, the reach of the recurrence gate: a_t lies between exp(-c softplus(Lambda)) and 1.
        implementation: of `ops.linear_scan`; None: the fastest that serves.

    >>> state = RGLRUConfig(width=16).init_state(batch=2, capacity=1000)
    >>> state.hidden.shape, state.tail.shape
    ((2, 16), (2, 3, 16))
    """

    sites: ClassVar[tuple[str, ...]] = ('gates', 'z', 'state')

    recurrent_width: int | None = None
    heads: int = 4
    taps: int = 4
    sharpness: float = 8.0
    implementation: str | None = None

    @property
    def channels(self) -> int:
        """Channels of a head, R / H."""
        width = self.recurrent_width or self.require_width()
        return divide('recurrent_width' if self.recurrent_width else 'width', width, 'heads', self.heads)

    def make(self, **flax_kwargs: object) -> nn.Module:
        return RGLRU(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> VectorState:
        del capacity  # constant in the length
        return VectorState.fresh(batch, self.heads * self.channels, self.taps, dtype)

    def flops(self, tokens: int) -> int:
        width = self.heads * self.channels
        return 2 * tokens * width * (3 * self.require_width() + 2 * self.channels)

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, recurrent_width=None if self.recurrent_width is None else 48)


class RGLRU(nn.Module):
    """The module of `RGLRUConfig`."""

    cfg: RGLRUConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: VectorState | None = None
    ) -> tuple[Float[Array, 'B T D'], VectorState | None]:
        cfg = self.cfg
        width, by_head = cfg.heads * cfg.channels, (*x.shape[:2], cfg.heads, cfg.channels)
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        u = Linear((width,), ('embed', 'mlp'), name='x_proj')(x)
        u, tail = ShortConvolution(cfg.taps, name='conv')(u, rows, None if state is None else state.tail)

        gates = BlockDiagonal(2, name='gate_blocks')(u.reshape(by_head)).reshape(*u.shape[:2], 2, width)
        gates = tap(self, 'gates', jax.nn.sigmoid(gates.astype(at_least_float32(gates))))
        decay = self.param('decay', nn.with_logical_partitioning(self._init_decay, ('mlp',)), (width,), jnp.float32)
        log_a = -cfg.sharpness * jax.nn.softplus(decay).reshape(1, 1, -1) * gates[:, :, 0]
        # 1 - a^2 without cancellation; the floor keeps the gradient of the root finite where a rounds to 1.
        scale = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), 1e-12))
        added = scale * gates[:, :, 1] * u.astype(scale.dtype)
        h, hidden = scan(self, jnp.exp(log_a), added, rows, state, cfg.implementation)
        gate = jax.nn.gelu(Linear((width,), ('embed', 'mlp'), name='gate_proj')(x))
        z = tap(self, 'z', (gate * h.astype(x.dtype)).reshape(by_head))
        y = Linear(x.shape[-1:], ('mlp', 'embed'), name='o_proj')(z.reshape(*x.shape[:2], width))
        return y, None if state is None else VectorState(rows.cursor, hidden, tail)

    def _init_decay(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        """Lambda such that exp(-c softplus(Lambda)) is uniform in [0.9, 0.999]."""
        a = jax.random.uniform(key, shape, dtype, 0.9, 0.999)
        return jnp.log(jnp.expm1(-jnp.log(a) / self.cfg.sharpness))


class BlockDiagonal(nn.Module):
    """`count` maps, block-diagonal over heads, in one product: [B, T, H, K] -> [B, T, count, H, K], with biases."""

    count: int

    @nn.compact
    def __call__(self, x: Float[Array, 'B T H K']) -> Float[Array, 'B T N H K']:
        heads, channels = x.shape[2:]
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', in_axis=2, out_axis=3, batch_axis=(0, 1))
        kernel = self.param(
            'kernel',
            nn.with_logical_partitioning(init, ('gate', 'heads', 'head', 'head_out')),
            (self.count, heads, channels, channels),
            jnp.float32,
        )
        bias = self.param(
            'bias',
            nn.with_logical_partitioning(nn.initializers.zeros, ('gate', 'heads', 'head')),
            (self.count, heads, channels),
            jnp.float32,
        )
        y = jnp.einsum('bthk,nhkl->btnhl', x, kernel.astype(x.dtype))
        return y + bias.astype(x.dtype)[None, None]
