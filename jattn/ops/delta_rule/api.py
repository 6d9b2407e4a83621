"""The two public functions: they check their input and choose a form."""

import functools

import jax
import jax.numpy as jnp

from jattn.ops import segments as documents
from jattn.ops.delta_rule import chunk as chunks
from jattn.ops.delta_rule import reference, xla
from jattn.typing import Array, Float, Int32, at_least_float32, axis_sizes

IMPLEMENTATIONS = ('reference', 'xla')


def gated_delta_rule(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H'] | Float[Array, 'B T H K'] | None,
    write_strength: Float[Array, 'B T H'],
    *,
    initial_state: Float[Array, 'B H K V'] | None = None,
    return_state: bool = False,
    scale: float | None = None,
    segments: Int32[Array, 'B T'] | None = None,
    chunk: int = 64,
    raw_error: bool = False,
    error_key: Float[Array, 'B T H K'] | None = None,
    implementation: str | None = None,
) -> Float[Array, 'B T H V'] | tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """The gated delta rule: a matrix per head that fades, and is corrected at every key by the error of its answer.

        F_t = Diag(exp(log_decay_t)) S_{t-1}
        S_t = F_t + β_t k_t (v_t - F_t^T k_t)^T          y_t = scale · S_t^T q_t          β = write_strength

    DeltaNet has no decay, Gated DeltaNet one number a head, Kimi Delta Attention one per key channel. It runs over
    chunks of tokens, in time linear in T; `chunk.py` has the equations. Decays and states are float32, or float64 where
    q, k, v are. Where β |k|² exceeds 2 a write overshoots, and the recurrence itself grows without bound.

    Args:
        q: queries.
        k: keys.
        v: values.
        log_decay: ln of the share of the state that a token keeps, ≤ 0 and down to -inf: one number a head, or one per
            key channel; None: nothing is forgotten. Below -10^4 it counts as -10^4, whose exponential is 0.
        write_strength: the share of the error that is corrected; 0 writes nothing.
        initial_state: the state before the first token; None: zeros. It belongs to the first document of the call.
        return_state: return the state after the last token too.
        scale: factor of the outputs; None: K^-0.5.
        segments: document ids; the state is cleared where a new document starts. 0 is padding: it leaves the state as
            it is and reads exactly 0.
        chunk: tokens of a chunk, a power of two; no effect on the result. Fewer tokens than that are one chunk of the
            next power of two, and a decay per channel has shorter chunks.
        raw_error: the error is v_t - S_{t-1}^T k_t, of the state before it fades (Titans without momentum, Comba).
        error_key: p_t in v_t - F_t^T p_t, in place of k_t (Comba); what is written stays along k_t.
        implementation: 'reference' (token by token) or 'xla'; None: 'xla'.

    Returns:
        The outputs, in v's dtype; with `return_state`, also the state after the last document's last token.

    Raises:
        ValueError: shapes or dtypes that do not fit each other, no tokens, a chunk that is no power of two, or an
            unknown implementation.

    >>> q, v = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2, 8))
    >>> k, strength = jnp.full((1, 3, 2, 4), 0.5), jnp.full((1, 3, 2), 0.5)
    >>> y, state = gated_delta_rule(q, k, v, None, strength, return_state=True)
    >>> y.shape, y[0, :, 0, 0].tolist(), state.shape     # every write halves what is missing of v
    ((1, 3, 2, 8), [0.5, 0.75, 0.875], (1, 2, 4, 8))
    """
    where = 'gated_delta_rule'
    arrays = {'write_strength': (write_strength, 'B T H'), 'error_key': (error_key, 'B T H K')}
    _check(where, q, k, v, log_decay, initial_state, segments, chunk, implementation, arrays)
    dtype = at_least_float32(q, k, v)
    y, state = run_delta_rule(
        implementation,
        q,
        k,
        v,
        _decay_column(log_decay, dtype),
        write_strength[..., None].astype(dtype),
        error_key,
        _first_state(initial_state, k, v, dtype),
        segments,
        raw_error=raw_error,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        chunk=chunk,
    )
    return (y, state) if return_state else y


