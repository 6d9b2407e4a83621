"""Gated linear attention by chunks, in plain XLA: `lax.scan` over the steps of `chunk.py`, all rows and heads at once.

Memory is O(T + T/C · K·V): the scan keeps the state at every chunk's start, and `jax.checkpoint` computes a chunk again
when its gradient is due.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jattn.ops.linear_attention import chunk as chunks
from jattn.typing import Array, Float

CHANNEL_CHUNK = 16  # a decay per channel costs a product per halving of the chunk: measured best on CPU


def chunk_size(chunk: int, tokens: int, per_channel: bool) -> int:
    """Tokens of a chunk for a request of `chunk`."""
    return min(chunk, tokens, CHANNEL_CHUNK if per_channel else chunk)


def scan(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H N'] | None,
    state: Float[Array, 'B H K V'],
    *,
    scale: float,
    chunk: int,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Outputs in v's dtype and the last state, for T a multiple of `chunk`."""
    # bf16 inputs are exact in one pass of any matrix unit; float32 ones need all passes to keep their digits.
    precision = lax.Precision.DEFAULT if q.dtype.itemsize == 2 else lax.Precision.HIGHEST
    arithmetic = chunks.Arithmetic(precision, exact=lax.Precision.HIGHEST)
    step = functools.partial(chunks.step, scale=scale, arithmetic=arithmetic)
    return over_chunks(step, (q, k, v, log_decay), state, chunk=chunk, dtype=v.dtype)


def over_chunks(
    step: Callable[..., tuple[Array, Array]],
    inputs: Sequence[Float[Array, 'B T H F'] | None],
    state: Float[Array, 'B H K V'],
    *,
    chunk: int,
    dtype: np.dtype,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Outputs in `dtype` and the last state of a chunk's step (state [V, K], *inputs [C, F]) -> (state, y [C, V])."""
    over_rows_and_heads = jax.vmap(jax.vmap(step))

    @jax.checkpoint
    def one_chunk(state: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        state, y = over_rows_and_heads(state, *inputs)
        return state, y.astype(dtype)

    inputs = jax.tree.map(lambda x: _split(x, chunk), tuple(inputs))
    state, y = lax.scan(one_chunk, jnp.swapaxes(state, 2, 3), inputs)
    return _join(y), jnp.swapaxes(state, 2, 3)


def _split(x: Float[Array, 'B T H K'], chunk: int) -> Float[Array, 'N B H C K']:
    batch, tokens, heads, channels = x.shape
    return jnp.transpose(x.reshape(batch, tokens // chunk, chunk, heads, channels), (1, 0, 3, 2, 4))


def _join(y: Float[Array, 'N B H C V']) -> Float[Array, 'B T H V']:
    chunks_, batch, heads, chunk, channels = y.shape
    return jnp.transpose(y, (1, 0, 3, 2, 4)).reshape(batch, chunks_ * chunk, heads, channels)
