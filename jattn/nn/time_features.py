"""A time as a vector: sines and cosines of frequencies that grow geometrically."""

import jax.numpy as jnp

from jattn.typing import Array, Float


def time_features(times: Float[Array, 'B'], size: int, slowest: float = 1.0, fastest: float = 1000.0) -> Array:
    """Times as vectors [B, 1, size], one token of a condition each.

    >>> time_features(jnp.array([0.0]), 4).tolist()
    [[[0.0, 0.0, 1.0, 1.0]]]
    """
    if size < 2 or size % 2:
        raise ValueError(f'time_features: size={size} must be even and at least 2')
    angles = times[:, None] * jnp.geomspace(slowest, fastest, size // 2)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, None]
