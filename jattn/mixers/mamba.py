"""Mamba (Gu and Dao 2023): a diagonal state space whose step, input and output maps depend on the token (S6).

    u = silu(conv(W_x x))      [d_t, B_t, C_t] = W_s u_t      dt_t = softplus(W_dt d_t + b_dt)      A = exp(A_log) > 0
    h_t[e, n] = exp(-dt_t[e] A[e, n]) h_{t-1}[e, n] + dt_t[e] u_t[e] B_t[n]
    z_t[e] = (sum_n h_t[e, n] C_t[n] + D[e] u_t[e]) silu(W_g x)[e]                  y = W_o z

E channels with N numbers each; B and C are shared by the channels, the rank of d is small. The decay is the exact
exponential, the input's factor the Euler step dt B, as in the authors' code. A starts as 1 .. N in every channel
(S4D-real), b_dt so that dt is log-uniform in [.001, .1], W_dt uniform within +-1/sqrt(rank), D as 1.

With `alone` it is the bare S6 that the dynamical-systems comparison takes (Sieber et al. 2024): u = x, no convolution
and no gate, with W_o after it. A decay of its own for each of the E N numbers leaves no chunk form of matrix products:
the states of one chunk at a time are scanned, and computed again in the backward pass, so T E N numbers never stand in
memory. State: h [B, E, N] and the convolution's tail. Taps: q and k (C and B, [B, T, 1, N]), v (u, [B, T, 1, E]),
gates (dt, [B, T, 1, E]), z [B, T, 1, E], state.
"""

import dataclasses
import math
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from jattn.contract import Context, Cursor, MixerConfig, locate
from jattn.nn.linear import Linear
from jattn.nn.short_convolution import ShortConvolution
from jattn.nn.time_step import time_step_bias
from jattn.ops import linear_scan
from jattn.ops import segments as documents
from jattn.taps import tap
from jattn.typing import Array, Float, Int32, Key, Shape, at_least_float32


@struct.dataclass
class MambaState:
    """The state of Mamba.

    Attributes:
        cursor: where the rows stand.
        hidden: h [B, E, N] float32.
        tail: [B, W-1, E], the last inputs of the convolution; None: there is none.
    """

    cursor: Cursor
    hidden: Float[Array, 'B E N']
    tail: Float[Array, 'B W-1 E'] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaConfig(MixerConfig):
    """Mamba.

    Attributes:
        expansion: E as a multiple of the width.
        state_size: N.
        rank: of the time step; None: width / 16, rounded up.
        taps: W, of the short convolution.
        alone: S6 without the block around it: E is the width, and neither projection in, convolution nor gate.
        chunk: tokens whose states stand in memory at a time.
        implementation: of `ops.linear_scan`; None: the fastest that serves.

    >>> cfg = MambaConfig(width=16)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 16))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, cfg.init_state(batch=1, capacity=1000).hidden.shape
    ((1, 5, 16), (1, 32, 16))
    """

    sites: ClassVar[tuple[str, ...]] = ('q', 'k', 'v', 'gates', 'z', 'state')
    heads: ClassVar[int] = 1

    expansion: float = 2.0
    state_size: int = 16
    rank: int | None = None
    taps: int = 4
    alone: bool = False
    chunk: int = 64
    implementation: str | None = None

    def __post_init__(self) -> None:
        for name in ('state_size', 'taps', 'chunk'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1')

    @property
    def channels(self) -> int:
        """E."""
        return self.require_width() if self.alone else round(self.expansion * self.require_width())

    @property
    def step_rank(self) -> int:
        """The rank in force."""
        return self.rank or math.ceil(self.require_width() / 16)

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Mamba(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> MambaState:
        del capacity  # constant in the length
        return MambaState(
            cursor=Cursor.fresh(batch),
            hidden=jnp.zeros((batch, self.channels, self.state_size), jnp.float32),
            tail=None if self.alone else jnp.zeros((batch, self.taps - 1, self.channels), dtype),
        )

    def flops(self, tokens: int) -> int:
        around = (1 if self.alone else 3) * self.require_width()
        return 2 * tokens * self.channels * (around + 2 * self.step_rank + 2 * self.state_size)

    def tiny(self) -> Self:
        return dataclasses.replace(
            self, width=32, state_size=min(self.state_size, 4), rank=self.rank and min(self.rank, 2), chunk=4
        )


class Mamba(nn.Module):
    """The module of `MambaConfig`."""

    cfg: MambaConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: MambaState | None = None
    ) -> tuple[Float[Array, 'B T D'], MambaState | None]:
        cfg = self.cfg
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        u, tail = x, None
        if not cfg.alone:
            u = Linear((cfg.channels,), ('embed', 'mlp'), name='x_proj')(x)
            u, tail = ShortConvolution(cfg.taps, name='conv')(u, rows, None if state is None else state.tail)
            u = jax.nn.silu(u)
        u = self._one_head('v', u)
        step, write, read = self._selection(u)

        hidden = jnp.zeros((len(x), cfg.channels, cfg.state_size), step.dtype)
        if state is not None:
            hidden = rows.enter(state.hidden, jnp.zeros((), jnp.float32)).astype(step.dtype)
        wide = u.astype(step.dtype)
        decay_log = self._parameter('decay_log', self._init_decay, (cfg.channels, cfg.state_size))
        rates = jnp.exp(decay_log.astype(step.dtype))
        z, hidden = selective_scan(
            wide, step, rates, write, read, hidden, rows.segments, chunk=cfg.chunk, implementation=cfg.implementation
        )
        hidden = tap(self, 'state', hidden)
        z = z + self._parameter('skip', nn.initializers.ones, (cfg.channels,))[None, None] * wide
        if not cfg.alone:
            z = z * jax.nn.silu(Linear((cfg.channels,), ('embed', 'mlp'), name='gate_proj')(x)).astype(z.dtype)
        z = self._one_head('z', z.astype(x.dtype))
        y = Linear(x.shape[-1:], ('mlp', 'embed'), name='o_proj')(z)
        return y, None if state is None else MambaState(rows.cursor, hidden, tail)

    def _selection(self, u: Array) -> tuple[Float[Array, 'B T E'], Float[Array, 'B T N'], Float[Array, 'B T N']]:
        """dt, B and C of every token, float32 at least."""
        cfg, rank = self.cfg, self.cfg.step_rank
        selected = Linear((rank + 2 * cfg.state_size,), ('mlp', 'rank'), name='selection_proj')(u)
        step, write, read = jnp.split(selected, [rank, rank + cfg.state_size], axis=-1)
        step = Linear((cfg.channels,), ('rank', 'mlp'), init=_uniform_by_rank, name='step_proj')(step)
        bias = self._parameter('step_bias', time_step_bias, (cfg.channels,))
        wide = at_least_float32(u)
        step = jax.nn.softplus(step.astype(wide) + bias[None, None])
        write, read = self._one_head('k', write), self._one_head('q', read)
        return self._one_head('gates', step), write.astype(wide), read.astype(wide)

    def _one_head(self, site: str, value: Array) -> Array:
        """A tap with an axis for the one head."""
        return tap(self, site, value[:, :, None])[:, :, 0]

    def _parameter(self, name: str, init: nn.initializers.Initializer, shape: Shape) -> Array:
        """One over the channels and perhaps the state."""
        axes = ('mlp', 'state')[: len(shape)]
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)

    def _init_decay(self, key: Key, shape: Shape, dtype: jnp.dtype) -> Array:
        """ln 1 .. ln N in every channel: the real part of S4D."""
        del key
        return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype))[None], shape)


