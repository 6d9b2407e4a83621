"""The largest entry, with a gradient that is finite in every compiled program.

The gradient of `jnp.max` asks once more which entries equal the largest and divides by their number. Where the compiler
has computed the entries again, and rounded them another way, none does, and the gradient is 0 / 0.
"""

import jax.numpy as jnp

from jattn.typing import Array, Float


def largest(x: Float[Array, '...'], axis: int = -1) -> Float[Array, '...']:
    """max_i x_i; the gradient is that of the first of the largest.

    >>> import jax
    >>> jax.value_and_grad(largest)(jnp.array([1.0, 3.0, 3.0]))
    (Array(3., dtype=float32), Array([0., 1., 0.], dtype=float32))
    """
    return jnp.squeeze(jnp.take_along_axis(x, jnp.argmax(x, axis=axis, keepdims=True), axis=axis), axis)
