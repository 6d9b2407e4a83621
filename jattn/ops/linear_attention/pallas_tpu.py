"""Gated linear attention for TPUs, in Pallas on Mosaic: the grid walks the chunks, the state waits in VMEM.

The grid is (batch row, head, chunk) and runs in order along the chunks. The output block of the last state has the same
index at every chunk, hence stays in VMEM: it is the running state. The backward runs the same grid from the last chunk
to the first with the state's gradient in that place, and differentiates `chunk.step` (`jax.vjp` inside the kernel) at
the chunk states that the forward saved. Heads come before tokens here, [B, H, T, K]: a block's last two axes are tiles.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jattn.ops.linear_attention import chunk as chunks
from jattn.typing import Array, Float

Ref = jax.Array  # what a body sees of an array
Step = Callable[..., tuple[Array, Array]]
LARGEST_STATE = 512 * 512  # K · V: a dozen float32 blocks of that size fit VMEM
LARGEST_CHUNK = 128  # tokens: the side of a matrix unit
LARGEST_CHANNEL_CHUNK = 64


def refusal(q: Array, k: Array, v: Array) -> str | None:
    """Why this kernel cannot serve the call; None: it can."""
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16):
        return f'q, k, v of {q.dtype}, {k.dtype}, {v.dtype}, but float32 or bfloat16 for all was expected'
    if q.shape[-1] * v.shape[-1] > LARGEST_STATE:
        return f'K={q.shape[-1]} times V={v.shape[-1]}, but at most {LARGEST_STATE} was expected'
    return None


def chunk_size(chunk: int, tokens: int, per_channel: bool) -> int:
    """Tokens of a chunk where `chunk` are asked for: a multiple of 16, the rows of a bfloat16 tile."""
    largest = min(chunk, tokens + 15, LARGEST_CHANNEL_CHUNK if per_channel else LARGEST_CHUNK)
    return max(16, largest // 16 * 16)


def channels(count: int) -> int:
    """Channels of a head as the kernel wants them: a block that spans its axis may have any size."""
    return count


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
    interpret: object = False,
) -> tuple[Array, Array, Array | None]:
    """Outputs, last state, and (if `save`) the state at every chunk's start [B, H, T/C, V, K]."""
    q, k, v, log_decay = _heads_first(q, k, v, log_decay, chunk)
    grid, specs = _blocks(q, v, log_decay, chunk, lambda n: n)
    states = (*state.shape[:2], grid[2], *state.shape[2:])
    y, last, *saved = pl.pallas_call(
        functools.partial(_forward_body, step=_step(q.dtype, log_decay, scale)),
        grid=grid,
        in_specs=[specs['keys'], specs['keys'], specs['values'], specs['decays'], specs['state']],
        out_specs=[specs['values'], specs['state']] + [specs['states']] * save,
        out_shape=[_like(v), _like(state)] + [jax.ShapeDtypeStruct(states, state.dtype)] * save,
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary')),
        interpret=interpret,
        name='gated_linear_attention_forward',
    )(q, k, v, log_decay, state)
    return jnp.swapaxes(y, 1, 2), last, saved[0] if save else None


def _forward_body(*refs: Ref, step: Step) -> None:
    q, k, v, decay, first, y, state, *saved = refs

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        state[...] = first[...]

    if saved:
        saved[0][...] = state[...]
    state[...], out = step(state[...], q[...], k[...], v[...], decay[...])
    y[...] = out.astype(y.dtype)


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
    interpret: object = False,
) -> tuple[Array, Array, Array, Array, Array]:
    """Gradients of q, k, v, log_decay and the first state, from those of the outputs and the last state."""
    decay_shape = log_decay.shape
    q, k, v, log_decay = _heads_first(q, k, v, log_decay, chunk)
    last = q.shape[2] // chunk - 1
    grid, specs = _blocks(q, v, log_decay, chunk, lambda n: last - n)
    *gradients, dfirst = pl.pallas_call(
        functools.partial(_backward_body, step=_step(q.dtype, log_decay, scale)),
        grid=grid,
        in_specs=[specs[name] for name in ('keys', 'keys', 'values', 'decays', 'states', 'values', 'state')],
        out_specs=[specs[name] for name in ('keys', 'keys', 'values', 'decays', 'state')],
        out_shape=[_like(x) for x in (q, k, v, log_decay, dlast)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary')),
        interpret=interpret,
        name='gated_linear_attention_backward',
    )(q, k, v, log_decay, states, jnp.swapaxes(dy, 1, 2), dlast)
    dq, dk, dv, ddecay = gradients
    ddecay = ddecay.reshape(ddecay.shape[:2] + (-1, decay_shape[-1]))
    return *(jnp.swapaxes(x, 1, 2) for x in (dq, dk, dv, ddecay)), dfirst


def _backward_body(*refs: Ref, step: Step) -> None:
    *inputs, states, dy, dlast, dq, dk, dv, ddecay, dstate = refs

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        dstate[...] = dlast[...]

    dtype = states.dtype
    _, pull = jax.vjp(step, states[...], *(ref[...].astype(dtype) for ref in inputs))
    dstate[...], *gradients = pull((dstate[...], dy[...].astype(dtype)))
    for ref, gradient in zip((dq, dk, dv, ddecay), gradients):
        ref[...] = gradient.astype(ref.dtype)


def _heads_first(q: Array, k: Array, v: Array, log_decay: Array, chunk: int) -> tuple[Array, ...]:
    """[B, T, H, K] to [B, H, T, K]; one decay a head to a row per chunk [B, H, T/C, 1, C]: a column pads 128-fold."""
    q, k, v, log_decay = (jnp.swapaxes(x, 1, 2) for x in (q, k, v, log_decay))
    if log_decay.shape[-1] == 1:
        log_decay = log_decay.reshape(*log_decay.shape[:2], -1, 1, chunk)
    return q, k, v, log_decay


def _step(dtype: jnp.dtype, log_decay: Array, scale: float) -> Step:
    """The chunk's step; bfloat16 is exact in one pass of the matrix unit, float32 takes all."""
    precision = lax.Precision.DEFAULT if dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    arithmetic = chunks.Arithmetic(precision, exact=lax.Precision.HIGHEST, mask_columns=True)
    step = functools.partial(chunks.step, scale=scale, arithmetic=arithmetic)
    if log_decay.ndim == 4:
        return step
    return lambda state, q, k, v, row: step(state, q, k, v, chunks.column_of(row))


def _blocks(
    q: Array, v: Array, log_decay: Array, chunk: int, order: Callable[[int], int]
) -> tuple[tuple[int, int, int], dict[str, pl.BlockSpec]]:
    """The grid and what its step (b, h, n) sees of each array, for the chunk order(n)."""
    batch, heads, tokens, keys = q.shape
    values, decays = v.shape[-1], log_decay.shape[-1]
    of_head = lambda b, h, n: (b, h, 0, 0)
    of_tokens = lambda b, h, n: (b, h, order(n), 0)
    of_chunk = lambda b, h, n: (b, h, order(n), 0, 0)
    specs = {
        'keys': pl.BlockSpec((None, None, chunk, keys), of_tokens),
        'values': pl.BlockSpec((None, None, chunk, values), of_tokens),
        'decays': pl.BlockSpec((None, None, chunk, decays), of_tokens),
        'state': pl.BlockSpec((None, None, values, keys), of_head),
        'states': pl.BlockSpec((None, None, None, values, keys), of_chunk),
    }
    if log_decay.ndim == 5:
        specs['decays'] = pl.BlockSpec((None, None, None, 1, chunk), of_chunk)
    return (batch, heads, tokens // chunk), specs


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
