"""Rotary position embedding (Su et al. 2021): a head's channels as K/2 planes, each turned by position * frequency.

The halves form the planes (channel i with channel i + K/2), as in GPT-NeoX and Llama checkpoints; the paper pairs
neighbours, which is the same map up to a permutation of the channels.
"""

import dataclasses
import math

import jax.numpy as jnp

from jattn.typing import Array, Float, Int32, at_least_float32, axis_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Slower planes, so that a model reads longer rows than it was first trained on.

    A plane that turns more than `high` times within `original` tokens keeps its frequency f, one that turns fewer than
    `low` times gets f / factor, and between them f is mixed linearly in the number of turns (Llama 3.1).

    Attributes:
        factor: how much longer rows are.
        low, high: turns.
        original: tokens; None: every plane gets f / factor (Chen et al. 2023).
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int | None = 8192

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.low >= self.high:
            raise ValueError(
                f'rotary_scaling: factor={self.factor} must be positive, and low={self.low} below high={self.high}'
            )

    def __call__(self, frequency: Float[Array, 'P']) -> Float[Array, 'P']:
        """The new frequencies.

        >>> RotaryScaling(factor=2.0, original=None)(jnp.array([1.0, 0.1])).tolist()
        [0.5, 0.05000000074505806]
        """
        if self.original is None:
            return frequency / self.factor
        turns = self.original * frequency / (2 * math.pi)
        kept = jnp.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequency * (kept + (1 - kept) / self.factor)


def rotate(
    x: Float[Array, 'B T H K'],
    positions: Int32[Array, '*B T'],
    base: float = 10_000.0,
    fraction: float = 1.0,
    scaling: RotaryScaling | None = None,
) -> Array:
    """Turns plane i of x at position p by the angle p * base^(-2i/K); scores then depend on q's minus k's position.

    Args:
        x: queries or keys; K must be even.
        positions: [B, T], or [1, T] shared by the rows.
        base: theta; the slowest plane turns once in about 2 pi base tokens.
        fraction: of the channels that are turned, the first ones (GPT-NeoX); the others stay.
        scaling: of the frequencies; None: none.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> rotate(x, jnp.array([[1]]))[0, 0, 0].round(3)     # cos 1, sin 1
    Array([0.54 , 0.841], dtype=float32)
    """
    channels = axis_sizes('rotate', x=(x, 'B T H K'))['K']
    if channels % 2:
        raise ValueError(f'rotate: head_dim={channels} must be even')
    turned = rotary_channels(channels, fraction)
    if turned < channels:
        own = rotate(x[..., :turned], positions, base, scaling=scaling)
        return jnp.concatenate([own, x[..., turned:]], axis=-1)
    dtype = at_least_float32(x)
    frequency = base ** (-jnp.arange(0, channels, 2, dtype=dtype) / channels)
    frequency = frequency if scaling is None else scaling(frequency)
    angle = positions[..., None, None].astype(dtype) * frequency.reshape(1, 1, 1, -1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rotary_channels(channels: int, fraction: float) -> int:
    """How many channels of a head are turned.

    >>> rotary_channels(64, 0.25)
    16
    """
    turned = round(channels * fraction)
    if not 0 < turned <= channels or turned % 2 or not math.isclose(turned, channels * fraction):
        raise ValueError(f'rotary_fraction={fraction} of head_dim={channels} must be an even number of channels')
    return turned
