"""Documents packed in rows, read from their segment ids: where one opens, and how far into it a token stands.

Ids [B, T] are int32; 0 marks padding, which belongs to no document and changes nothing. A document opens at a token
whose id is not that of the last real token before it, however much padding lies between.
"""

import jax.numpy as jnp
from jax import lax

from jattn.typing import Array, Bool, Int32


def openings(segments: Int32[Array, 'B T']) -> Bool[Array, 'B T']:
    """True at the first token of every document, the row's first included.

    >>> openings(jnp.array([[0, 1, 1, 0, 1, 2]])).astype(int).tolist()
    [[0, 1, 0, 0, 0, 1]]
    """
    real = segments != 0
    index = jnp.arange(segments.shape[1])[None]
    last_real = lax.cummax(jnp.where(real, index, -1), axis=1)
    before = jnp.pad(last_real[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous = jnp.take_along_axis(segments, jnp.maximum(before, 0), axis=1)
    return real & ((before < 0) | (segments != previous))


def resets(segments: Int32[Array, 'B T']) -> Bool[Array, 'B T']:
    """True at the first token of every document but the row's first: there a carried state must be cleared.

    >>> resets(jnp.array([[0, 1, 1, 0, 1, 2]])).astype(int).tolist()
    [[0, 0, 0, 0, 0, 1]]
    """
    opens = openings(segments)
    return opens & (jnp.cumsum(opens, axis=1) > 1)


def positions(segments: Int32[Array, 'B T']) -> Int32[Array, 'B T']:
    """How many real tokens of its document stand before a token, from 0; padding has 0.

    >>> positions(jnp.array([[0, 1, 1, 0, 1, 2]])).tolist()
    [[0, 0, 1, 0, 2, 0]]
    """
    real = segments != 0
    count = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
    opening = lax.cummax(jnp.where(openings(segments), count, 0), axis=1)
    return jnp.where(real, count - opening, 0)
