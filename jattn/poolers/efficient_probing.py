"""Efficient probing (Psomas et al. 2025, Attention, Please!): several queries, each of which fills its slice.

    A_jt = softmax_t(u_j . x_t / sqrt(D))        z_j = sum_t A_jt V_j x_t        vec = [z_1, ..., z_Q], D' = D / d_out

The tokens themselves are the keys, in their full width for every query: multi-head attention pooling with W_Q, W_K and
W_O absorbed, where u_j is what W_K^j q^j / sqrt(K) was. V_j are slices of one D x D' map: query j never reads another
slice. Q D + D D' parameters in place of 4 D^2. Tokens are not normalised; what follows is (`probe.py`). That queries
look at different parts is emergent: there is no loss for it.

The authors map every token to its values, in O(T D (Q + D')); here the mean comes first, z_j = V_j sum_t A_jt x_t, in
O(T D Q + D D'): the same numbers.

As the authors advise, put a class token among the tokens only where the encoder's objective trained it; choosing by
test score is leakage.
"""

import dataclasses
from typing import Self

import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, divide
from jattn.nn.linear import lecun_normal
from jattn.poolers.pooler import PoolerConfig, attend_few, learned_queries, real_tokens
from jattn.typing import Array, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientProbingConfig(PoolerConfig):
    """Efficient probing.

    Attributes:
        queries: Q; they divide D'.
        d_out: D / D'; above 1 it shrinks the value map and the classifier together.

    >>> import jax
    >>> cfg = EfficientProbingConfig(width=16, queries=4, d_out=2)
    >>> (vec, maps), variables = cfg.make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape, sum(leaf.size for leaf in jax.tree.leaves(variables)) == 4 * 16 + 16 * 8
    ((2, 8), (2, 4, 5), True)
    """

    queries: int = 32
    d_out: int = 1

    @property
    def vector_size(self) -> int:
        return divide('width', self.require_width(), 'd_out', self.d_out)

    @property
    def maps(self) -> int:
        return self.queries

    def make(self, **flax_kwargs: object) -> nn.Module:
        return EfficientProbing(self, **flax_kwargs)

    def tiny(self) -> Self:
        return dataclasses.replace(super().tiny(), queries=min(self.queries, 4))


class EfficientProbing(nn.Module):
    """The module of `EfficientProbingConfig`."""

    cfg: EfficientProbingConfig

    @nn.compact
    def __call__(
        self, tokens: Float[Array, 'B T D'], context: Context = Context()
    ) -> tuple[Float[Array, 'B F'], Float[Array, 'B Q T']]:
        cfg = self.cfg
        slices = (cfg.queries, divide('width / d_out', cfg.vector_size, 'queries', cfg.queries))
        tokens, real = real_tokens(tokens, context)
        queries = learned_queries(self, cfg.queries, 0.02).astype(tokens.dtype)
        init = nn.with_logical_partitioning(lecun_normal(1), ('embed', 'heads', 'head'))
        values = self.param('values', init, (cfg.width, *slices), jnp.float32).astype(tokens.dtype)
        # Queries are heads that share one key, the token: `attend_few` scales by the key's width, sqrt(D).
        q = jnp.broadcast_to(queries[None, None], (len(tokens), 1, *queries.shape))
        z, maps = attend_few(q, tokens[:, :, None], tokens[:, :, None], real)
        return jnp.einsum('bqd,dqv->bqv', z[:, 0], values).reshape(len(z), -1), maps
