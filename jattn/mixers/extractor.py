"""Extractors (Chen 2023, Attention Is Not All You Need Anymore): weights by lag, learned once, in place of attention.

    e_t = 1 / sqrt(n_t) sum_{j=0..n_t-1} E_j(x_{t-j})      n_t = min(tokens of the document up to t, l)
    z_t = (x_t W_adj) * e_t                                y = z, or W_o z with `out_proj`

| kind | E_j(x) | what is learned beside W_adj |
| --- | --- | --- |
| she | x F_j | a matrix a lag, F [l, D, D] |
| he | (x W) * f_j | a vector a lag, f [l, D], and W |
| we | (x W) f_j | a number a lag, f [l], and W |
| me | x W | W alone; blind to the order within the window |

Each is a case of the one above it. Terms count as independent noise, so their sum is over the root of their number;
lags never cross into another document and padding is no term. The gate is linear; the output is quadratic in x.

No code of the author's was found, only a Flax file of SHE by others: that is what `she` is, without their indexing.
There E belongs to the absolute position of its token (`indexing='absolute'`, E_i(x_i)): a running sum is then all of
the state, but nothing is learned past position l, where outputs are NaN. HE, WE and ME are what the abstract's words
allow, unverified; f starts at 1. Biases (`use_bias`) are of W_adj and of e, W_o has none: z = 0 is y = 0.

The sums are those of `nn/lag_sums.py`; `implementation='fft'`, for HE and WE, has no state and no packed rows.
State: the last l-1 inputs (SHE) or projected inputs; with absolute indexing the running sum. Taps: v (x W, not of SHE),
gates (x W_adj), z, all [B, T, 1, D].
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from jattn.contract import Context, Cursor, MixerConfig, Rows, locate
from jattn.flops import traced_flops
from jattn.nn.lag_sums import fft_sums, lag_sums, stream_lag_sums
from jattn.nn.linear import Linear
from jattn.ops import linear_scan
from jattn.taps import tap
from jattn.typing import Array, Float, Int32, Key, Shape, at_least_float32

KINDS = ('she', 'he', 'we', 'me')
INDEXINGS = ('lag', 'absolute')


@struct.dataclass
class ExtractorState:
    """The state of an extractor.

    Attributes:
        cursor: where the rows stand.
        count: [B], tokens of the document so far.
        tail: [B, l-1, D], the last inputs, of which the newest `count` are the document's; None: absolute indexing.
        total: [B, D] float32, the sum over the document; None: indexing by lag.
    """

    cursor: Cursor
    count: Int32[Array, 'B']
    tail: Float[Array, 'B l-1 D'] | None
    total: Float[Array, 'B D'] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractorConfig(MixerConfig):
    """An extractor.

    Attributes:
        kind: 'she', 'he', 'we' or 'me'.
        window: l, the tokens that a token sees, itself included; with absolute indexing the longest document.
        indexing: 'lag' or 'absolute'.
        out_proj: whether the outputs are projected.
        use_bias: of the gate and of the sum.
        implementation: 'fft' (whole documents without a state; kinds he and we); None: sums.

    >>> cfg = ExtractorConfig(kind='he', width=16, window=8)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 16))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, cfg.init_state(batch=1, capacity=1000).tail.shape
    ((1, 5, 16), (1, 7, 16))
    """

    heads: ClassVar[int] = 1

    kind: str = 'she'
    window: int = 64
    indexing: str = 'lag'
    out_proj: bool = False
    use_bias: bool = False
    implementation: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (('kind', KINDS), ('indexing', INDEXINGS), ('implementation', (None, 'fft'))):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name}={getattr(self, name)!r} must be one of {", ".join(map(str, choices))}')
        if self.window < 1:
            raise ValueError(f'window={self.window} must be at least 1')
        if self.implementation == 'fft' and (self.kind not in ('he', 'we') or self.indexing != 'lag'):
            raise ValueError(
                f"implementation='fft' is for kinds he and we with indexing='lag', "
                f'not for kind={self.kind!r} with indexing={self.indexing!r}'
            )

    @property
    def sites(self) -> tuple[str, ...]:
        return ('gates', 'z') if self.kind == 'she' else ('v', 'gates', 'z')

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Extractor(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> ExtractorState:
        if self.implementation == 'fft':
            raise ValueError("extractor: implementation='fft' has no state")
        self.check_length('capacity', capacity)
        width, by_lag = self.require_width(), self.indexing == 'lag'
        return ExtractorState(
            cursor=Cursor.fresh(batch),
            count=jnp.zeros(batch, jnp.int32),
            tail=jnp.zeros((batch, self.window - 1, width), dtype) if by_lag else None,
            total=None if by_lag else jnp.zeros((batch, width), jnp.float32),
        )

    def check_length(self, name: str, tokens: int) -> None:
        """An error where a document of so many tokens has places that nothing is learned for."""
        if self.indexing == 'absolute' and tokens > self.window:
            raise ValueError(f"extractor: {name}={tokens} exceeds window={self.window} with indexing='absolute'")

    def flops(self, tokens: int) -> int:
        return traced_flops(self, tokens)

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, window=4 if self.indexing == 'lag' else 64)


class Extractor(nn.Module):
    """The module of `ExtractorConfig`."""

    cfg: ExtractorConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: ExtractorState | None = None
    ) -> tuple[Float[Array, 'B T D'], ExtractorState | None]:
        cfg, width = self.cfg, x.shape[-1:]
        rows = locate(context, x.shape[:2], None if state is None else state.cursor)
        v = x
        if cfg.kind != 'she':
            v = self._one_head('v', Linear(width, ('embed', 'mlp'), name='v_proj')(x))
        if cfg.indexing == 'absolute':
            e, state = self._by_position(v, rows, state)
        else:
            e, state = self._by_lag(v, rows, state)
        if cfg.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('mlp',))
            e = e + self.param('bias', zeros, width, jnp.float32)[None, None]
        gate = self._one_head('gates', Linear(width, ('embed', 'mlp'), cfg.use_bias, name='gate_proj')(x))
        z = self._one_head('z', (gate.astype(e.dtype) * e).astype(x.dtype))
        return Linear(width, ('mlp', 'embed'), name='o_proj')(z) if cfg.out_proj else z, state

    def _by_lag(
        self, v: Float[Array, 'B T D'], rows: Rows, state: ExtractorState | None
    ) -> tuple[Float[Array, 'B T D'], ExtractorState | None]:
        """The scaled sums over the last tokens of each document, float32 at least."""
        cfg, weights, reach = self.cfg, self._filter(v.dtype), _reach(rows, state, v.shape[1])
        scale = jax.lax.rsqrt(jnp.minimum(reach + 1, cfg.window).astype(at_least_float32(v)))[..., None]
        if cfg.implementation == 'fft':
            if rows.segments is not None:
                raise ValueError("extractor: implementation='fft' takes whole documents, not segments or positions")
            return fft_sums(v, weights) * scale, None
        if state is None:
            return lag_sums(v, weights, cfg.window, None if rows.segments is None else reach) * scale, None
        e, tail = stream_lag_sums(v, weights, rows, reach, state.tail)
        return e * scale, ExtractorState(rows.cursor, _count(rows, state, reach), tail, None)

    def _by_position(
        self, v: Float[Array, 'B T D'], rows: Rows, state: ExtractorState | None
    ) -> tuple[Float[Array, 'B T D'], ExtractorState | None]:
        """The same where each token is weighed by its own position: running sums."""
        cfg, reach = self.cfg, _reach(rows, state, v.shape[1])
        if rows.positions is None:
            cfg.check_length('tokens', v.shape[1])
        terms = at_positions(v, self._filter(v.dtype), rows.positions).astype(at_least_float32(v))
        e, total = linear_scan(
            jnp.ones_like(terms),
            terms,
            initial_state=None if state is None else rows.enter(state.total, jnp.zeros((), jnp.float32)),
            return_state=True,
            segments=rows.segments,
        )
        e = e * jax.lax.rsqrt((reach + 1).astype(e.dtype))[..., None]
        if rows.positions is not None:
            past = (rows.positions >= cfg.window) & (rows.segments > 0)
            e = jnp.where(past[..., None], jnp.nan, e)
        return e, None if state is None else ExtractorState(rows.cursor, _count(rows, state, reach), None, total)

    def _filter(self, dtype: jnp.dtype) -> Float[Array, 'l *F'] | None:
        """F [l, D, D], f [l, D] or f [l, 1]; None of ME."""
        cfg, width = self.cfg, self.cfg.require_width()
        if cfg.kind == 'me':
            return None
        # F is one map from the window to the width: by its last name a matrix to the optimizer, as W is.
        init, shape, axes = {
            'she': (_lecun_normal_by_lag, (width, width), ('tap', 'mlp', 'embed')),
            'he': (nn.initializers.ones, (width,), ('tap', 'mlp')),
            'we': (nn.initializers.ones, (), ('tap',)),
        }[cfg.kind]
        shape = (cfg.window, *shape)
        weights = self.param('filter', nn.with_logical_partitioning(init, axes), shape, jnp.float32).astype(dtype)
        return weights[:, None] if cfg.kind == 'we' else weights

    def _one_head(self, site: str, value: Array) -> Array:
        """A tap with an axis for the one head."""
        return tap(self, site, value[:, :, None])[:, :, 0]


def at_positions(
    x: Float[Array, 'B T D'], weights: Float[Array, 'l *F'] | None, positions: Int32[Array, 'B T'] | None
) -> Float[Array, 'B T D']:
    """E_p(x_t) of every token at its position p; None: t."""
    if weights is None:
        return x
    if positions is None:
        weights = weights[: x.shape[1]]
        return x * weights[None] if weights.ndim == 2 else jnp.einsum('btd,tdf->btf', x, weights)
    positions = jnp.minimum(positions, len(weights) - 1)
    if weights.ndim == 2:
        return x * weights[positions]

    @jax.checkpoint
    def one_token(now: tuple[Array, Array]) -> Array:
        x, positions = now
        return jnp.einsum('bd,bdf->bf', x, weights[positions])

    return jnp.moveaxis(lax.map(one_token, (jnp.moveaxis(x, 1, 0), positions.T)), 0, 1)


def _reach(rows: Rows, state: ExtractorState | None, tokens: int) -> Int32[Array, 'B T']:
    """How many earlier tokens of its document stand before each token."""
    if rows.index is None:
        return jnp.arange(tokens)[None]
    return rows.index if state is None else rows.index + jnp.where(rows.carried, state.count[:, None], 0)


def _count(rows: Rows, state: ExtractorState, reach: Int32[Array, 'B T']) -> Int32[Array, 'B']:
    """How many tokens the last document of the call has by now."""
    real = rows.segments > 0
    own = jnp.where(real & (rows.segments == rows.cursor.segment[:, None]), reach + 1, 0)
    return jnp.where(jnp.any(real, axis=1), jnp.max(own, axis=1), state.count)


def _lecun_normal_by_lag(key: Key, shape: Shape, dtype: jnp.dtype) -> Float[Array, 'l D D']:
    """Variance 1 / D a lag: 1 / sqrt(n) keeps that of the sum flat in t."""
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal', in_axis=1, out_axis=2, batch_axis=0)
    return init(key, shape, dtype)
