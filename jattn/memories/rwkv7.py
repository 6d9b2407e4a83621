"""The layer of RWKV-7 (Peng et al. 2025), whose memory erases along a key of its own.

    x^c = x_t + mu_c (x_{t-1} - x_t)   for c in r, w, k, v, a, g          (token shift)
    log w = - bound sigmoid(w_0 + tanh(x^w W_1) W_2)      a = sigmoid(a_0 + x^a A_1 A_2)      g = sigmoid(x^g G_1) G_2
    r, k, v = W_r x^r, W_k x^k, W_v x^v      v = v + (v_first - v) sigmoid(v_0 + x^v V_1 V_2)     (later layers)
    kk = k k_k / |k k_k|        k~ = k (1 + (a - 1) k_a)
    S_t = S_{t-1} Diag(w_t) - (S_{t-1} kk_t) (kk_t a_t)^T + v_t k~_t^T
    z = (GroupNorm(S_t r_t) + (r_t . (k~_t r_k)) v_t) g

GroupNorm is a LayerNorm a head with scale and shift of its own and epsilon 1e-5 K. v_first are the values of the first
such layer; without them (a layer alone, or the first) a layer keeps its own. State: S, and the last token's input.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, Rows
from jattn.memories.tokens import Tokens
from jattn.nn.linear import Linear
from jattn.nn.short_convolution import short_convolution
from jattn.typing import Array, Float, PyTree, at_least_float32

MIXES = ('r', 'w', 'k', 'v', 'a', 'g')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RWKV7Recipe:
    """The layer of RWKV-7.

    Attributes:
        rank: of the low-rank maps of w, a, v and g.
    """

    rank: int = 32
    # What the standard recipe has and this one does not.
    key_groups = None
    normaliser = False
    complement_keys = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f'recipe.rank={self.rank} must be at least 1')

    def read_in(self, cfg: Any) -> nn.Module:
        """The module `(x, rows, context, tails, place) -> tokens, tails`."""
        return ReadIn(cfg, name='read')

    def read_out(self, cfg: Any) -> nn.Module:
        """The module `(x, y, tokens) -> z`."""
        return ReadOut(cfg, name='write')

    def init_tails(self, cfg: Any, batch: int, dtype: jnp.dtype) -> PyTree:
        """The last token's input."""
        return jnp.zeros((batch, 1, cfg.require_width()), dtype)

    def groups(self, cfg: Any) -> int:
        """Sets of q and k."""
        return cfg.heads

    def tiny(self) -> 'RWKV7Recipe':
        """The same with a small rank."""
        return dataclasses.replace(self, rank=min(self.rank, 4))


class ReadIn(nn.Module):
    """From x [B, T, D] to the tokens of the memory."""

    cfg: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'B T D'],
        rows: Rows,
        context: Context,
        tails: PyTree,
        place: Array,
        values_only: bool = False,
    ) -> tuple[Tokens, PyTree] | Float[Array, 'B T H V']:
        """The tokens and the new tails; with `values_only` the layer's own values before anything is mixed in."""
        del place
        shifted, tails = token_shift(x, rows, tails)
        mixes = self.param(
            'mixes', nn.with_logical_partitioning(nn.initializers.uniform(1.0), ('mix', 'channel')), (6, x.shape[-1])
        ).astype(x.dtype)
        of = {c: x + (shifted - x) * mixes[n][None, None] for n, c in enumerate(MIXES)}
        own = self._project(of['v'], 'v_proj')
        if values_only:
            return own
        r, k = (self._project(of[c], f'{c}_proj') for c in 'rk')
        v = self._value(of['v'], own, context)
        wide = at_least_float32(x)
        log_decay = -self.cfg.gates.decay.bound * jax.nn.sigmoid(
            self._low_rank(of['w'], 'w', jnp.tanh, -2.0).astype(wide)
        )
        a = jax.nn.sigmoid(self._low_rank(of['a'], 'a', _same).astype(wide))
        erased = k.astype(wide) * self._channels('k_k', 1.0)
        erased *= jax.lax.rsqrt(jnp.sum(jnp.square(erased), axis=-1, keepdims=True) + 1e-6)
        k = k.astype(wide) * (1 + (a - 1) * self._channels('k_a', 1.0))
        bonus = jnp.sum(r.astype(wide) * k * self._channels('r_k', 0.1), axis=-1, keepdims=True)
        tokens = Tokens(
            q=r,
            k=k.astype(x.dtype),
            v=v,
            step=jnp.ones(k.shape[:3], wide),
            log_decay=log_decay,
            erase=(erased.astype(x.dtype), (erased * a).astype(x.dtype)),
            extra={'bonus': bonus * v.astype(wide), 'gate': self._gate(of['g'])},
        )
        return tokens, tails

    def _value(self, x: Array, own: Array, context: Context) -> Array:
        """The own values, moved towards the first layer's where the context has them."""
        share = jax.nn.sigmoid(self._low_rank(x, 'v', _same, 1.0))
        first = own if context.first_value is None else context.first_value.astype(own.dtype)
        return own + (first - own) * share

    def _project(self, x: Array, name: str) -> Array:
        return Linear((self.cfg.heads, self.cfg.keys), ('embed', 'heads', 'head'), name=name)(x)

    def _low_rank(self, x: Array, name: str, inner: Any, bias: float = 0.0) -> Array:
        low = inner(Linear((self.cfg.recipe.rank,), ('embed', 'rank'), name=f'{name}_down_proj')(x))
        shape = (self.cfg.heads, self.cfg.keys)
        return Linear(shape, ('rank', 'heads', 'head'), name=f'{name}_up_proj')(low) + self._channels(
            f'{name}_bias', bias
        )

    def _gate(self, x: Array) -> Array:
        low = jax.nn.sigmoid(Linear((self.cfg.recipe.rank,), ('embed', 'rank'), name='g_down_proj')(x))
        return Linear((self.cfg.heads, self.cfg.keys), ('rank', 'heads', 'head'), name='g_up_proj')(low)

    def _channels(self, name: str, value: float) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.constant(value), ('heads', 'head'))
        return self.param(name, init, (self.cfg.heads, self.cfg.keys), jnp.float32)[None, None]


class ReadOut(nn.Module):
    """From the reads y [B, T, H, V] to what the output projection takes."""

    cfg: Any

    @nn.compact
    def __call__(self, x: Float[Array, 'B T D'], y: Float[Array, 'B T H V'], tokens: Tokens) -> Float[Array, 'B T H V']:
        shape = (self.cfg.heads, self.cfg.values)
        ones = nn.with_logical_partitioning(nn.initializers.ones, ('heads', 'head'))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('heads', 'head'))
        scale, shift = self.param('norm_scale', ones, shape), self.param('norm_shift', zeros, shape)
        y = y.astype(at_least_float32(x))
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-5 * self.cfg.keys)
        y = y * scale[None, None] + shift[None, None] + tokens.extra['bonus']
        return y.astype(x.dtype) * tokens.extra['gate']


def token_shift(x: Float[Array, 'B T D'], rows: Rows, tail: PyTree) -> tuple[Float[Array, 'B T D'], PyTree]:
    """The document's token before each one (zeros before the first), and the new tail."""
    back_one = jnp.zeros((2, x.shape[-1]), x.dtype).at[0].set(1)
    return short_convolution(x, back_one, rows, tail)


def _same(x: Array) -> Array:
    return x
