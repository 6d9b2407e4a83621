"""S4D (Gu et al. 2022): a diagonal state space a channel, the core of the S4 video models (Wang et al. 2023, S5).

    h_t = exp(dt A g_t) h_{t-1} + B u_t      s_t = 2 Re sum_n C_n h_t[n] + D u_t      y = W_o gelu(s)
    A_n = -exp(a_n) + i w_n                  B = (exp(dt A) - 1) / A                  g_t = 1

N = state_size / 2 complex numbers a channel, whose conjugates are the other half; the input is held for a step
(zero-order hold), and u is x itself: nothing mixes the channels but W_o. A starts as -1/2 + i pi n, dt log-uniform in
[.001, .1], the real and imaginary parts of C as normals of variance 1/2, D as a standard normal. exp(z) - 1 is computed
without the cancellation that costs the authors' code its digits at small dt A.

With `use_gaps` g_t is how far a token's position is from that of the one before: the text from which tokens were
dropped goes on as if they stood there as zeros. The layer is the authors' S4 as the video classifiers take it (ViS4mer)
with S4D in place of the low-rank correction; their W_o has a bias, ours none, so that z = 0 is y = 0. `glu` is the
output of their own S4D example: W_o makes values and gates. Norms, dropout, residual and pooling are the block's.

The states of one chunk of tokens at a time are scanned, and computed again in the backward pass. `implementation='fft'`
convolves whole documents, without a state, packed rows or gaps. State: h [B, D, N], complex. Taps: z (gelu(s),
[B, T, 1, D]), state.
"""

import dataclasses
import math
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Complex

from jattn.contract import Context, Cursor, MixerConfig, Rows, locate
from jattn.nn.linear import Linear
from jattn.nn.time_step import TIME_STEPS
from jattn.ops import linear_scan
from jattn.ops import segments as documents
from jattn.taps import tap
from jattn.typing import Array, Float, Int32, Key, Shape, at_least_float32

IMPLEMENTATIONS = (None, 'xla', 'reference', 'fft')


@struct.dataclass
class S4DState:
    """The state of S4D.

    Attributes:
        cursor: where the rows stand.
        hidden: h [B, D, N] complex64.
    """

    cursor: Cursor
    hidden: Complex[Array, 'B D N']


@dataclasses.dataclass(frozen=True, kw_only=True)
class S4DConfig(MixerConfig):
    """S4D.

    Attributes:
        state_size: n = 2 N, even.
        use_gaps: whether the state fades by the positions between tokens, not by a step a token.
        glu: whether the output is gated.
        chunk: tokens whose states stand in memory at a time.
        implementation: of `ops.linear_scan`, or 'fft' (whole documents without a state); None: the fastest scan.

    >>> cfg = S4DConfig(width=16, state_size=8)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 16))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, cfg.init_state(batch=1, capacity=1000).hidden.shape
    ((1, 5, 16), (1, 16, 4))
    """

    sites: ClassVar[tuple[str, ...]] = ('z', 'state')
    heads: ClassVar[int] = 1

    state_size: int = 64
    use_gaps: bool = False
    glu: bool = False
    chunk: int = 64
    implementation: str | None = None

    def __post_init__(self) -> None:
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(f'state_size={self.state_size} must be even and at least 2')
        if self.chunk < 1:
            raise ValueError(f'chunk={self.chunk} must be at least 1')
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f'implementation={self.implementation!r} must be one of {", ".join(map(str, IMPLEMENTATIONS))}'
            )
        if self.use_gaps and self.implementation == 'fft':
            raise ValueError("use_gaps=True makes the steps uneven, which implementation='fft' cannot serve")

    @property
    def modes(self) -> int:
        """N, the complex numbers of a channel's state."""
        return self.state_size // 2

    def make(self, **flax_kwargs: object) -> nn.Module:
        return S4D(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> S4DState:
        del capacity, dtype  # constant in the length, complex64
        if self.implementation == 'fft':
            raise ValueError("s4d: implementation='fft' has no state")
        return S4DState(Cursor.fresh(batch), jnp.zeros((batch, self.require_width(), self.modes), jnp.complex64))

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.require_width() ** 2 * (2 if self.glu else 1)

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, state_size=min(self.state_size, 8), chunk=4)


