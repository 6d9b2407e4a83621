"""The delta rules by chunks, in plain XLA: `lax.scan` over the steps of `chunk.py`, all rows and heads at once.

Memory is O(T + T/C · K·V), as for gated linear attention. All of a chunk is computed inside the scan: with the parts
that do not need the state computed for all chunks before it, the gradients were no faster on a CPU and took four times
the memory.
"""

import functools
from collections.abc import Callable, Sequence

from jax import lax

from jattn.ops.linear_attention.chunk import Arithmetic
from jattn.ops.linear_attention.segments import fold
from jattn.ops.linear_attention.xla import over_chunks
from jattn.typing import Array, Float, Int32

CHANNEL_CHUNK = 16  # a decay per channel costs products per halving of the chunk: measured best on CPU


def chunk_size(chunk: int, tokens: int, per_channel: bool) -> int:
    """Tokens of a chunk for a request of `chunk`, a power of two: so is the least that holds all tokens."""
    return min(chunk, 1 << (tokens - 1).bit_length(), CHANNEL_CHUNK if per_channel else chunk)


def run(
    step: Callable[..., tuple[Array, Array]],
    arrays: Sequence[Float[Array, 'B T H F'] | None],
    log_decay: Float[Array, 'B T H N'] | None,
    state: Float[Array, 'B H K V'],
    segments: Int32[Array, 'B T'] | None,
    *,
    scale: float,
    chunk: int,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Outputs in v's dtype and the last state of a step of `chunk.py`; arrays: q, k, v, then what else it takes."""
    q, _, v, *_ = arrays
    size = chunk_size(chunk, q.shape[1], log_decay is not None and log_decay.shape[-1] > 1)
    # All passes, for bf16 inputs too: within a chunk every written row goes into the later ones in float32.
    arithmetic = Arithmetic(precision=lax.Precision.HIGHEST, exact=lax.Precision.HIGHEST)
    step = functools.partial(step, scale=scale, arithmetic=arithmetic)
    y, state = over_chunks(step, fold(arrays, log_decay, segments, size), state, chunk=size, dtype=v.dtype)
    return y[:, : q.shape[1]], state
