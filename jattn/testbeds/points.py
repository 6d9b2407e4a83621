"""Points and labels in turn, the layout that the testbeds of functions in context share.

x_1  (y_1, 0, ..., 0)  x_2  (y_2, 0, ..., 0) ...        read at the places of the points, 0, 2, 4, ...
"""

import jax.numpy as jnp

from jattn.typing import Array, Float


def interleave(x: Float[Array, 'B S F'], y: Float[Array, 'B S']) -> Float[Array, 'B 2*S F']:
    """Tokens x_1, (y_1, 0, ...), x_2, (y_2, 0, ...), ...

    >>> interleave(jnp.array([[[1.0, -1.0], [-1.0, -1.0]]]), jnp.array([[1.0, -1.0]]))[0].tolist()
    [[1.0, -1.0], [1.0, 0.0], [-1.0, -1.0], [-1.0, 0.0]]
    """
    labels = jnp.pad(y[..., None], ((0, 0), (0, 0), (0, x.shape[-1] - 1)))
    return jnp.stack([x, labels], axis=2).reshape(len(x), -1, x.shape[-1])


def split_points(inputs: Float[Array, 'B T F']) -> tuple[Float[Array, 'B S F'], Float[Array, 'B S']]:
    """The inverse of `interleave`."""
    return inputs[:, ::2], inputs[:, 1::2, 0]


def at_points(values: Float[Array, 'B S']) -> Float[Array, 'B 2*S 1']:
    """Values of points, put at the tokens of their x; zeros at the labels."""
    return jnp.stack([values, jnp.zeros_like(values)], axis=-1).reshape(len(values), -1, 1)
