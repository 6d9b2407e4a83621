"""The delta rule with momentum, exact: every error is taken at the weights right before its token (Titans' linear
memory; Behrouz et al. 2025).

    u_t = theta_t (v_t - S_{t-1}^T k_t)        M_t = m_t M_{t-1} + k_t u_t^T
    S_t = a_t S_{t-1} + M_t                    y_t = S_t^T q_t

The error depends on the weights linearly, so the u of a chunk solve a unit lower triangular system (the table of
`coefficients.py` with Theta = 1, rows shifted down by one for reads before the step):

    (I + Theta (G'' * K K^T)) U = Theta (V - b'' * (K S_0) - f'' * (K M_0))
    Y = b * (Q S_0) + f * (Q M_0) + (G * Q K^T) U

States are [B, H, K, V]. Documents may begin anywhere: their first token's logs are -10^4, and the same factor cuts what
its error reads of the past.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jattn.ops import segments as documents
from jattn.ops.delta_rule.inverse import unit_lower_inverse
from jattn.ops.fast_weights.coefficients import coefficients
from jattn.ops.linear_attention.segments import FORGET
from jattn.typing import Array, Bool, Float, Int32, at_least_float32, axis_sizes

HIGHEST = lax.Precision.HIGHEST
State = tuple[Float[Array, 'B H K V'], Float[Array, 'B H K V']]


def momentum_delta_rule(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H'] | None,
    log_momentum: Float[Array, 'B T H'],
    write_strength: Float[Array, 'B T H'],
    *,
    initial_state: State | None = None,
    return_state: bool = False,
    scale: float | None = None,
    segments: Int32[Array, 'B T'] | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> Float[Array, 'B T H V'] | tuple[Float[Array, 'B T H V'], State]:
    """The delta rule whose steps have momentum; arguments, documents and results as `gated_delta_rule`.

    Args:
        q, k, v: queries, keys, values.
        log_decay: ln a_t <= 0, of the weights; None: nothing is forgotten.
        log_momentum: ln m_t <= 0, of the momentum.
        write_strength: theta_t.
        initial_state: (S, M) before the first token; None: zeros.
        return_state: return (S, M) after the last document's last token too.
        scale: factor of the outputs; None: K^-0.5.
        segments: document ids, 0 = padding; a state is cleared where a new document starts.
        chunk: tokens of a chunk, a power of two; no effect on the result.
        implementation: 'reference' (token by token) or 'xla'; None: 'xla'.

    Raises:
        ValueError: shapes that do not fit each other, a wrong chunk, an unknown implementation.

    >>> k = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> v, one = jnp.array([3.0]).reshape(1, 1, 1, 1), jnp.ones((1, 1, 1))
    >>> momentum_delta_rule(k, k, v, None, jnp.log(0.5 * one), one, scale=1.0).item()     # one step: exact recall
    3.0
    """
    where = 'momentum_delta_rule'
    sizes = axis_sizes(
        where,
        q=(q, 'B T H K'),
        k=(k, 'B T H K'),
        v=(v, 'B T H V'),
        log_decay=(log_decay, 'B T H'),
        log_momentum=(log_momentum, 'B T H'),
        write_strength=(write_strength, 'B T H'),
        segments=(segments, 'B T'),
    )
    for state in initial_state or ():
        axis_sizes(where, q=(q, 'B T H K'), v=(v, 'B T H V'), initial_state=(state, 'B H K V'))
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f'{where}: chunk={chunk} must be a power of two')
    if implementation not in (None, 'reference', 'xla'):
        raise ValueError(f"{where}: implementation={implementation!r} must be None, 'reference' or 'xla'")
    dtype = at_least_float32(q, k, v)
    zeros = jnp.zeros(tuple(sizes[axis] for axis in 'BHKV'), dtype)
    state = (zeros, zeros) if initial_state is None else tuple(x.astype(dtype) for x in initial_state)
    scale = sizes['K'] ** -0.5 if scale is None else scale
    gates = [jnp.zeros_like(write_strength) if x is None else x for x in (log_decay, log_momentum)]
    inputs = [x.astype(dtype) for x in (q, k, v, *gates, write_strength)]
    run = _recurrence if implementation == 'reference' else functools.partial(_chunks, chunk=chunk)
    y, state = run(inputs, state, segments)
    y = (scale * y).astype(v.dtype)
    return (y, state) if return_state else y


def _recurrence(inputs: list[Array], state: State, segments: Array | None) -> tuple[Array, State]:
    """Token by token, as defined."""
    batch, tokens = inputs[0].shape[:2]
    if segments is None:
        segments = jnp.ones((batch, tokens), jnp.int32)
    real, new = segments != 0, documents.resets(segments)

    def token(state: State, inputs: tuple[Array, ...]) -> tuple[State, Array]:
        q, k, v, log_decay, log_momentum, step, real, new = inputs
        real, new = real[:, None, None, None], new[:, None, None, None]
        weights, momentum = (jnp.where(new, 0, x) for x in state)
        u = step[..., None] * (v - jnp.einsum('bhkv,bhk->bhv', weights, k, precision=HIGHEST))
        momentum = jnp.exp(log_momentum)[..., None, None] * momentum + k[..., :, None] * u[..., None, :]
        weights = jnp.exp(log_decay)[..., None, None] * weights + momentum
        y = jnp.einsum('bhkv,bhk->bhv', weights, q, precision=HIGHEST)
        state = tuple(jnp.where(real, after, before) for after, before in zip((weights, momentum), state))
        return state, jnp.where(real[..., 0], y, 0)

    sequences = [jnp.moveaxis(x, 1, 0) for x in (*inputs, real, new)]
    state, y = lax.scan(token, state, tuple(sequences))
    return jnp.moveaxis(y, 0, 1), state


def _chunks(inputs: list[Array], state: State, segments: Array | None, *, chunk: int) -> tuple[Array, State]:
    """By chunks: `lax.scan` over `_chunk`, all rows and heads at once; the state of every chunk's start is kept."""
    tokens = inputs[0].shape[1]
    chunk = min(chunk, 1 << (tokens - 1).bit_length())
    q, k, v, log_decay, log_momentum, step = inputs
    real = jnp.ones(step.shape, bool)
    read_decay = jnp.zeros_like(step)  # between the last token's weights and this token's error
    log_decay, log_momentum = (jnp.maximum(x, FORGET) for x in (log_decay, log_momentum))
    if segments is not None:
        real, new = real & (segments != 0)[..., None], documents.resets(segments)[..., None]
        q, k, v = (jnp.where(real[..., None], x, 0) for x in (q, k, v))
        step = jnp.where(real, step, 0)
        log_decay, log_momentum, read_decay = (
            jnp.where(new, FORGET, jnp.where(real, x, 0)) for x in (log_decay, log_momentum, read_decay)
        )

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -tokens % chunk), *[(0, 0)] * (x.ndim - 2)))
        x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
        return jnp.moveaxis(jnp.swapaxes(x, 2, 3), 1, 0)

    over_rows_and_heads = jax.vmap(jax.vmap(_chunk))
    body = jax.checkpoint(lambda state, inputs: over_rows_and_heads(state, *inputs))
    state, y = lax.scan(
        body, state, tuple(split(x) for x in (q, k, v, log_decay, log_momentum, step, read_decay, real))
    )
    y = jnp.swapaxes(jnp.moveaxis(y, 0, 1), 2, 3)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :tokens], state


