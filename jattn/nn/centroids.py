"""Running clusters of vectors, shared by all devices: their means follow the tokens that join them (online k-means).

    N <- decay N + (1 - decay) N_batch      M <- decay M + (1 - decay) M_batch      mu_c = M_c / N'_c
    N'_c = N_tot (N_c + e) / (N_tot + C e)

N counts a step's tokens of a cluster, M is their sum. Without a decay the means are those of the batch. A cluster that
no token joins stays where it is until its count has decayed to e = 1e-5; then it shrinks to 0.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jattn.contract import Context
from jattn.nn.side_channels import batch_sum
from jattn.typing import Array, Float, Int32, at_least_float32

EPSILON = 1e-5  # of the smoothed counts


@struct.dataclass
class Centroids:
    """The running clusters of H heads.

    Attributes:
        counts: N [H, C], tokens a step.
        sums: M [H, C, K], their sum.
    """

    counts: Float[Array, 'H C']
    sums: Float[Array, 'H C K']

    def means(self) -> Float[Array, 'H C K']:
        """mu; the smoothing keeps the total and what no token joins.

        >>> Centroids(jnp.array([[2.0, 2.0]]), jnp.array([[[6.0], [8.0]]])).means().tolist()
        [[[3.0], [4.0]]]
        """
        total = jnp.sum(self.counts, axis=-1, keepdims=True)
        smoothed = (self.counts + EPSILON) / (total + self.counts.shape[-1] * EPSILON) * total
        return self.sums / smoothed[..., None]

    def moved(
        self, q: Float[Array, 'B T H K'], joined: Float[Array, 'B T H C'], decay: float, context: Context
    ) -> 'Centroids':
        """After a step in which every real token joins one cluster, on all devices."""
        if context.segments is not None:
            joined = joined * (context.segments > 0)[..., None, None]
        sums = jnp.einsum('bthc,bthk->hck', joined, q.astype(jnp.float32))
        own = batch_sum(Centroids(jnp.sum(joined, axis=(0, 1)), sums), context)
        return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, self, own)


def layer_norm(x: Float[Array, '... K']) -> Float[Array, '... K']:
    """To mean 0 and length sqrt(K), in float32 at least."""
    x = x.astype(at_least_float32(x))
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def distances(
    q: Float[Array, 'B T H K'], mu: Float[Array, 'H C K'], cluster: Int32[Array, 'B T H']
) -> Float[Array, 'B T H']:
    """The mean over channels of (q - mu)^2, mu that of the token's cluster."""
    own = mu[jnp.arange(mu.shape[0])[None, None], cluster]
    return jnp.mean(jnp.square(q - own), axis=-1)
