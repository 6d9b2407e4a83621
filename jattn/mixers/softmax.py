"""Softmax attention (Vaswani et al. 2017): multi-head, grouped-query, windowed, with sinks, rotary or no positions.

    y_t = W_o concat_h sum_s softmax_s(scale q_th . k_sg) v_sg       g = h // (H/G), s visible to t

With `convolution` a short causal depthwise convolution is added to q, k and v before they are turned (Primer, So et al.
2021, which has no sum; with it a new model starts as plain attention):

    q_t + sum_j c_j q_{t-j},  j = 0 .. W-1       so that one layer can ask "what stood behind this key?"

State: the keys and values of the document in the slots of a cache policy (`jattn/nn/cache.py`): all of them, or with a
window the last ones; with a convolution also its last inputs. Taps: q, k, v before rotation, z; on the reference path
scores and pattern.
"""

import dataclasses
from typing import ClassVar, Self

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, Cursor, MixerConfig, divide, locate
from jattn.flops import traced_flops
from jattn.nn.block_cache import BlockCache, BlockState
from jattn.nn.block_view import BlockView, attend_blocks
from jattn.nn.cache import KeyValues, PlainCache, RingCache, View
from jattn.nn.linear import Linear
from jattn.nn.norm import RMSNorm
from jattn.nn.rotary import RotaryScaling, rotary_channels, rotate
from jattn.nn.short_convolution import ShortConvolution
from jattn.ops import attention
from jattn.ops.softmax_attention.blocks import block_pattern
from jattn.ops.softmax_attention.reference import attend, attention_mask, attention_pattern, attention_scores
from jattn.taps import PATTERNS, tap, wants_patterns
from jattn.typing import Array, Float

BIASES = ('none', 'qkv', 'all')


@struct.dataclass
class Convolved:
    """The state of attention with a convolution.

    Attributes:
        cache: keys and values.
        tail: the last W - 1 inputs of the convolution, q, k and v joined.
    """

    cache: KeyValues | BlockState
    tail: Float[Array, 'B W-1 F']

    @property
    def cursor(self) -> Cursor:
        return self.cache.cursor


SoftmaxState = KeyValues | BlockState | Convolved


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxConfig(MixerConfig):
    """Softmax attention.

    Attributes:
        heads: H, query heads.
        key_heads: G, key and value heads; None: H (multi-head), 1: multi-query (Shazeer 2019), else grouped (2023).
        head_dim: K = V; None: width / heads.
        window: a query sees the last `window` tokens, itself included (Beltagy et al. 2020); None: all.
        sinks: the first tokens of a document (positions 0 .. sinks-1) stay visible beside a window (Xiao et al. 2023).
        rotary_base: theta of the rotary embedding; None: no positions.
        rotary_fraction: of a head's channels that are turned; the others have no position (GPT-NeoX).
        rotary_scaling: of the frequencies, for long rows; None: none.
        bias: which projections have one: 'none', 'qkv' (Qwen2) or 'all'.
        convolution: W, tokens of the convolution over q, k and v; 0: none.
        qk_norm: RMSNorm over the channels of each query and key head, before rotation (Henry et al. 2020).
        scale: of the scores; None: K^-0.5.
        softcap: c, scores become c tanh(scores / c); None: as they are.
        causal: whether a query sees the past alone.
        cache: the cache policy; None: a ring where there is a window, else plain.
        implementation: of `ops.attention`; None: the fastest that serves.

    >>> import jax
    >>> cfg = SoftmaxConfig(width=16, heads=2)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 16))
    >>> (y, state), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, state, cfg.state_bytes(capacity=5)
    ((1, 5, 16), None, 352)
    """

    sites: ClassVar[tuple[str, ...]] = ('q', 'k', 'v', 'z')
    heads: int = 4
    key_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    sinks: int = 0
    rotary_base: float | None = 10_000.0
    rotary_fraction: float = 1.0
    rotary_scaling: RotaryScaling | None = None
    bias: str = 'none'
    convolution: int = 0
    qk_norm: bool = False
    scale: float | None = None
    softcap: float | None = None
    causal: bool = True
    cache: PlainCache | BlockCache | None = None
    implementation: str | None = None

    def __post_init__(self) -> None:
        divide('heads', self.heads, 'key_heads', self.num_key_heads)
        if self.window is not None and self.window < 1:
            raise ValueError(f'window={self.window} must be at least 1, or None for no window')
        if self.sinks and self.window is None:
            raise ValueError(f'sinks={self.sinks} stand beside a window, but window is None')
        if isinstance(self.cache, BlockCache) and (self.window is not None or not self.causal):
            name = 'window' if self.window is not None else 'causal'
            raise ValueError(f'{name}={getattr(self, name)} hides keys, but cache={self.cache} chooses those to see')
        if isinstance(self.cache, BlockCache) and self.scale is not None:
            raise ValueError(f'scale={self.scale}, but cache={self.cache} scales scores by K^-0.5')
        if self.convolution < 0 or self.convolution == 1:
            raise ValueError(f'convolution={self.convolution} must be 0 (none) or at least 2')
        if self.bias not in BIASES:
            raise ValueError(f'bias={self.bias!r} must be one of {", ".join(BIASES)}')
        if self.width is not None and self.rotary_base is not None:
            if self.channels % 2:
                raise ValueError(f'head_dim={self.channels} must be even for rotary positions (rotary_base=None: none)')
            rotary_channels(self.channels, self.rotary_fraction)

    @property
    def pattern_sites(self) -> tuple[str, ...]:
        return ('scores', 'pattern', 'chosen') if isinstance(self.cache, BlockCache) else ('scores', 'pattern')

    @property
    def num_key_heads(self) -> int:
        """G."""
        return self.heads if self.key_heads is None else self.key_heads

    @property
    def channels(self) -> int:
        """K = V, the channels of a head."""
        return self.head_dim or divide('width', self.require_width(), 'heads', self.heads)

    @property
    def policy(self) -> PlainCache | BlockCache:
        """The cache policy in force."""
        if self.cache is not None:
            return self.cache
        return PlainCache() if self.window is None else RingCache(self.window, self.sinks)

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Softmax(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> SoftmaxState:
        if not self.causal:
            raise ValueError('softmax: a mixer with causal=False has no state')
        sizes = (self.num_key_heads, self.channels, self.channels)
        cache = self.policy.init(batch, capacity, *sizes, dtype, heads=self.heads)
        if not self.convolution:
            return cache
        channels = (self.heads + 2 * self.num_key_heads) * self.channels
        return Convolved(cache, jnp.zeros((batch, self.convolution - 1, channels), dtype))

    def flops(self, tokens: int) -> int:
        if isinstance(self.cache, BlockCache):  # of these fields alone: subclasses add what is theirs
            fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(SoftmaxConfig)}
            return traced_flops(SoftmaxConfig(**fields), tokens)
        projections = 2 * self.require_width() * self.channels * (2 * self.heads + 2 * self.num_key_heads)
        return tokens * projections + 2 * tokens * tokens * self.heads * 2 * self.channels

    def tiny(self) -> Self:
        return dataclasses.replace(
            self,
            width=32,
            head_dim=None if self.head_dim is None else 8,
            window=None if self.window is None else 4,
            sinks=min(self.sinks, 2),
        )