class S4D(nn.Module):
    """The module of `S4DConfig`."""

    cfg: S4DConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: S4DState | None = None
    ) -> tuple[Float[Array, 'B T D'], S4DState | None]:
        cfg = self.cfg
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        u = x.astype(at_least_float32(x))
        rates, write, read = self._modes(u.dtype)
        if cfg.implementation == 'fft':
            if rows.segments is not None:
                raise ValueError("s4d: implementation='fft' takes whole documents, not segments, positions or a state")
            s, hidden = fft_convolution(u, kernel(rates, write, read, u.shape[1])), None
        else:
            s, hidden = self._scan(u, rates, write, read, rows, state)
            hidden = tap(self, 'state', hidden)
        s = s + self._parameter('skip', nn.initializers.normal(1.0), x.shape[-1:]).astype(u.dtype)[None, None] * u
        z = tap(self, 'z', jax.nn.gelu(s).astype(x.dtype)[:, :, None])[:, :, 0]
        return self._mix(z), None if state is None else S4DState(rows.cursor, hidden)

    def _modes(self, dtype: jnp.dtype) -> tuple[Complex[Array, 'D N'], ...]:
        """dt A, B and C, in real parameters: complex ones would confuse optimizers."""
        shape = (self.cfg.require_width(), self.cfg.modes)
        decay_log = self._parameter('decay_log', nn.initializers.constant(math.log(0.5)), shape)
        frequency = self._parameter('frequency', _init_frequency, shape)
        step_log = self._parameter('step_log', _init_step_log, shape[:1])
        parts = (self._parameter(f'read_{part}', nn.initializers.normal(0.5**0.5), shape) for part in ('real', 'imag'))
        a = lax.complex(-jnp.exp(decay_log.astype(dtype)), frequency.astype(dtype))
        rates = jnp.exp(step_log.astype(dtype))[:, None] * a
        return rates, expm1(rates) / a, lax.complex(*(part.astype(dtype) for part in parts))

    def _scan(
        self, u: Float[Array, 'B T D'], rates: Array, write: Array, read: Array, rows: Rows, state: S4DState | None
    ) -> tuple[Float[Array, 'B T D'], Complex[Array, 'B D N']]:
        cfg = self.cfg
        hidden = jnp.zeros((len(u), *rates.shape), rates.dtype)
        if state is not None:
            hidden = rows.enter(state.hidden, jnp.zeros((), jnp.complex64)).astype(rates.dtype)
        steps = gaps(rows, None if state is None else state.cursor) if cfg.use_gaps else None
        options = dict(chunk=cfg.chunk, implementation=cfg.implementation)
        return modal_scan(u, rates, write, read, hidden, rows.segments, steps, **options)

    def _mix(self, z: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
        """The output projection."""
        if not self.cfg.glu:
            return Linear(z.shape[-1:], ('mlp', 'embed'), name='o_proj')(z)
        y = Linear((2, z.shape[-1]), ('mlp', 'gate', 'embed'), name='o_proj')(z)
        return y[:, :, 0] * jax.nn.sigmoid(y[:, :, 1])

    def _parameter(self, name: str, init: nn.initializers.Initializer, shape: Shape) -> Array:
        """One over the channels and perhaps the state: no matrix to the optimizer, so that nothing pulls it to 0."""
        axes = ('mlp', 'state')[: len(shape)]
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def modal_scan(
    u: Float[Array, 'B T D'],
    rates: Complex[Array, 'D N'],
    write: Complex[Array, 'D N'],
    read: Complex[Array, 'D N'],
    initial_state: Complex[Array, 'B D N'],
    segments: Int32[Array, 'B T'] | None = None,
    steps: Int32[Array, 'B T'] | None = None,
    *,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[Float[Array, 'B T D'], Complex[Array, 'B D N']]:
    """2 Re sum_n read[n] h_t[:, n] of every token, and the last h.

        h_t = exp(steps_t rates) h_{t-1} + u_t write

    Args:
        u: inputs, float32 at least, and complex arrays of their precision.
        rates: the logarithms of what is kept in a step; their real parts are negative.
        write, read: what an input adds to the states, and how they are read.
        initial_state: h_0, that of the document of the first real token.
        segments: as for `ops.linear_scan`.
        steps: how many steps lie between a token and the one before it. None: one.
        chunk: tokens whose states stand in memory at a time.
        implementation: of `ops.linear_scan`.

    >>> one = jnp.ones((1, 1), jnp.complex64)
    >>> y, _ = modal_scan(jnp.ones((1, 3, 1)), jnp.log(0.5 * one), one, one / 2, jnp.zeros((1, 1, 1), jnp.complex64))
    >>> y[0, :, 0].tolist()
    [1.0, 1.5, 1.75]
    """
    tokens, size = u.shape[1], min(chunk, u.shape[1])
    real, opens = jnp.ones(u.shape[:2], bool), jnp.zeros(u.shape[:2], bool)
    if segments is not None:
        real, opens = segments > 0, documents.resets(segments)
    each = None if steps is None else steps.astype(u.dtype)

    def cut(x: Array) -> Array:
        """[B, T, ...] to [T / chunk, B, chunk, ...]; what fills the last chunk up is not real."""
        x = jnp.pad(x, ((0, 0), (0, -tokens % size), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one_chunk(hidden: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        u, real, opens, *each = inputs
        real, opens = real[..., None, None], opens[..., None, None]
        passed = rates[None, None] * each[0][..., None, None] if each else rates[None, None]
        kept = jnp.where(opens, 0, jnp.where(real, jnp.exp(passed), 1))
        added = jnp.where(real, u[..., None] * write[None, None], 0)
        flat = (*u.shape[:2], -1)
        states, last = linear_scan(
            jnp.broadcast_to(kept, added.shape).reshape(flat),
            added.reshape(flat),
            initial_state=hidden.reshape(len(hidden), -1),
            return_state=True,
            implementation=implementation,
        )
        y = 2 * jnp.sum(jnp.real(states.reshape(added.shape) * read[None, None]), axis=-1)
        return last.reshape(hidden.shape), y

    inputs = (u, real, opens) if each is None else (u, real, opens, each)
    hidden, y = lax.scan(one_chunk, initial_state, tuple(cut(x) for x in inputs))
    return jnp.moveaxis(y, 0, 1).reshape(len(u), -1, u.shape[2])[:, :tokens], hidden


def gaps(rows: Rows, cursor: Cursor | None) -> Int32[Array, 'B T'] | None:
    """How many positions each token is past the one before it in its document, 1 for the first; None: all 1.

    >>> rows = Rows(jnp.array([[1, 1, 0, 1]]), jnp.array([[2, 3, 9, 7]]), jnp.array([[0, 1, 0, 2]]))
    >>> gaps(rows, None).tolist()
    [[1, 1, 1, 4]]
    """
    if rows.positions is None:
        return None
    real = rows.segments > 0
    place = lax.cummax(jnp.where(real, jnp.arange(real.shape[1])[None], 0), axis=1)
    before = jnp.pad(jnp.take_along_axis(rows.positions, place, axis=1)[:, :-1], ((0, 0), (1, 0)))
    follows = real & (rows.index > 0)
    if cursor is not None:
        before = jnp.where(rows.index > 0, before, cursor.position[:, None] - 1)
        follows = follows | rows.carried
    return jnp.where(follows, rows.positions - before, 1)


def kernel(
    rates: Complex[Array, 'D N'], write: Complex[Array, 'D N'], read: Complex[Array, 'D N'], tokens: int
) -> Float[Array, 'T D']:
    """The answer to a unit input after 0 .. T-1 steps."""
    powers = jnp.exp(rates[None] * jnp.arange(tokens, dtype=jnp.real(rates).dtype)[:, None, None])
    return 2 * jnp.sum(jnp.real((write * read)[None] * powers), axis=-1)


def fft_convolution(u: Float[Array, 'B T D'], kernel: Float[Array, 'T D']) -> Float[Array, 'B T D']:
    """The causal convolution, by the Fourier transform of twice the length."""
    tokens = u.shape[1]
    of_u, of_kernel = jnp.fft.rfft(u, 2 * tokens, axis=1), jnp.fft.rfft(kernel, 2 * tokens, axis=0)
    return jnp.fft.irfft(of_u * of_kernel[None], 2 * tokens, axis=1)[:, :tokens]


def expm1(z: Complex[Array, '*F']) -> Complex[Array, '*F']:
    """exp(z) - 1 with all digits also where z is small: no two terms of its real part cancel for Re z < 0."""
    x, y = jnp.real(z), jnp.imag(z)
    return lax.complex(jnp.expm1(x) * jnp.cos(y) - 2 * jnp.square(jnp.sin(y / 2)), jnp.exp(x) * jnp.sin(y))


def _init_frequency(key: Key, shape: Shape, dtype: jnp.dtype) -> Float[Array, 'D N']:
    """pi n in every channel."""
    del key
    return jnp.broadcast_to(math.pi * jnp.arange(shape[1], dtype=dtype)[None], shape)


def _init_step_log(key: Key, shape: Shape, dtype: jnp.dtype) -> Float[Array, 'D']:
    """ln dt, uniform between those of TIME_STEPS."""
    return jax.random.uniform(key, shape, dtype, *(math.log(step) for step in TIME_STEPS))
