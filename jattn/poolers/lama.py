"""LAMA (Mehta et al. 2019, Low Rank Factorization for Compact Multi-Head Self-Attention): many maps from one query.

    f_it  = tanh(sum_r (p_ir . c)(q_ir . x_t))        tanh of the product, for each of H heads
    f_t  <- f_t / ||f_t||                             over the heads of a token
    A_it  = softmax_t(f_it / temperature)             over the tokens of a head
    vec   = W_o [sum_t A_1t x_t, ..., sum_t A_Ht x_t]

A bilinear affinity c^T W_i x_t costs H D^2; here W_i = sum_r p_ir q_ir^T has rank r = 1. c is the mean of the tokens
(`mean`, the authors' LAMA + ctx), a free vector (`learned`), or what the caller hands in (`given`).

|f| <= 1, so that at temperature 1, as published, two weights of a map differ at most by e^2 and no map of a long row is
sharp; a lower or learned temperature is ours. A single head has f = 1 or -1: two weights, no gradient. The public code
divides by ||f_t|| unguarded, 0 / 0 for a token of zeros; ours is at least 1e-6. Flipping p_i and q_i together changes
nothing. Parameters 2 r D H (+ D), against 4 D^2 of attention; W_o has H D F, and dominates.
"""

import dataclasses
import math
from typing import Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.nn.linear import Linear
from jattn.poolers.pooler import PoolerConfig, mean_over_tokens, mixed, real_tokens, softmax_over_tokens
from jattn.typing import Array, Float, at_least_float32

QUERIES = ('mean', 'learned', 'given')
LEAST_NORM = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMAConfig(PoolerConfig):
    """LAMA.

    Attributes:
        heads: H, at least 2 to learn anything.
        rank: r, of a head's affinity.
        query: c: 'mean', 'learned', or 'given' as the module's third argument.
        temperature: of the softmax; 1 as published.
        learn_temperature: whether its logarithm is a parameter that starts there.
        project: whether W_o stands; else the heads' means are the vector, side by side.
        output_size: F, what W_o maps to; None: the width.

    >>> cfg = LAMAConfig(width=16, heads=4)
    >>> (vec, maps), _ = cfg.make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape, dataclasses.replace(cfg, project=False).vector_size
    ((2, 16), (2, 4, 5), 64)
    """

    heads: int = 8
    rank: int = 1
    query: str = 'mean'
    temperature: float = 1.0
    learn_temperature: bool = False
    project: bool = True
    output_size: int | None = None

    def __post_init__(self) -> None:
        if self.query not in QUERIES:
            raise ValueError(f'query={self.query!r} must be one of {QUERIES}')
        if self.temperature <= 0:
            raise ValueError(f'temperature={self.temperature} must be positive')
        if self.output_size is not None and not self.project:
            raise ValueError(f'output_size={self.output_size} is that of W_o, but project is False')

    @property
    def vector_size(self) -> int:
        width = self.require_width()
        return (self.output_size or width) if self.project else self.heads * width

    @property
    def maps(self) -> int:
        return self.heads

    def make(self, **flax_kwargs: object) -> nn.Module:
        return LAMA(self, **flax_kwargs)

    def tiny(self) -> Self:
        return dataclasses.replace(super().tiny(), heads=min(self.heads, 4))


class LAMA(nn.Module):
    """The module of `LAMAConfig`: `vec, maps = lama(tokens, context, query)`."""

    cfg: LAMAConfig

    @nn.compact
    def __call__(
        self, tokens: Float[Array, 'B T D'], context: Context = Context(), query: Float[Array, 'B D'] | None = None
    ) -> tuple[Float[Array, 'B F'], Float[Array, 'B H T']]:
        cfg = self.cfg
        if (query is not None) != (cfg.query == 'given'):
            raise ValueError(f"lama: query={cfg.query!r}; a query is handed in with 'given', and only then")
        tokens, real = real_tokens(tokens, context)
        if query is None:
            query = mean_over_tokens(tokens, real) if cfg.query == 'mean' else self._learned_query(tokens)
        # As the public code draws them: torch takes the fan of its D x H arrays to be H.
        shape, init = (cfg.heads, cfg.rank), _uniform(cfg.heads**-0.5)
        p, q = (
            Linear(shape, ('embed', 'heads', 'rank'), init=init, name=f'{name}_proj')(x.astype(tokens.dtype))
            for name, x in (('p', query[:, None]), ('q', tokens))
        )
        scores = normalized_scores(p, q)
        if cfg.learn_temperature:
            start = nn.with_logical_partitioning(nn.initializers.constant(math.log(cfg.temperature)), ())
            scores = scores * jnp.exp(-self.param('log_temperature', start, (), jnp.float32))
        else:
            scores = scores / cfg.temperature
        maps = softmax_over_tokens(scores, real)
        vec = mixed(maps, tokens[:, :, None])
        if cfg.project:
            heads = vec.reshape(len(vec), cfg.heads, -1)
            vec = Linear((cfg.vector_size,), ('heads', 'head', 'embed'), name='o_proj')(heads)
        return vec, maps

    def _learned_query(self, tokens: Float[Array, 'B T D']) -> Float[Array, '1 D']:
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('embed',))
        return self.param('query', init, tokens.shape[-1:], jnp.float32)[None]


def normalized_scores(p: Float[Array, 'B 1 H r'], q: Float[Array, 'B T H r']) -> Float[Array, 'B T H']:
    """f, of length 1 over the heads of every token; 0 where all products are.

    >>> f = normalized_scores(jnp.ones((1, 1, 2, 1)), jnp.array([[[[1.0], [-1.0]], [[0.0], [0.0]]]]))
    >>> (f * jnp.abs(f)).round(4).tolist()
    [[[0.5, -0.5], [0.0, 0.0]]]
    """
    f = jnp.tanh(jnp.sum(p * q, axis=-1, dtype=at_least_float32(p, q)))
    # The guard stands under the root: a norm of 0 has no gradient there.
    return f / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(f), axis=-1, keepdims=True), LEAST_NORM**2))


def _uniform(bound: float) -> nn.initializers.Initializer:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
