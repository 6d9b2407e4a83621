"""Gated linear attention for NVIDIA GPUs, in Pallas on Triton: one program walks the chunks of one head.

A program owns a batch row, a head and a block of value channels; it keeps that part of the state [V, K] in registers
and runs `chunk.step` over the chunks. The backward walks them from the last to the first with the state's gradient in
registers, and differentiates the same step (`jax.vjp` inside the kernel) at the chunk states that the forward saved.
Blocks of value channels are independent but for dq, dk and dlog_decay, sums over them: each program writes its share.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jattn.ops.linear_attention import chunk as chunks
from jattn.typing import Array, Float

Ref = jax.Array  # what a body sees of an array
Step = Callable[..., tuple[Array, Array]]
LARGEST_KEY = 512  # bytes of a key: 128 float32 or 256 bfloat16 channels; beyond, the backward exceeds shared memory
LARGEST_CHUNK = 32  # tokens, and 16 for a decay per channel: longer ones spill kilobytes of registers
LARGEST_CHANNEL_CHUNK = 16


def refusal(q: Array, k: Array, v: Array) -> str | None:
    """Why this kernel cannot serve the call; None: it can."""
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16):
        return f'q, k, v of {q.dtype}, {k.dtype}, {v.dtype}, but float32 or bfloat16 for all was expected'
    if q.shape[-1] > LARGEST_KEY // q.dtype.itemsize:
        return f'K={q.shape[-1]} of {q.dtype}, but at most {LARGEST_KEY // q.dtype.itemsize} was expected'
    return None


def chunk_size(chunk: int, tokens: int, per_channel: bool) -> int:
    """Tokens of a chunk where `chunk` are asked for: a power of two from 16, the least a tensor core multiplies."""
    largest = min(chunk, pl.next_power_of_2(tokens), LARGEST_CHANNEL_CHUNK if per_channel else LARGEST_CHUNK)
    return max(16, 1 << largest.bit_length() - 1)


def channels(count: int) -> int:
    """Channels of a head as the kernel wants them, a power of two from 16, for `count` of them."""
    return max(16, pl.next_power_of_2(count))


def forward(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H N'],
    state: Float[Array, 'B H V K'],
    *,
    scale: float,
    chunk: int,
    save: bool,
    interpret: bool = False,
) -> tuple[Array, Array, Array | None]:
    """Outputs, last state, and (if `save`) the state at every chunk's start [B, H, T/C, V, K]."""
    grid, specs = _blocks(q, v, log_decay, chunk)
    states = (*state.shape[:2], q.shape[1] // chunk, *state.shape[2:])
    outputs = pl.pallas_call(
        functools.partial(_forward_body, step=_step(q.dtype, scale, interpret), chunk=chunk),
        grid=grid,
        in_specs=[specs['keys'], specs['keys'], specs['values'], specs['decays'], specs['state']],
        out_specs=[specs['values'], specs['state']] + [specs['states']] * save,
        out_shape=[_like(v), _like(state)] + [jax.ShapeDtypeStruct(states, state.dtype)] * save,
        compiler_params=triton.CompilerParams(num_warps=4 if q.shape[-1] <= 64 else 8, num_stages=2),
        interpret=interpret,
        name='gated_linear_attention_forward',
    )(q, k, v, log_decay, state)
    return *outputs[:2], outputs[2] if save else None


def _forward_body(*refs: Ref, step: Step, chunk: int) -> None:
    q, k, v, decay, first, y, last, *saved = refs

    def one_chunk(n: Array, state: Array) -> Array:
        rows = pl.ds(n * chunk, chunk)
        if saved:
            saved[0][n] = state
        state, out = step(state, q[rows, :], k[rows, :], v[rows, :], decay[rows, :])
        y[rows, :] = out.astype(y.dtype)
        return state

    last[...] = lax.fori_loop(0, q.shape[0] // chunk, one_chunk, first[...])


def backward(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H N'],
    states: Float[Array, 'B H N V K'],
    dy: Float[Array, 'B T H V'],
    dlast: Float[Array, 'B H V K'],
    *,
    scale: float,
    chunk: int,
    interpret: bool = False,
) -> tuple[Array, Array, Array, Array, Array]:
    """Gradients of q, k, v, log_decay and the first state, from those of the outputs and the last state."""
    grid, specs = _blocks(q, v, log_decay, chunk)
    shares = [jax.ShapeDtypeStruct((grid[2], *x.shape), states.dtype) for x in (q, k, log_decay)]
    dq, dk, dlog_decay, dv, dfirst = pl.pallas_call(
        functools.partial(_backward_body, step=_step(q.dtype, scale, interpret), chunk=chunk),
        grid=grid,
        in_specs=[specs[name] for name in ('keys', 'keys', 'values', 'decays', 'states', 'values', 'state')],
        out_specs=[specs[name] for name in ('key_shares', 'key_shares', 'decay_shares', 'values', 'state')],
        out_shape=[*shares, _like(v), _like(dlast)],
        compiler_params=triton.CompilerParams(num_warps=4 if q.shape[-1] <= 64 else 8, num_stages=2),
        interpret=interpret,
        name='gated_linear_attention_backward',
    )(q, k, v, log_decay, states, dy, dlast)
    dq, dk, dlog_decay = (jnp.sum(x, axis=0) for x in (dq, dk, dlog_decay))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv, dlog_decay, dfirst


def _backward_body(*refs: Ref, step: Step, chunk: int) -> None:
    *inputs, states, dy, dlast, dq, dk, ddecay, dv, dfirst = refs
    count, dtype = states.shape[0], states.dtype

    def one_chunk(i: Array, dstate: Array) -> Array:
        n = count - 1 - i
        rows = pl.ds(n * chunk, chunk)
        _, pull = jax.vjp(step, states[n], *(ref[rows, :].astype(dtype) for ref in inputs))
        dstate, *gradients = pull((dstate, dy[rows, :].astype(dtype)))
        for ref, gradient in zip((dq, dk, dv, ddecay), gradients):
            ref[rows, :] = gradient.astype(ref.dtype)
        return dstate

    dfirst[...] = lax.fori_loop(0, count, one_chunk, dlast[...])


def _step(dtype: jnp.dtype, scale: float, interpret: bool) -> Step:
    """The chunk's step on tensor cores, where bfloat16 is exact in one pass and float32 in three of tf32.

    Sums of log decays stay off them: they are small, and plain float32 takes a fraction of the registers.
    """
    preset = lax.DotAlgorithmPreset
    precision = preset.BF16_BF16_F32 if dtype == jnp.bfloat16 else preset.TF32_TF32_F32_X3
    exact = preset.F32_F32_F32
    if interpret:  # the CPU knows no tensor-core formats
        precision = exact = lax.Precision.HIGHEST
    arithmetic = chunks.Arithmetic(precision, exact, mask_columns=True)
    return functools.partial(chunks.step, scale=scale, arithmetic=arithmetic)


def _blocks(q: Array, v: Array, log_decay: Array, chunk: int) -> tuple[tuple[int, int, int], dict[str, pl.BlockSpec]]:
    """The grid (batch row, head, block of value channels) and what a program of it sees of each array."""
    (batch, tokens, heads, keys), values, decays = q.shape, v.shape[-1], log_decay.shape[-1]
    block = min(values, 64 if keys <= 128 else 32)
    specs = {
        'keys': pl.BlockSpec((None, tokens, None, keys), lambda b, h, s: (b, 0, h, 0)),
        'values': pl.BlockSpec((None, tokens, None, block), lambda b, h, s: (b, 0, h, s)),
        'decays': pl.BlockSpec((None, tokens, None, decays), lambda b, h, s: (b, 0, h, 0)),
        'state': pl.BlockSpec((None, None, block, keys), lambda b, h, s: (b, h, s, 0)),
        'states': pl.BlockSpec((None, None, tokens // chunk, block, keys), lambda b, h, s: (b, h, 0, s, 0)),
        'key_shares': pl.BlockSpec((None, None, tokens, None, keys), lambda b, h, s: (s, b, 0, h, 0)),
        'decay_shares': pl.BlockSpec((None, None, tokens, None, decays), lambda b, h, s: (s, b, 0, h, 0)),
    }
    return (batch, heads, values // block), specs


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
