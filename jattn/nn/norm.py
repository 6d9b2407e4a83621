"""Normalisations over the last axis, computed in float32 and returned in the input's dtype."""

import jax.numpy as jnp
from flax import linen as nn

from jattn.typing import Array, Float, at_least_float32


class RMSNorm(nn.Module):
    """y = scale * x / sqrt(mean(x^2) + epsilon)   (Zhang and Sennrich 2019).

    Attributes:
        axis: the logical name of the normalised axis: 'embed' for the model's width, 'head' for a head's channels.

    >>> import jax
    >>> y, _ = RMSNorm().init_with_output(jax.random.key(0), jnp.array([[2.0, -2.0]]))
    >>> y.round(3)
    Array([[ 1., -1.]], dtype=float32)
    """

    epsilon: float = 1e-6
    axis: str = 'embed'

    @nn.compact
    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale = self.param('scale', ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(at_least_float32(x))
        y = wide * jnp.reciprocal(jnp.sqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon))
        return (y * scale.reshape(*[1] * (x.ndim - 1), -1)).astype(x.dtype)


class LayerNorm(nn.Module):
    """y = scale * (x - mean) / sqrt(variance + epsilon) + bias   (Ba et al. 2016).

    >>> import jax
    >>> y, _ = LayerNorm().init_with_output(jax.random.key(0), jnp.array([[1.0, 3.0]]))
    >>> y.round(3)
    Array([[-1.,  1.]], dtype=float32)
    """

    epsilon: float = 1e-6
    axis: str = 'embed'

    @nn.compact
    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        shape = (*[1] * (x.ndim - 1), x.shape[-1])
        ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
        scale = self.param('scale', ones, shape[-1:], jnp.float32)
        bias = self.param('bias', zeros, shape[-1:], jnp.float32)
        wide = x.astype(at_least_float32(x))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        y = centred * jnp.reciprocal(jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon))
        return (y * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


NORMS = {'rms': RMSNorm, 'layer': LayerNorm}
