"""Projections: one linear map over any number of input and output axes, its kernel named by logical axes.

The names of a kernel's axes decide how it is sharded (`training/partition.py`) and how it is optimised
(`training/optimizer.py`: a kernel whose first or last axis is 'embed' is a matrix, for Muon and weight decay):

    embed   the model's width D        heads, head   heads and their channels
    vocab   tokens of a vocabulary     mlp           hidden units
"""

from collections.abc import Callable

import jax
from flax import linen as nn

from jattn.typing import Array, Float

# Variance 1 / fan-in over all input axes (LeCun): outputs as large as inputs.
Initializer = Callable[..., jax.Array]


def lecun_normal(in_axes: int, scale: float = 1.0) -> Initializer:
    """Truncated normal of variance scale / fan-in, where the first `in_axes` axes of the kernel are the inputs."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.numpy.dtype) -> jax.Array:
        inputs = tuple(range(in_axes))
        outputs = tuple(range(in_axes, len(shape)))
        return nn.initializers.variance_scaling(scale, 'fan_in', 'truncated_normal', inputs, outputs)(key, shape, dtype)

    return init


class HeadKernels(nn.Module):
    """The parameters of a `Linear` from the width to heads, for one that applies them in another order.

    Attributes:
        features: (H, K).
        use_bias: whether there is a bias.

    >>> (kernel, bias), _ = HeadKernels((4, 8)).init_with_output(jax.random.key(0), 16)
    >>> kernel.shape, bias
    ((16, 4, 8), None)
    """

    features: tuple[int, int]
    use_bias: bool = False

    @nn.compact
    def __call__(self, width: int) -> tuple[Float[Array, 'D H K'], Float[Array, 'H K'] | None]:
        init = nn.with_logical_partitioning(lecun_normal(1), ('embed', 'heads', 'head'))
        kernel = self.param('kernel', init, (width, *self.features), jax.numpy.float32)
        if not self.use_bias:
            return kernel, None
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('heads', 'head'))
        return kernel, self.param('bias', zeros, self.features, jax.numpy.float32)


class Linear(nn.Module):
    """y[..., out] = sum_in x[..., in] kernel[in, out] (+ bias[out]).

    Attributes:
        features: sizes of the output axes.
        axes: logical names of all the kernel's axes, inputs first; len(axes) - len(features) input axes are contracted.
        use_bias: whether to add a bias over the output axes.
        init: the kernel's initialiser; None: `lecun_normal` over the input axes.

    >>> import jax.numpy as jnp
    >>> split_heads = Linear((4, 8), ('embed', 'heads', 'head'))
    >>> y, variables = split_heads.init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> y.shape, nn.unbox(variables)['params']['kernel'].shape
    ((2, 5, 4, 8), (16, 4, 8))
    """

    features: tuple[int, ...]
    axes: tuple[str, ...]
    use_bias: bool = False
    init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
        contracted = len(self.axes) - len(self.features)
        shape = (*x.shape[x.ndim - contracted :], *self.features)
        init = nn.with_logical_partitioning(self.init or lecun_normal(contracted), self.axes)
        kernel = self.param('kernel', init, shape, jax.numpy.float32).astype(x.dtype)
        y = jax.lax.dot_general(
            x, kernel, ((tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted))), ((), ()))
        )
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[contracted:])
            bias = self.param('bias', zeros, self.features, jax.numpy.float32).astype(x.dtype)
            y = y + bias.reshape(*[1] * (y.ndim - bias.ndim), *bias.shape)
        return y
