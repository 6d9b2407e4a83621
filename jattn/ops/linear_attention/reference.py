"""Gated linear attention token by token, as it is defined: slow, obvious, and what the other forms are tested against.

S_t = Diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T          y_t = scale · S_t^T q_t
"""

import jax.numpy as jnp
from jax import lax

from jattn.typing import Array, Float, Int32


def recurrence(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H N'] | None,
    state: Float[Array, 'B H K V'],
    segments: Int32[Array, 'B T'] | None,
    *,
    scale: float,
) -> tuple[Float[Array, 'B T H V'], Float[Array, 'B H K V']]:
    """Outputs [B, T, H, V] in v's dtype and the last state; log_decay [B, T, H, 1 or K], None: no decay."""
    batch, tokens = q.shape[:2]
    if log_decay is None:
        log_decay = jnp.zeros((*q.shape[:3], 1), state.dtype)
    if segments is None:
        segments = jnp.ones((batch, tokens), jnp.int32)

    def token(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        state, document = carry  # document: the id of the last real token, 0 before the first
        q, k, v, log_decay, segment = inputs
        real, new = segment != 0, (segment != 0) & (document != 0) & (segment != document)
        before = jnp.where(new[:, None, None, None], 0, state)
        after = jnp.exp(log_decay)[..., None] * before + k[..., :, None] * v[..., None, :]
        state = jnp.where(real[:, None, None, None], after, state)
        y = jnp.where(real[:, None, None], scale * jnp.einsum('bhkv,bhk->bhv', state, q), 0)
        return (state, jnp.where(real, segment, document)), y

    sequences = [x.astype(state.dtype) for x in (q, k, v, log_decay)] + [segments]
    start = (state, jnp.zeros(batch, segments.dtype))
    (state, _), y = lax.scan(token, start, tuple(jnp.moveaxis(x, 1, 0) for x in sequences))
    return jnp.moveaxis(y, 0, 1).astype(v.dtype), state
