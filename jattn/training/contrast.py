"""A momentum copy of parameters, and long-short masked contrastive learning with it (LSMCL; Wang et al. 2023, S5).

    copy <- (1 - mu) copy + mu params                           after every step of the optimizer; no gradient
    loss = InfoNCE(f(masked short), f'(long)) + InfoNCE(f(masked long), f'(short))         f' is f with the copy

A long and a short clip of one video have equally many tokens. InfoNCE tells the pairs of a batch from all others:

    -mean_i log softmax_j(q_i . k_j / temperature)[i]           q and k of length 1

A function of synced parameters is the same on every device: update the copy after the gradients' all-reduce.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jattn.nn.losses import Mean, cross_entropy
from jattn.typing import Array, Float, Key, PyTree, at_least_float32, axis_sizes


def follow(copy: PyTree, params: PyTree, rate: float) -> PyTree:
    """The momentum copy after a step: `rate` (mu) of the way to the parameters.

    >>> float(follow(jnp.float32(0.0), jnp.float32(1.0), 0.25))
    0.25
    """
    return jax.tree.map(lambda old, new: old + rate * (jax.lax.stop_gradient(new) - old), copy, params)


def info_nce(queries: Float[Array, 'B F'], keys: Float[Array, 'B F'], temperature: float) -> Mean:
    """The cross-entropy of finding each query's own key among those of the batch; keys get no gradient.

    >>> x = jnp.eye(4)
    >>> round(float(info_nce(x, x, 0.1).value()), 6), round(float(jnp.log1p(3 * jnp.exp(-10.0))), 6)
    (0.000136, 0.000136)
    """
    axis_sizes('info_nce', queries=(queries, 'B F'), keys=(keys, 'B F'))
    queries, keys = (_unit(x) for x in (queries, jax.lax.stop_gradient(keys)))
    return cross_entropy(queries @ keys.T / temperature, jnp.arange(len(queries)))


def long_short_loss(
    encode: Callable[[PyTree, Array, Array], Float[Array, 'B F']],
    params: PyTree,
    copy: PyTree,
    long: Float[Array, 'B T F'],
    short: Float[Array, 'B T F'],
    key: Key,
    masked: float = 0.5,
    temperature: float = 0.1,
) -> Mean:
    """LSMCL of a batch of clips.

    Args:
        encode: (parameters, clip, which tokens [B, T] are shown) -> vectors.
        params, copy: what learns, and its momentum copy.
        long, short: clips of the same videos, row by row.
        key: of what is masked.
        masked: eta, the share of the queries' tokens that is masked.
        temperature: of the softmax.
    """
    everything = jnp.ones(long.shape[:2], bool)
    shown = jax.random.bernoulli(key, 1 - masked, (2, *everything.shape))
    keys = [jax.lax.stop_gradient(encode(copy, clip, everything)) for clip in (long, short)]
    queries = [encode(params, clip, own) for clip, own in zip((short, long), shown)]
    one, other = (info_nce(query, own, temperature) for query, own in zip(queries, keys))
    return Mean(one.total + other.total, one.count)


def _unit(x: Float[Array, 'B F']) -> Float[Array, 'B F']:
    """Rows of length 1; a row of zeros stays, with a finite gradient."""
    x = x.astype(at_least_float32(x))
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
