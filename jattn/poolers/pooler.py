"""What every pooler is: a frozen config that makes a linen module, from the tokens of a row to one vector.

    cfg = EfficientProbingConfig(width=128, queries=8)
    pooler = cfg.make()                                 # a linen module with the single field `cfg`
    vec, maps = pooler(tokens, context)                 # tokens [B, T, D] -> vec [B, F], maps [B, Q, T] or None

A row holds exactly one document: `context.segments` is 0 for padding, which may stand anywhere and changes nothing,
whatever its values. Without segments all tokens are real. A map is a distribution over the real tokens of a row: its
numbers are not negative, sum to 1, and are 0 on padding. Poolers have no state.

The functions below are what poolers share. Scores are turned into maps, and tokens averaged, in float32 at least.
"""

import abc
import dataclasses
from typing import ClassVar, Self

import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, locate
from jattn.ops.softmax_attention.reference import attend, attention_pattern, attention_scores
from jattn.typing import Array, Bool, Float, at_least_float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolerConfig(abc.ABC):
    """The base of every pooler's config: frozen, hashable, keyword-only; `make()` gives the linen module.

    Attributes:
        width: D, of the tokens; the trunk fills it in.
        ordered: whether the order of the tokens counts. A class constant.
    """

    ordered: ClassVar[bool] = False

    width: int | None = None

    @property
    def vector_size(self) -> int:
        """F."""
        return self.require_width()

    @property
    def maps(self) -> int:
        """Q, the number of maps; 0: the pooler has none."""
        return 0

    @abc.abstractmethod
    def make(self, **flax_kwargs: object) -> nn.Module:
        """The linen module; call it inside the parent's block, so that its parameters are filed there."""

    def tiny(self) -> Self:
        """A copy of width 32 that keeps the entry's choices, for tests."""
        return dataclasses.replace(self, width=32)

    def require_width(self) -> int:
        """The width, or an error that says who should have set it."""
        if self.width is None:
            raise ValueError(f'{type(self).__name__}.width is None: the trunk fills it in; alone, give it yourself')
        return self.width


def real_tokens(tokens: Float[Array, 'B T D'], context: Context) -> tuple[Float[Array, 'B T D'], Bool[Array, 'B T']]:
    """The tokens with zeros in place of padding, and which are real.

    >>> tokens, real = real_tokens(jnp.array([[[5.0], [jnp.nan]]]), Context(segments=jnp.array([[1, 0]])))
    >>> tokens.tolist(), real.tolist()
    ([[[5.0], [0.0]]], [[True, False]])
    """
    segments = locate(context, tokens.shape[:2]).segments
    if segments is None:
        return tokens, jnp.ones(tokens.shape[:2], bool)
    real = segments > 0
    return jnp.where(real[:, :, None], tokens, 0), real


def mean_over_tokens(tokens: Float[Array, 'B T D'], real: Bool[Array, 'B T']) -> Float[Array, 'B D']:
    """The mean of the real tokens; 0 where a row has none.

    >>> mean_over_tokens(jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([[True, True, False]])).tolist()
    [[2.0]]
    """
    wide = at_least_float32(tokens)
    total = jnp.sum(jnp.where(real[:, :, None], tokens, 0), axis=1, dtype=wide)
    return (total / jnp.maximum(jnp.sum(real, axis=1, dtype=wide), 1)[:, None]).astype(tokens.dtype)


def softmax_over_tokens(scores: Float[Array, 'B T Q'], real: Bool[Array, 'B T']) -> Float[Array, 'B Q T']:
    """Q maps from the scores of each token.

    >>> softmax_over_tokens(jnp.zeros((1, 3, 1)), jnp.array([[True, False, True]])).tolist()
    [[[0.5, 0.0, 0.5]]]
    """
    scores = jnp.swapaxes(scores, 1, 2).astype(at_least_float32(scores))
    return attention_pattern(scores[:, :, None], real[:, None])[:, :, 0]


