"""Laying the tokens of a call onto tiles of `size` slots, every row shifted right by its own amount."""

import jax.numpy as jnp
from jax import lax

from jattn.memories.tokens import Places
from jattn.typing import Array, Bool, Int32


def lay(x: Array, shift: Int32[Array, 'B'] | None, count: int, size: int) -> Array:
    """[B, T, ...] to [N, B, C, ...], every row shifted right (None: not at all)."""
    batch, length = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, count * size - length), *[(0, 0)] * (x.ndim - 2)))
    x = _roll(x, None if shift is None else -shift)
    return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)


def pick(y: Array, shift: Int32[Array, 'B'] | None, length: int) -> Array:
    """The inverse of `lay`."""
    y = jnp.moveaxis(y, 0, 1)
    return _roll(y.reshape(y.shape[0], -1, *y.shape[3:]), shift)[:, :length]


def _roll(x: Array, by: Int32[Array, 'B'] | None) -> Array:
    """Rolls each row left by its own amount."""
    if by is None:
        return x
    at = (jnp.arange(x.shape[1])[None] + by[:, None]) % x.shape[1]
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)


def misplaced(places: Places, chunk: int) -> Bool[Array, 'B T']:
    """[B, T], the tokens from a misplaced document on, up to the row's end."""
    tokens = places.real.shape[1]
    first = jnp.argmax(places.real, axis=1)[:, None]
    start = jnp.take_along_axis(places.place, first, axis=1)
    slot = jnp.arange(tokens)[None] - first + start
    return lax.cummax(jnp.where(places.real & (slot % chunk != places.place), 1, 0), axis=1) > 0
