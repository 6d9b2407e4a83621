"""Poolers that are one softmax over the tokens: additive scores (structured, ABMILP), AIM, SimPool, CAE.

additive, ABMILP    a = softmax_t(w . act(W x_t + b))                   vec = sum_t a_t x_t
structured          A = softmax_t(W_2 act(W x_t)): H maps               vec = [sum_t A_1t x_t, ..., sum_t A_Ht x_t]
AIM                 a_h = softmax_t(u_h . W_k n(x_t) / sqrt(K))         vec = concat_h sum_t a_ht W_v n(x_t)
SimPool             a = softmax_t(W_q mean(x) . W_k n(x_t) / sqrt(D))   vec = sum_t a_t n(x_t)
CAE                 attention with all four projections of a learned token to n_k(x), n_v(x)

Additive: Bahdanau et al. 2015, where without a decoder no state enters the scores; structured: Lin et al. 2017; ABMILP:
Ilse et al. 2018; n is BatchNorm in AIM (El-Nouby et al. 2024) and LayerNorm in SimPool (Psomas et al. 2023) and CAE
(Chen et al. 2022). As in the code of paper 50, with two omissions that change no output: biases that move all scores
of a query alike, after which the softmax is the same (ABMILP's of the score, CAE's of the keys' LayerNorm).

W_k and W_v meet no token: W_k is absorbed into the query, W_v follows the mean. The numbers are the same, and with one
query a token costs 2 H D operations rather than 2 D^2.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, divide
from jattn.nn.largest import largest
from jattn.nn.linear import HeadKernels, Linear
from jattn.nn.norm import LayerNorm
from jattn.poolers.pooler import (
    PoolerConfig,
    absorb_keys,
    attend_few,
    learned_queries,
    mean_over_tokens,
    mixed,
    project_means,
    real_tokens,
    scale_norm,
    softmax_over_tokens,
)
from jattn.poolers.probe import BatchNorm
from jattn.typing import Array, Bool, Float, at_least_float32

ACTIVATIONS = {'tanh': jnp.tanh, 'relu': jax.nn.relu}
Pooled = tuple[Float[Array, 'B F'], Float[Array, 'B Q T']]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditiveConfig(PoolerConfig):
    """Additive attention.

    Attributes:
        heads: H, maps; their means stand side by side.
        hidden: units of the scores' layer; None: the width.
        activation: tanh or relu.
        use_bias: b, of the hidden units.

    >>> cfg = AdditiveConfig(width=16, heads=3)
    >>> (vec, maps), _ = cfg.make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape, cfg.vector_size
    ((2, 48), (2, 3, 5), 48)
    """

    heads: int = 1
    hidden: int | None = None
    activation: str = 'tanh'
    use_bias: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'activation={self.activation!r} must be one of {sorted(ACTIVATIONS)}')

    @property
    def vector_size(self) -> int:
        return self.heads * self.require_width()

    @property
    def maps(self) -> int:
        return self.heads

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Additive(self, **flax_kwargs)


class Additive(nn.Module):
    """The module of `AdditiveConfig`."""

    cfg: AdditiveConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> Pooled:
        cfg = self.cfg
        tokens, real = real_tokens(tokens, context)
        hidden = Linear((cfg.hidden or tokens.shape[-1],), ('embed', 'mlp'), cfg.use_bias, name='in_proj')(tokens)
        scores = Linear((cfg.heads,), ('mlp', 'heads'), name='score')(ACTIVATIONS[cfg.activation](hidden))
        maps = softmax_over_tokens(scores, real)
        return mixed(maps, tokens[:, :, None]), maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsConfig(PoolerConfig):
    """The base of poolers whose one query has several heads, a map each.

    Attributes:
        heads: H; they divide the width.
    """

    heads: int

    @property
    def channels(self) -> int:
        """K = V, the channels of a head."""
        return divide('width', self.require_width(), 'heads', self.heads)

    @property
    def maps(self) -> int:
        return self.heads

    def tiny(self) -> Self:
        return dataclasses.replace(super().tiny(), heads=min(self.heads, 4))

    def split(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T H K']:
        """Cut into heads."""
        return x.reshape(*x.shape[:2], self.heads, self.channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AIMConfig(HeadsConfig):
    """AIM: a query without projection, keys and values of normalised tokens, no output projection.

    Attributes:
        queries: N; their outputs are averaged.

    >>> cfg = AIMConfig(width=24, queries=2)
    >>> (vec, maps), _ = cfg.make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 24)))
    >>> vec.shape, maps.shape
    ((2, 24), (2, 24, 5))
    """

    heads: int = 12
    queries: int = 1

    @property
    def maps(self) -> int:
        return self.heads * self.queries

    def make(self, **flax_kwargs: object) -> nn.Module:
        return AIM(self, **flax_kwargs)


class AIM(nn.Module):
    """The module of `AIMConfig`."""

    cfg: AIMConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> Pooled:
        cfg = self.cfg
        tokens, real = real_tokens(tokens, context)
        tokens = BatchNorm(name='norm')(tokens, context)
        split, width = (cfg.heads, cfg.channels), tokens.shape[-1]
        (keys, _), (values, _) = (HeadKernels(split, name=f'{name}_proj')(width) for name in 'kv')
        queries = learned_queries(self, cfg.queries, 0.02).astype(tokens.dtype)
        q = absorb_keys(cfg.split(_for_every_row(queries, tokens)), keys)
        z, maps = attend_few(q, tokens[:, :, None], tokens[:, :, None], real)
        return jnp.mean(project_means(z, values), axis=1).reshape(len(z), -1), maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPoolConfig(HeadsConfig):
    """SimPool: the mean of the tokens asks.

    Attributes:
        linears: whether W_q and W_k stand; without them q = n(mean x), k = n(x_t), and the values are the tokens
            themselves (12 heads in paper 50).
        gamma: values are averaged as (sum_t a_t (v_t - min v + 1e-6)^gamma)^(1/gamma), with the least number of a row
            (the authors' code: of the batch); None: plainly, as in paper 50.

    >>> cfg = SimPoolConfig(width=16, gamma=1.25)
    >>> (vec, maps), _ = cfg.make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape
    ((2, 16), (2, 1, 5))
    """

    heads: int = 1
    linears: bool = True
    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.gamma is not None and self.gamma <= 0:
            raise ValueError(f'gamma={self.gamma} must be positive, or None for the plain mean')

    def make(self, **flax_kwargs: object) -> nn.Module:
        return SimPool(self, **flax_kwargs)


class SimPool(nn.Module):
    """The module of `SimPoolConfig`."""

    cfg: SimPoolConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> Pooled:
        cfg = self.cfg
        tokens, real = real_tokens(tokens, context)
        norm = LayerNorm(name='norm')
        query, normed = mean_over_tokens(tokens, real)[:, None], norm(tokens)
        if cfg.linears:
            split, width = (cfg.heads, cfg.channels), tokens.shape[-1]
            q = Linear(split, ('embed', 'heads', 'head'), name='q_proj')(query)
            q = absorb_keys(q, HeadKernels(split, name='k_proj')(width)[0])
            k, v = normed[:, :, None], cfg.split(normed)
        else:
            q, k, v = cfg.split(norm(query)), cfg.split(normed), cfg.split(tokens)
        if cfg.gamma is None:
            z, maps = attend_few(q, k, v, real)
        else:
            z, maps = attend_few(q, k, _powers(v, real, cfg.gamma), real)
            z = z ** (1 / cfg.gamma)
        return z.reshape(len(z), -1).astype(tokens.dtype), maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class CAEConfig(HeadsConfig):
    """CAE: attention of a learned token, without a feed-forward block.

    >>> (vec, maps), _ = CAEConfig(width=16).make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape
    ((2, 16), (2, 8, 5))
    """

    heads: int = 8

    def make(self, **flax_kwargs: object) -> nn.Module:
        return CAE(self, **flax_kwargs)


class CAE(nn.Module):
    """The module of `CAEConfig`."""

    cfg: CAEConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> Pooled:
        tokens, real = real_tokens(tokens, context)
        # It starts at 0, as published: the first maps are uniform.
        query = LayerNorm(1e-5, name='q_norm')(learned_queries(self, 1, 0.0).astype(tokens.dtype))
        keys = scale_norm(tokens, 1e-5, name='k_norm')
        values = LayerNorm(1e-5, name='v_norm')(tokens)
        attention = QueryAttention(self.cfg.heads, self.cfg.channels, use_bias=False, name='attention')
        y, maps = attention(_for_every_row(query, tokens), keys, values, real)
        return y[:, 0], maps


class QueryAttention(nn.Module):
    """Multi-head attention of a few queries to the tokens, with all four projections.

    Attributes:
        heads: H.
        channels: K = V.
        key_heads: G; None: H.
        use_bias: biases of queries and values; keys have none, since it would change no map.
        out_bias: a bias of the output.
    """

    heads: int
    channels: int
    key_heads: int | None = None
    use_bias: bool = True
    out_bias: bool = True

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, 'B N D'],
        keys: Float[Array, 'B T D'],
        values: Float[Array, 'B T D'],
        real: Bool[Array, 'B T'],
    ) -> tuple[Float[Array, 'B N D'], Float[Array, 'B Q T']]:
        q_split, axes = (self.heads, self.channels), ('embed', 'heads', 'head')
        k_split, width = (self.key_heads or self.heads, self.channels), keys.shape[-1]
        q = Linear(q_split, axes, self.use_bias, name='q_proj')(queries)
        q = absorb_keys(q, HeadKernels(k_split, name='k_proj')(width)[0])
        z, maps = attend_few(q, keys[:, :, None], values[:, :, None], real)
        kernel, bias = HeadKernels(k_split, self.use_bias, name='v_proj')(width)
        z = project_means(z, kernel)
        if bias is not None:  # the maps of a row sum to 1; without a token it reads 0
            seen = jnp.any(real, axis=1)[:, None, None, None]
            z = z + jnp.where(seen, jnp.repeat(bias, self.heads // len(bias), axis=0)[None, None], 0).astype(z.dtype)
        return Linear(queries.shape[-1:], ('heads', 'head', 'embed'), self.out_bias, name='o_proj')(z), maps


def _for_every_row(queries: Float[Array, 'N D'], tokens: Float[Array, 'B T D']) -> Float[Array, 'B N D']:
    return jnp.broadcast_to(queries[None], (len(tokens), *queries.shape))


def _powers(v: Float[Array, 'B T H V'], real: Bool[Array, 'B T'], gamma: float) -> Float[Array, 'B T H V']:
    """(v - min v + 1e-6)^gamma, 1 on padding; in float32, for bfloat16 has no 1e-6 beside 1."""
    v = v.astype(at_least_float32(v))
    seen = real[:, :, None, None]
    least = -largest(jnp.where(seen, -v, -jnp.inf).reshape(len(v), -1))
    return jnp.where(seen, v - least[:, None, None, None] + 1e-6, 1.0) ** gamma