def mixed(maps: Float[Array, 'B Q T'], values: Float[Array, 'B T G V']) -> Float[Array, 'B F']:
    """The means of the values under the maps, side by side: F = Q V; map q reads the values of head q // (Q // G).

    >>> mixed(jnp.array([[[1.0, 0.0], [0.0, 1.0]]]), jnp.array([[[[1.0]], [[2.0]]]])).tolist()
    [[1.0, 2.0]]
    """
    return attend(maps[:, :, None], values).reshape(len(maps), -1)


def attend_few(
    q: Float[Array, 'B N H K'], k: Float[Array, 'B T G K'], v: Float[Array, 'B T G V'], real: Bool[Array, 'B T']
) -> tuple[Float[Array, 'B N H V'], Float[Array, 'B Q T']]:
    """Softmax attention of N queries to the real tokens: what their heads read, and the Q = H N maps, heads first.

    >>> x = jnp.array([[[[1.0]], [[3.0]]]])
    >>> z, maps = attend_few(jnp.zeros((1, 1, 1, 1)), x, x, jnp.ones((1, 2), bool))
    >>> z.tolist(), maps.tolist()
    ([[[[2.0]]]], [[[0.5, 0.5]]])
    """
    seen = real[:, None]
    pattern = attention_pattern(attention_scores(q, k, seen), seen)
    return attend(pattern, v), pattern.reshape(len(q), -1, k.shape[1])


def absorb_keys(q: Float[Array, 'B N H K'], kernel: Float[Array, 'D G K']) -> Float[Array, 'B N H D']:
    """Queries that read the tokens themselves: u_h = sqrt(D / K) W_K^h q_h, so that u . x / sqrt(D) = q . k / sqrt(K).

    Keys of every token cost T D^2 operations, these N D^2 and then N H D a token: less where N H < D.

    >>> absorb_keys(jnp.array([[[[3.0]]]]), jnp.ones((4, 1, 1))).tolist()
    [[[[6.0, 6.0, 6.0, 6.0]]]]
    """
    grouped = q.reshape(*q.shape[:2], kernel.shape[1], -1, q.shape[3])
    u = jnp.einsum('bngrk,dgk->bngrd', grouped, kernel.astype(q.dtype)) * (len(kernel) / q.shape[3]) ** 0.5
    return u.reshape(*q.shape[:3], -1)


def project_means(z: Float[Array, 'B N H D'], kernel: Float[Array, 'D G V']) -> Float[Array, 'B N H V']:
    """Values of the means in place of means of the values: z_h = W_V^h (sum_t a_ht x_t).

    >>> project_means(jnp.array([[[[1.0, 2.0]]]]), jnp.array([[[1.0]], [[10.0]]])).tolist()
    [[[[21.0]]]]
    """
    grouped = z.reshape(*z.shape[:2], kernel.shape[1], -1, z.shape[3])
    return jnp.einsum('bngrd,dgv->bngrv', grouped, kernel.astype(z.dtype)).reshape(*z.shape[:3], -1)


def scale_norm(x: Float[Array, '... D'], epsilon: float, name: str) -> Float[Array, '... D']:
    """LayerNorm with a scale and no bias; call it in a compact method.

    A bias before keys moves all scores of a query alike, and the softmax does not see it.
    """
    ones = nn.with_logical_partitioning(nn.initializers.ones, ('embed',))
    return nn.LayerNorm(epsilon, dtype=x.dtype, use_bias=False, scale_init=ones, use_fast_variance=False, name=name)(x)


def learned_queries(module: nn.Module, count: int, scale: float) -> Float[Array, 'N D']:
    """The parameter `queries`, normal of deviation `scale`; call it in a compact method."""
    init = nn.with_logical_partitioning(nn.initializers.normal(scale), ('queries', 'embed'))
    return module.param('queries', init, (count, module.cfg.require_width()), jnp.float32)
