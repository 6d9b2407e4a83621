"""Gated linear attention for NVIDIA GPUs, in Pallas on Triton: one program walks the chunks of one head.

A program owns a batch row, a head and a block of value channels; it keeps that part of the state [V, K] in registers and runs
`chunk.step` over the chunks. The backward walks them from the last to the first with the state's gradient in registers,
and differentiates the same step (`jax.vjp` inside the kernel) at the chunk states that the forward saved. Blocks of value
channels are independent but for dq, dk and dlog_decay, which are sums over the blocks: each program writes its share.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jattn.ops.linear_attention import chunk as chunks
from jattn.typing import Array, Float

LARGEST_HEAD = 256  # key channels: the state of 32 value channels then still fits the registers
CHANNEL_CHUNK = 16  # a decay per channel costs a product per halving of the chunk


def refusal(q: Array, v: Array, chunk: int) -> str | None:
    """Why this kernel cannot serve the call; None: it can."""
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f'dtype {q.dtype}, but float32 or bfloat16 was expected'
    if chunk < 16 or chunk & (chunk - 1):
        return f'chunk={chunk}, but a power of two from 16 was expected'
    if q.shape[-1] > LARGEST_HEAD:
        return f'K={q.shape[-1]}, but at most {LARGEST_HEAD} was expected'
    return None


def chunk_size(chunk: int, tokens: int, per_channel: bool) -> int:
    """Tokens of a chunk for a request of `chunk`: a power of two from 16, the least that a tensor core multiplies."""
    return max(16, min(chunk, pl.next_power_of_2(tokens), CHANNEL_CHUNK if per_channel else chunk))