class Softmax(nn.Module):
    """The module of `SoftmaxConfig`."""

    cfg: SoftmaxConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: SoftmaxState | None = None
    ) -> tuple[Float[Array, 'B T D'], SoftmaxState | None]:
        cfg = self.cfg
        query, key = (cfg.heads, cfg.channels), (cfg.num_key_heads, cfg.channels)
        bias = cfg.bias != 'none'
        q = Linear(query, ('embed', 'heads', 'head'), bias, name='q_proj')(x)
        k = Linear(key, ('embed', 'heads', 'head'), bias, name='k_proj')(x)
        v = Linear(key, ('embed', 'heads', 'head'), bias, name='v_proj')(x)
        tail = None
        if cfg.convolution:
            q, k, v, tail = self._convolve(q, k, v, context, state)
            state = None if state is None else state.cache
        if cfg.qk_norm:
            q, k = RMSNorm(axis='head', name='q_norm')(q), RMSNorm(axis='head', name='k_norm')(k)
        q, k, v = tap(self, 'q', q), tap(self, 'k', k), tap(self, 'v', v)

        z, state = self._read(q, k, v, context, state)
        state = state if tail is None else Convolved(state, tail)
        z = tap(self, 'z', self._weigh(z, x, q, context))
        return Linear(x.shape[-1:], ('heads', 'head', 'embed'), cfg.bias == 'all', name='o_proj')(z), state

    def _convolve(
        self, q: Array, k: Array, v: Array, context: Context, state: Convolved | None
    ) -> tuple[Array, Array, Array, Array | None]:
        """q, k and v with the convolution added, and its new tail."""
        rows = locate(context, q.shape[:2], None if state is None else state.cursor)
        heads = jnp.concatenate([q, k, v], axis=2)
        flat = heads.reshape(*heads.shape[:2], -1)
        added, tail = ShortConvolution(self.cfg.convolution, name='conv')(flat, rows, state and state.tail)
        heads += added.reshape(heads.shape)
        return *jnp.split(heads, [q.shape[2], q.shape[2] + k.shape[2]], axis=2), tail

    def _read(
        self, q: Array, k: Array, v: Array, context: Context, state: KeyValues | BlockState | None
    ) -> tuple[Float[Array, 'B T H V'], KeyValues | BlockState | None]:
        """What the heads read of the document, and the new state."""
        rows = locate(context, q.shape[:2], None if state is None else state.cursor)
        state, view = self.cfg.policy.extend(state, q, k, v, rows, self._rotate)
        z = self._attend(view)
        return z if view.overflow is None else jnp.where(view.overflow[:, :, None, None], jnp.nan, z), state

    def _weigh(self, z: Float[Array, 'B T H V'], x: Array, q: Array, context: Context) -> Float[Array, 'B T H V']:
        """The heads as the output projection takes them; subclasses weigh them, by the token or its queries."""
        del x, q, context
        return z

    def _rotate(self, x: Array, positions: Array) -> Array:
        cfg = self.cfg
        if cfg.rotary_base is None:
            return x
        return rotate(x, positions, cfg.rotary_base, cfg.rotary_fraction, cfg.rotary_scaling)

    def _attend(self, view: View | BlockView) -> Float[Array, 'B T H V']:
        cfg = self.cfg
        if isinstance(view, BlockView):
            return attend_blocks(self, view, block_pattern, softcap=cfg.softcap)
        visible = dict(
            causal=cfg.causal, window=cfg.window, sinks=cfg.sinks, segments=view.segments, positions=view.positions
        )
        shape = dict(softcap=cfg.softcap, scale=cfg.scale)
        if not wants_patterns(self):
            return attention(view.q, view.k, view.v, **visible, **shape, implementation=cfg.implementation)
        mask = attention_mask(view.q, view.k, **visible)
        scores = tap(self, 'scores', attention_scores(view.q, view.k, mask, **shape), PATTERNS)
        pattern = tap(self, 'pattern', attention_pattern(scores, mask), PATTERNS, mask)
        return attend(pattern, view.v)
