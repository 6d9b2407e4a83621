"""The delta rules token by token, as they are defined: slow, obvious, and what the other forms are tested against.

gated delta rule:        S_t = F + b_t k_t (v_t - E^T p_t)^T      F = Diag(exp(log_decay_t)) S_{t-1}
                         E = F, or S_{t-1} for the raw error      p = k unless another error key is given
diagonal plus low rank:  S_t = F + b_t (S_{t-1}^T a_t)^T + k_t v_t^T

y_t = scale · S_t^T q_t
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jattn.typing import Array, Float, Int32

PRECISION = lax.Precision.HIGHEST


def delta_rule(
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
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Outputs [B, T, H, V] in v's dtype and the last state; log_decay [B, T, H, 1 or K], None: no decay."""

    def write(state: Array, faded: Array, k: Array, v: Array, strength: Array, error_key: Array | None) -> Array:
        error = v - _read(state if raw_error else faded, k if error_key is None else error_key)
        return faded + _outer(k, strength * error)

    return _recurrence(write, q, (k, v, write_strength, error_key), log_decay, state, segments, scale)


def low_rank(
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
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Outputs [B, T, H, V] in v's dtype and the last state; log_decay [B, T, H, 1 or K], None: no decay."""

    def write(state: Array, faded: Array, k: Array, v: Array, a: Array, b: Array) -> Array:
        return faded + _outer(b, _read(state, a)) + _outer(k, v)

    return _recurrence(write, q, (k, v, a, b), log_decay, state, segments, scale)


def _recurrence(
    write: Callable[..., Array],
    q: Float[Array, 'B T H K'],
    arrays: Sequence[Float[Array, 'B T H F'] | None],
    log_decay: Float[Array, 'B T H N'] | None,
    state: Float[Array, 'B H K V'],
    segments: Int32[Array, 'B T'] | None,
    scale: float,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """write(state, faded state, *arrays at t) is the state after token t; arrays: k, v, then what else it takes."""
    (batch, tokens), dtype = q.shape[:2], arrays[1].dtype
    if log_decay is None:
        log_decay = jnp.zeros((*q.shape[:3], 1), state.dtype)
    if segments is None:
        segments = jnp.ones((batch, tokens), jnp.int32)

    def token(carry: tuple[Array, Array], inputs: tuple) -> tuple[tuple[Array, Array], Array]:
        state, document = carry  # document: the id of the last real token, 0 before the first
        q, log_decay, arrays, segment = inputs
        real, new = segment != 0, (segment != 0) & (document != 0) & (segment != document)
        before = jnp.where(new[:, None, None, None], 0, state)
        after = write(before, jnp.exp(log_decay)[..., None] * before, *arrays)
        state = jnp.where(real[:, None, None, None], after, state)
        y = jnp.where(real[:, None, None], scale * _read(state, q), 0)
        return (state, jnp.where(real, segment, document)), y

    sequences = *jax.tree.map(lambda x: x.astype(state.dtype), (q, log_decay, tuple(arrays))), segments
    start = (state, jnp.zeros(batch, segments.dtype))
    (state, _), y = lax.scan(token, start, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), sequences))
    return jnp.moveaxis(y, 0, 1).astype(dtype), state


def _read(state: Float[Array, 'B H K V'], key: Float[Array, 'B H K']) -> Float[Array, 'B H V']:
    return jnp.einsum('bhkv,bhk->bhv', state, key, precision=PRECISION)


def _outer(key: Float[Array, 'B H K'], value: Float[Array, 'B H V']) -> Float[Array, 'B H K V']:
    return key[..., :, None] * value[..., None, :]