def _chunk(
    state: tuple[Float[Array, 'K V'], Float[Array, 'K V']],
    q: Float[Array, 'C K'],
    k: Float[Array, 'C K'],
    v: Float[Array, 'C V'],
    log_decay: Float[Array, 'C'],
    log_momentum: Float[Array, 'C'],
    step: Float[Array, 'C'],
    read_decay: Float[Array, 'C'],
    real: Bool[Array, 'C'],
) -> tuple[tuple[Array, Array], Float[Array, 'C V']]:
    """One chunk of one head."""
    product = functools.partial(jnp.matmul, precision=HIGHEST)
    weights, momentum = state
    table = coefficients(log_decay, log_momentum, jnp.ones_like(step), real=real)
    above, cut = table.before(), jnp.exp(read_decay)[:, None]
    triangle = step[:, None] * cut * above.gradients * product(k, k.T)
    past = cut * (above.kept[:, None] * product(k, weights) + above.carried[:, None] * product(k, momentum))
    u = product(unit_lower_inverse(triangle), step[:, None] * (v - past))
    y = table.kept[:, None] * product(q, weights) + table.carried[:, None] * product(q, momentum)
    y += product(table.gradients * product(q, k.T), u)
    weights = table.kept[-1] * weights + table.carried[-1] * momentum
    weights += product((table.gradients[-1][:, None] * k).T, u)
    momentum = table.momentum_kept * momentum + product((table.momentum_gradients[:, None] * k).T, u)
    return (weights, momentum), y
