"""Gated linear attention for NVIDIA GPUs, in Pallas on Triton: one program walks the chunks of one head.

A program owns a batch row, a head and a block of value channels; it keeps that part of the state [V, K] in registers and runs
`chunk.step` over the chunks. The backward walks them from the last to the first with the state's gradient in registers,
and differentiates the same step (`jax.vjp` inside the kernel) at the chunk states that the forward saved. Blocks of value
channels are independent but for dq, dk and dlog_decay, which are sums over the blocks: each program writes its share.
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

LARGEST_KEY = 256  # channels; a state of 32 value channels then still fits the registers
CHANNEL_CHUNK = 16  # a decay per channel costs a product per halving of the chunk


def refusal(q: Array, v: Array, chunk: int) -> str | None:
    """Why this kernel cannot serve the call; None: it can."""
    if not q.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16):
        return f'q is {q.dtype} and v {v.dtype}, but float32 or bfloat16 for all was expected'
    if chunk < 16 or chunk & (chunk - 1):
        return f'chunk={chunk}, but a power of two from 16 was expected'
    if q.shape[-1] > LARGEST_KEY:
        return f'K={q.shape[-1]}, but at most {LARGEST_KEY} was expected'
    return None


def chunk_size(chunk: int, tokens: int, per_channel: bool) -> int:
    """Tokens of a chunk for a request of `chunk`: a power of two from 16, the least that a tensor core multiplies."""
    return max(16, min(chunk, pl.next_power_of_2(tokens), CHANNEL_CHUNK if per_channel else chunk))


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
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name='gated_linear_attention_forward',
    )(q, k, v, log_decay, state)
    return *outputs[:2], outputs[2] if save else None


def _forward_body(q_ref, k_ref, v_ref, decay_ref, first_ref, y_ref, last_ref, states_ref=None, *, step, chunk):  # noqa: ANN001
    def one_chunk(n: Array, state: Array) -> Array:
        rows = pl.ds(n * chunk, chunk)
        if states_ref is not None:
            states_ref[n] = state
        state, y = step(state, q_ref[rows, :], k_ref[rows, :], v_ref[rows, :], decay_ref[rows, :])
        y_ref[rows, :] = y.astype(y_ref.dtype)
        return state

    last_ref[...] = lax.fori_loop(0, q_ref.shape[0] // chunk, one_chunk, first_ref[...])


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
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name='gated_linear_attention_backward',
    )(q, k, v, log_decay, states, dy, dlast)
    dq, dk, dlog_decay = (jnp.sum(x, axis=0) for x in (dq, dk, dlog_decay))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv, dlog_decay, dfirst


def _backward_body(
    q_ref, k_ref, v_ref, decay_ref, states_ref, dy_ref, dlast_ref,  # noqa: ANN001
    dq_ref, dk_ref, ddecay_ref, dv_ref, dfirst_ref, *, step, chunk  # noqa: ANN001
):  # fmt: skip
    chunk_count, dtype = states_ref.shape[0], states_ref.dtype

    def one_chunk(i: Array, dstate: Array) -> Array:
        n = chunk_count - 1 - i
        rows = pl.ds(n * chunk, chunk)
        inputs = [ref[rows, :].astype(dtype) for ref in (q_ref, k_ref, v_ref, decay_ref)]
        _, pull = jax.vjp(step, states_ref[n], *inputs)
        dstate, dq, dk, dv, ddecay = pull((dstate, dy_ref[rows, :].astype(dtype)))
        for ref, gradient in ((dq_ref, dq), (dk_ref, dk), (dv_ref, dv), (ddecay_ref, ddecay)):
            ref[rows, :] = gradient.astype(ref.dtype)
        return dstate

    dfirst_ref[...] = lax.fori_loop(0, chunk_count, one_chunk, dlast_ref[...])


def _step(dtype: jnp.dtype, scale: float, interpret: bool) -> Callable[..., tuple[Array, Array]]:
    """The chunk's step in tensor-core arithmetic: three passes of tf32 keep float32's digits, one of bf16 has its own."""
    full, half = lax.DotAlgorithmPreset.TF32_TF32_F32_X3, lax.DotAlgorithmPreset.BF16_BF16_F32
    if interpret:  # the CPU knows no tensor-core formats
        full = half = lax.Precision.HIGHEST
    arithmetic = chunks.Arithmetic(half if dtype == jnp.bfloat16 else full, exact=full, mask_columns=True)
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
