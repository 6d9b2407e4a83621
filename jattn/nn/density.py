"""Weights from learned Gaussians around the mean of a group of numbers: density-adaptive attention (DAAM), its parts.

    z_k = (x - mu - delta_k) / s        g_k = exp(-z_k^2 / 2 c_k^2) / sqrt(2 pi c_k^2)        log a = sum_k log g_k

mu and s^2 are those of the group, s^2 unbiased (n - 1) plus 1e-8; delta is in units of x. A product of Gaussians is a
Gaussian: with Lambda = sum_k 1 / c_k^2 and m = sum_k delta_k / (c_k^2 Lambda), up to a factor that the group shares,

    a = exp(-Lambda (x - mu - m)^2 / 2 s^2)

so that after a softmax over the group any K is as K = 1. Widths are held as log c, which keeps 1 / c^2 finite.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from jattn.typing import Array, Bool, Float

VARIANCE_FLOOR = 1e-8
SMALLEST_SUM = 1e-8  # where the published division by the sum of the densities is clamped
NORMALISERS = ('softmax', 'clamped_product')


@struct.dataclass
class Gaussians:
    """K Gaussians for each group; the leading axes broadcast against those of the numbers.

    Attributes:
        offset: delta.
        log_width: log c.
        log_weight: of a mixture, the log of numbers that sum to 1 over K; None: the Gaussians are multiplied.
    """

    offset: Float[Array, '... K']
    log_width: Float[Array, '... K']
    log_weight: Float[Array, '... K'] | None = None


def collapse(gaussians: Gaussians) -> Gaussians:
    """The one Gaussian (K = 1) that a product is, up to a factor that the group shares.

    >>> one = collapse(Gaussians(jnp.array([1.0, 6.0]), jnp.log(jnp.array([1.0, 0.5]))))
    >>> one.offset.round(4).tolist(), jnp.exp(-2 * one.log_width).round(4).tolist()     # (1 + 4 * 6) / 5, 1 + 4
    ([5.0], [5.0])
    """
    log_precision = -2 * gaussians.log_width
    total = jax.nn.logsumexp(log_precision, axis=-1, keepdims=True)
    offset = jnp.einsum('...k,...k->...', jnp.exp(log_precision - total), gaussians.offset)
    return Gaussians(offset[..., None], -total / 2)


def moments(
    x: Float[Array, '...'], axis: int, where: Bool[Array, '...'] | None = None
) -> tuple[Float[Array, '...'], Float[Array, '...']]:
    """x - mu and 1 / s^2, over at least two numbers along an axis; both broadcast against x.

    >>> centred, inverse_variance = moments(jnp.array([-1.0, 0.0, 1.0, 2.0]), axis=0)
    >>> centred.tolist(), (1 / inverse_variance).round(4).tolist()
    ([-1.5, -0.5, 0.5, 1.5], [1.666...])
    """
    count = x.shape[axis] if where is None else jnp.sum(where, axis=axis, keepdims=True, dtype=x.dtype)
    centred = x - jnp.sum(x, axis=axis, keepdims=True, where=where) / count
    variance = jnp.sum(jnp.square(centred), axis=axis, keepdims=True, where=where) / (count - 1)
    return centred, 1 / (variance + VARIANCE_FLOOR)


def log_density(
    centred: Float[Array, '...'], inverse_variance: Float[Array, '...'], gaussians: Gaussians
) -> Float[Array, '...']:
    """log a of every number, K of them in memory for each: `collapse` a product where its factor does not matter."""
    gaussians = jax.tree.map(lambda x: x.reshape(*[1] * (centred.ndim + 1 - x.ndim), *x.shape), gaussians)
    squared = jnp.square(centred[..., None] - gaussians.offset) * inverse_variance[..., None]
    log_each = -squared * jnp.exp(-2 * gaussians.log_width) / 2 - gaussians.log_width - math.log(2 * math.pi) / 2
    if gaussians.log_weight is None:
        return jnp.sum(log_each, axis=-1)
    return jax.nn.logsumexp(log_each + gaussians.log_weight, axis=-1)


def normalise(log_a: Array, largest: Array, total: Array, form: str) -> Array:
    """a over its sum, given the group's largest log a and its sum of exp(log a - largest).

    'clamped_product' is as published: the densities themselves, over max(their sum, 1e-8). Where the clamp holds the
    weights sum to less than 1, with many narrow Gaussians to almost nothing.
    """
    if form == 'softmax':
        return jnp.exp(log_a - largest) / total
    return jnp.exp(log_a) / jnp.maximum(jnp.exp(largest) * total, SMALLEST_SUM)


def density_weights(
    x: Float[Array, '...'],
    gaussians: Gaussians,
    axis: int = -1,
    where: Bool[Array, '...'] | None = None,
    form: str = 'softmax',
) -> Float[Array, '...']:
    """The weights of groups that lie along an axis; 0 outside of `where`.

    >>> one = Gaussians(jnp.zeros(1), jnp.zeros(1))
    >>> (1000 * density_weights(jnp.array([-1.0, 0.0, 1.0, 2.0]), one)).round().tolist()
    [177.0, 323.0, 323.0, 177.0]
    """
    if gaussians.log_weight is None and form == 'softmax':
        gaussians = collapse(gaussians)
    log_a = log_density(*moments(x, axis, where), gaussians)
    if where is not None:
        log_a = jnp.where(where, log_a, -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(log_a, axis=axis, keepdims=True))
    total = jnp.sum(jnp.exp(log_a - largest), axis=axis, keepdims=True)
    return normalise(log_a, largest, total, form)


def layer_weights(
    hidden: Float[Array, 'B L T D'], offset: Float[Array, 'D'], width: Float[Array, 'D']
) -> Float[Array, 'B L 1 D']:
    """Per-feature weights of the layers of a frozen encoder ('v1' of the authors): exp(-z^2 / 2c), not normalised.

    z is that of the layer's mean over tokens among the layers; c enters as it is, not squared, and starts at 2. The
    heads of the authors are groups of layers: call it on each. The mix is `weights * hidden`.

    >>> layer_weights(jnp.ones((2, 3, 5, 4)), jnp.zeros(4), jnp.full(4, 2.0)).shape
    (2, 3, 1, 4)
    """
    centred, inverse_variance = moments(jnp.mean(hidden, axis=2), axis=1)
    squared = jnp.square(centred - offset[None, None]) * inverse_variance
    return jnp.exp(-squared / (2 * width[None, None]))[:, :, None]
