"""Norms that memories differentiate: their gradient at 0 is 0, and no power overflows or underflows on the way.

Everything is measured in units of the largest entry. The unit is a constant: no choice of it changes a value or a
gradient.
"""

import jax.numpy as jnp
from jax import lax

from jattn.typing import Array, Float


def row_norm(x: Float[Array, '... N']) -> Float[Array, '... 1']:
    """The Euclidean norm over the last axis.

    >>> row_norm(jnp.array([[3e30, 4e30], [0.0, 0.0]])).tolist() == [[float(jnp.float32(5e30))], [0.0]]
    True
    """
    unit = _unit(x, axis=-1)
    square = jnp.sum(jnp.square(x / unit), axis=-1, keepdims=True)
    return jnp.where(square > 0, unit * jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def row_direction(x: Float[Array, '... N']) -> Float[Array, '... N']:
    """x / norm(x) over the last axis, 0 where x = 0.

    >>> row_direction(jnp.array([[0.0, 4e30], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    scaled = x / _unit(x, axis=-1)
    square = jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(square > 0, square, 1))


def lq_norm(x: Float[Array, '...'], q: float) -> Float[Array, '']:
    """(sum abs(x)^q)^(1/q) over all entries, q > 1.

    >>> lq_norm(jnp.array([[3e30, -4e30]]), 2.0).item() == float(jnp.float32(5e30))
    True
    """
    unit = _unit(x, axis=None)
    power = jnp.sum(jnp.abs(x / unit) ** q)
    return jnp.where(power > 0, jnp.squeeze(unit) * jnp.where(power > 0, power, 1) ** (1 / q), 0)


def lq_direction(x: Float[Array, '...'], q: float) -> Float[Array, '...']:
    """x / lq_norm(x), 0 where x = 0.

    >>> lq_direction(jnp.array([0.0, -4e30]), 4.0).tolist()
    [0.0, -1.0]
    """
    scaled = x / _unit(x, axis=None)
    size = lq_norm(scaled, q)
    return scaled / jnp.where(size > 0, size, 1)


def _unit(x: Array, axis: int | None) -> Array:
    """The largest size, or 1; with the rank of x."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    return jnp.where(largest > 0, largest, 1)
