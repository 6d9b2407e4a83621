"""The one public function: checks its input, chooses a form, and gives the kernels their gradient."""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from jax import lax

from jattn.ops.linear_attention import pallas_tpu, pallas_triton, reference, xla
from jattn.ops.linear_attention.segments import fold
from jattn.ops.linear_attention.sharding import per_shard
from jattn.typing import Array, Float, Int32, at_least_float32, axis_sizes

KERNELS = {'pallas_triton': pallas_triton, 'pallas_tpu': pallas_tpu}
IMPLEMENTATIONS = ('reference', 'xla', *KERNELS)
SHORTEST_FOR_KERNELS = 16  # tokens: below, a kernel's smallest chunk is mostly filler


def gated_linear_attention(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H'] | Float[Array, 'B T H K'] | None,
    *,
    initial_state: Float[Array, 'B H K V'] | None = None,
    return_state: bool = False,
    scale: float | None = None,
    segments: Int32[Array, 'B T'] | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> Float[Array, 'B T H V'] | tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Gated linear attention: a matrix per head that fades, takes an outer product per token, and is read by the query.

        S_t = Diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T          y_t = scale · S_t^T q_t

    Linear attention, RetNet, Mamba-2 and GLA are this recurrence with different decays. It runs over chunks of tokens,
    in time linear in T; `chunk.py` has the equations. Decays and states are float32, or float64 where q, k, v are.

    Args:
        q: queries.
        k: keys.
        v: values.
        log_decay: ln of the share of the state that a token keeps, ≤ 0 and down to -inf: one number a head, or one per
            key channel; None: nothing is forgotten. Below -10^4 it counts as -10^4, whose exponential is 0.
        initial_state: the state before the first token; None: zeros. It belongs to the first document of the call.
        return_state: return the state after the last token too.
        scale: factor of the outputs; None: K^-0.5.
        segments: document ids; the state is cleared where a new document starts. 0 is padding: it leaves the state as
            it is and reads exactly 0.
        chunk: tokens of a chunk; no effect on the result. A kernel rounds it to sizes that its matrix unit takes, and a
            decay per channel has shorter ones.
        implementation: 'reference' (token by token), 'xla', 'pallas_triton' (NVIDIA GPUs), 'pallas_tpu'; None: the
            kernel of the platform where there is one and it serves the shapes, else 'xla'.

    Returns:
        The outputs, in v's dtype; with `return_state`, also the state after the last document's last token.

    Raises:
        ValueError: shapes that do not fit each other, no tokens, a wrong chunk, an unknown implementation, or a kernel
            asked for by name that cannot serve the call.

    >>> q, k, v = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2, 8))
    >>> y, state = gated_linear_attention(q, k, v, jnp.full((1, 3, 2), jnp.log(0.5)), return_state=True)
    >>> y.shape, y[0, :, 0, 0].tolist(), state.shape     # 4 channels · 4^-0.5 · (1, 1 + 0.5, 1 + 0.5 + 0.25)
    ((1, 3, 2, 8), [2.0, 3.0, 3.5], (1, 2, 4, 8))
    """
    where = 'gated_linear_attention'
    decay_axes = 'B T H K' if log_decay is not None and log_decay.ndim == 4 else 'B T H'
    sizes = axis_sizes(
        where,
        q=(q, 'B T H K'),
        k=(k, 'B T H K'),
        v=(v, 'B T H V'),
        log_decay=(log_decay, decay_axes),
        initial_state=(initial_state, 'B H K V'),
        segments=(segments, 'B T'),
    )
    if sizes['T'] == 0:
        raise ValueError(f'{where}: q has shape {q.shape}, but at least one token was expected')
    for name, array in {'q': q, 'k': k, 'v': v, 'log_decay': log_decay, 'initial_state': initial_state}.items():
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f'{where}: {name} is {array.dtype}, but a floating dtype was expected')
    if segments is not None and not jnp.issubdtype(segments.dtype, jnp.integer):
        raise ValueError(f'{where}: segments is {segments.dtype}, but integers were expected')
    if chunk < 1:
        raise ValueError(f'{where}: chunk={chunk}, but at least 1 was expected')
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f'{where}: implementation={implementation!r}, but None or one of {IMPLEMENTATIONS} was expected'
        )
    if implementation in KERNELS and (reason := KERNELS[implementation].refusal(q, k, v)):
        raise ValueError(f'{where}: implementation={implementation!r} was given {reason}')

    dtype = at_least_float32(q, k, v)
    state_shape = tuple(sizes[axis] for axis in 'BHKV')
    state = jnp.zeros(state_shape, dtype) if initial_state is None else initial_state.astype(dtype)
    if log_decay is not None:
        log_decay = (log_decay if log_decay.ndim == 4 else log_decay[..., None]).astype(dtype)
    scale = sizes['K'] ** -0.5 if scale is None else scale
    y, state = run(implementation, q, k, v, log_decay, state, segments, scale=scale, chunk=chunk)
    return (y, state) if return_state else y


@functools.partial(jax.jit, static_argnames=('implementation', 'scale', 'chunk', 'interpret'))
def run(
    implementation: str | None,
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H N'] | None,
    state: Float[Array, 'B H K V'],
    segments: Int32[Array, 'B T'] | None,
    *,
    scale: float,
    chunk: int,
    interpret: object = False,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Outputs and last state by the named form; interpret: run a kernel on the CPU (True, or pltpu.InterpretParams)."""
    arrays, per_channel = (q, k, v, log_decay, state, segments), log_decay is not None and log_decay.shape[-1] > 1
    if implementation is None:
        branches = {name: functools.partial(run, name, scale=scale, chunk=chunk) for name in ('xla', *KERNELS)}
        kernels = {
            platform: branches[name]
            for platform, name in (('cuda', 'pallas_triton'), ('tpu', 'pallas_tpu'))
            if q.shape[1] >= SHORTEST_FOR_KERNELS and KERNELS[name].refusal(q, k, v) is None
        }
        return lax.platform_dependent(*arrays, **kernels, default=branches['xla'])
    if implementation == 'reference':
        return reference.recurrence(*arrays, scale=scale)
    form = KERNELS.get(implementation, xla)
    size = form.chunk_size(chunk, q.shape[1], per_channel)
    inputs = fold((q, k, v), log_decay, segments, size)
    if form is xla:
        y, state = xla.scan(*inputs, state, scale=scale, chunk=size)
    else:
        y, state = _run_kernel(form, *inputs, state, scale=scale, chunk=size, interpret=interpret)
    return y[:, : q.shape[1]], state


