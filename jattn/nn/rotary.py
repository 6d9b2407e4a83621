"""Rotary position embedding (Su et al. 2021): a head's channels as K/2 planes, each turned by position * frequency.

The halves form the planes (channel i with channel i + K/2), as in GPT-NeoX and Llama checkpoints; the paper pairs
neighbours, which is the same map up to a permutation of the channels.
"""

import jax.numpy as jnp

from jattn.typing import Array, Float, Int32, at_least_float32, axis_sizes


def rotate(x: Float[Array, 'B T H K'], positions: Int32[Array, '*B T'], base: float = 10_000.0) -> Array:
    """Turns plane i of x at position p by the angle p * base^(-2i/K); scores then depend on q's minus k's position.

    Args:
        x: queries or keys; K must be even.
        positions: [B, T], or [1, T] shared by the rows.
        base: theta; the slowest plane turns once in about 2 pi base tokens.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> rotate(x, jnp.array([[1]]))[0, 0, 0].round(3)     # cos 1, sin 1
    Array([0.54 , 0.841], dtype=float32)
    """
    channels = axis_sizes('rotate', x=(x, 'B T H K'))['K']
    if channels % 2:
        raise ValueError(f'rotate: head_dim={channels} must be even')
    dtype = at_least_float32(x)
    frequency = base ** (-jnp.arange(0, channels, 2, dtype=dtype) / channels)
    angle = positions[..., None, None].astype(dtype) * frequency.reshape(1, 1, 1, -1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