def selective_scan(
    u: Float[Array, 'B T E'],
    step: Float[Array, 'B T E'],
    rates: Float[Array, 'E N'],
    write: Float[Array, 'B T N'],
    read: Float[Array, 'B T N'],
    initial_state: Float[Array, 'B E N'],
    segments: Int32[Array, 'B T'] | None = None,
    *,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[Float[Array, 'B T E'], Float[Array, 'B E N']]:
    """sum_n read_t[n] h_t[:, n] of every token, and the last h; all arrays float32 at least.

        h_t = exp(-step_t rates) h_{t-1} + step_t u_t write_t^T

    The states of `chunk` tokens are scanned at a time and made anew in the backward pass: memory is
    O(T (E + N) + (T / chunk + chunk) E N). Segments: as for `ops.linear_scan`.

    >>> ones = jnp.ones((1, 3, 1))
    >>> y, h = selective_scan(ones, ones, jnp.log(2.0).reshape(1, 1), ones, ones, jnp.zeros((1, 1, 1)))
    >>> y[0, :, 0].tolist(), h.shape
    ([1.0, 1.5, 1.75], (1, 1, 1))
    """
    tokens, size = u.shape[1], min(chunk, u.shape[1])
    opens = jnp.zeros(u.shape[:2], bool)
    if segments is not None:
        step = jnp.where((segments > 0)[..., None], step, 0)  # padding: nothing fades, nothing is written
        opens = documents.resets(segments)

    def cut(x: Array) -> Array:
        """[B, T, ...] to [T / chunk, B, chunk, ...]; what fills the last chunk up has step 0."""
        x = jnp.pad(x, ((0, 0), (0, -tokens % size), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one_chunk(hidden: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        opens, step, u, write, read = inputs
        kept = jnp.exp(-step[..., None] * rates[None, None])
        kept = jnp.where(opens[..., None, None], 0, kept)
        added = (step * u)[..., None] * write[:, :, None]
        flat = (*step.shape[:2], -1)
        states, last = linear_scan(
            kept.reshape(flat),
            added.reshape(flat),
            initial_state=hidden.reshape(len(hidden), -1),
            return_state=True,
            implementation=implementation,
        )
        y = jnp.sum(states.reshape(added.shape) * read[:, :, None], axis=-1)
        return last.reshape(hidden.shape), y

    hidden, y = lax.scan(one_chunk, initial_state, tuple(cut(x) for x in (opens, step, u, write, read)))
    return jnp.moveaxis(y, 0, 1).reshape(len(u), -1, u.shape[2])[:, :tokens], hidden


def _uniform_by_rank(key: Key, shape: Shape, dtype: jnp.dtype) -> Array:
    """Uniform within +-1 / sqrt(rank): the time steps vary as much as what they are made of."""
    return jax.random.uniform(key, shape, dtype, -(shape[0] ** -0.5), shape[0] ** -0.5)