def _run_kernel(
    form: ModuleType,
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H N'] | None,
    state: Float[Array, 'B H K V'],
    *,
    scale: float,
    chunk: int,
    interpret: object,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """The kernel on channels filled up with zeros, which add nothing, and on states [V, K]."""
    (batch, _, heads, keys), values = q.shape, v.shape[-1]
    if log_decay is None:
        log_decay = jnp.zeros((*q.shape[:3], 1), state.dtype)
    q, k, v = _fill(q, form.channels(keys)), _fill(k, form.channels(keys)), _fill(v, form.channels(values))
    if log_decay.shape[-1] > 1:
        log_decay = _fill(log_decay, q.shape[-1])
    state = jnp.pad(jnp.swapaxes(state, 2, 3), ((0, 0), (0, 0), (0, v.shape[-1] - values), (0, q.shape[-1] - keys)))
    kernel = functools.partial(_kernel, form, scale, chunk, interpret)
    y, state = per_shard(kernel, batch, heads)(q, k, v, log_decay, state)
    return y[..., :values], jnp.swapaxes(state[..., :values, :keys], 2, 3)


def _fill(x: Float[Array, 'B T H K'], channels: int) -> Float[Array, 'B T H C']:
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _kernel(
    form: ModuleType,
    scale: float,
    chunk: int,
    interpret: object,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    state: Array,
) -> tuple[Array, Array]:
    y, last, _ = form.forward(q, k, v, log_decay, state, scale=scale, chunk=chunk, save=False, interpret=interpret)
    return y, last


def _kernel_forward(
    form: ModuleType, scale: float, chunk: int, interpret: object, *inputs: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    y, last, states = form.forward(*inputs, scale=scale, chunk=chunk, save=True, interpret=interpret)
    return (y, last), (*inputs[:-1], states)


def _kernel_backward(
    form: ModuleType,
    scale: float,
    chunk: int,
    interpret: object,
    residuals: tuple[Array, ...],
    cotangents: tuple[Array, Array],
) -> tuple[Array, ...]:
    return form.backward(*residuals, *cotangents, scale=scale, chunk=chunk, interpret=interpret)


_kernel.defvjp(_kernel_forward, _kernel_backward)