def diagonal_plus_low_rank(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H'] | Float[Array, 'B T H K'] | None,
    a: Float[Array, 'B T H K'],
    b: Float[Array, 'B T H K'],
    *,
    initial_state: Float[Array, 'B H K V'] | None = None,
    return_state: bool = False,
    scale: float | None = None,
    segments: Int32[Array, 'B T'] | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> Float[Array, 'B T H V'] | tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """A matrix per head under a diagonal plus a rank-one transition; RWKV-7 has a = -κ and b = κ times a rate.

        S_t = Diag(exp(log_decay_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T          y_t = scale · S_t^T q_t

    a reads the state before it fades. Every delta rule is a case (`gated_delta_rule` computes it faster): a = -β k with
    k times the decay unless the error is raw, b = k, v times β; a = b = 0 is gated linear attention. It runs over
    chunks of tokens, in time linear in T. Decays and states are float32, or float64 where the arrays are.

    Args:
        q: queries.
        k: keys.
        v: values.
        log_decay: ln of the share of the state that a token keeps, ≤ 0 and down to -inf: one number a head, or one per
            key channel; None: nothing is forgotten. Below -10^4 it counts as -10^4, whose exponential is 0.
        a: what the rank-one part of the transition reads with.
        b: what it writes along.
        initial_state: the state before the first token; None: zeros. It belongs to the first document of the call.
        return_state: return the state after the last token too.
        scale: factor of the outputs; None: K^-0.5.
        segments: document ids; the state is cleared where a new document starts. 0 is padding: it leaves the state as
            it is and reads exactly 0.
        chunk: tokens of a chunk, a power of two; no effect on the result. Fewer tokens than that are one chunk of the
            next power of two, and a decay per channel has shorter chunks.
        implementation: 'reference' (token by token) or 'xla'; None: 'xla'.

    Returns:
        The outputs, in v's dtype; with `return_state`, also the state after the last document's last token.

    Raises:
        ValueError: shapes or dtypes that do not fit each other, no tokens, a chunk that is no power of two, or an
            unknown implementation.

    >>> ones = jnp.ones((1, 3, 2, 4))
    >>> y = diagonal_plus_low_rank(ones, ones, ones, None, ones, -ones / 8)
    >>> y[0, :, 0, 0].tolist()          # what is read, all of the state, is halved before the next write
    [2.0, 3.0, 3.5]
    """
    where = 'diagonal_plus_low_rank'
    arrays = {'a': (a, 'B T H K'), 'b': (b, 'B T H K')}
    _check(where, q, k, v, log_decay, initial_state, segments, chunk, implementation, arrays)
    dtype = at_least_float32(q, k, v, a, b)
    y, state = run_low_rank(
        implementation,
        q,
        k,
        v,
        _decay_column(log_decay, dtype),
        a,
        b,
        _first_state(initial_state, k, v, dtype),
        segments,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        chunk=chunk,
    )
    return (y, state) if return_state else y


@functools.partial(jax.jit, static_argnames=('implementation', 'raw_error', 'scale', 'chunk'))
def run_delta_rule(
    implementation: str | None,
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H N'] | None,
    write_strength: Float[Array, 'B T H 1'],
    error_key: Float[Array, 'B T H K'] | None,
    state: Float[Array, 'B H K V'],
    segments: Int32[Array, 'B T'] | None,
    *,
    raw_error: bool,
    scale: float,
    chunk: int,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Outputs and last state of `gated_delta_rule` by the named form."""
    if implementation == 'reference':
        arrays = q, k, v, log_decay, write_strength, error_key, state, segments
        return reference.delta_rule(*arrays, raw_error=raw_error, scale=scale)
    if raw_error and segments is not None:
        error_key = _blind_at_borders(k if error_key is None else error_key, segments)
    step = functools.partial(chunks.delta_rule, raw_error=raw_error)
    arrays = q, k, v, write_strength, error_key
    return xla.run(step, arrays, log_decay, state, segments, scale=scale, chunk=chunk)


@functools.partial(jax.jit, static_argnames=('implementation', 'scale', 'chunk'))
def run_low_rank(
    implementation: str | None,
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H N'] | None,
    a: Float[Array, 'B T H K'],
    b: Float[Array, 'B T H K'],
    state: Float[Array, 'B H K V'],
    segments: Int32[Array, 'B T'] | None,
    *,
    scale: float,
    chunk: int,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Outputs and last state of `diagonal_plus_low_rank` by the named form."""
    if implementation == 'reference':
        return reference.low_rank(q, k, v, log_decay, a, b, state, segments, scale=scale)
    if segments is not None:
        a = _blind_at_borders(a, segments)
    return xla.run(chunks.low_rank, (q, k, v, a, b), log_decay, state, segments, scale=scale, chunk=chunk)


def _blind_at_borders(reader: Float[Array, 'B T H K'], segments: Int32[Array, 'B T']) -> Float[Array, 'B T H K']:
    """A reader of the state before it fades would see the document before: at an opening there is nothing to read."""
    return jnp.where(documents.resets(segments)[..., None, None], 0, reader)


def _decay_column(log_decay: Array | None, dtype: jnp.dtype) -> Float[Array, 'B T H N'] | None:
    if log_decay is None:
        return None
    return (log_decay if log_decay.ndim == 4 else log_decay[..., None]).astype(dtype)


def _first_state(initial_state: Array | None, k: Array, v: Array, dtype: jnp.dtype) -> Float[Array, 'B H K V']:
    if initial_state is None:
        return jnp.zeros((k.shape[0], *k.shape[2:], v.shape[-1]), dtype)
    return initial_state.astype(dtype)


def _check(
    where: str,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    initial_state: Array | None,
    segments: Array | None,
    chunk: int,
    implementation: str | None,
    others: dict[str, tuple[Array | None, str]],
) -> None:
    """Raises what the public functions document; others: the further arrays with their axes."""
    floating = {
        'q': (q, 'B T H K'),
        'k': (k, 'B T H K'),
        'v': (v, 'B T H V'),
        'log_decay': (log_decay, 'B T H K' if log_decay is not None and log_decay.ndim == 4 else 'B T H'),
        'initial_state': (initial_state, 'B H K V'),
        **others,
    }
    axis_sizes(where, **floating, segments=(segments, 'B T'))
    if q.shape[1] == 0:
        raise ValueError(f'{where}: q has shape {q.shape}, but at least one token was expected')
    for name, (array, _) in floating.items():
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f'{where}: {name} is {array.dtype}, but a floating dtype was expected')
    if segments is not None and not jnp.issubdtype(segments.dtype, jnp.integer):
        raise ValueError(f'{where}: segments is {segments.dtype}, but integers were expected')
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f'{where}: chunk={chunk}, but a power of two from 1 was expected')
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f'{where}: implementation={implementation!r}, but None or one of {IMPLEMENTATIONS} was expected'
        )
