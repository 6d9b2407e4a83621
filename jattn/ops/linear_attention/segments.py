"""Padding and documents, written into the inputs once, so that no fast form needs to know of either.

Padding (segment 0, and what fills the last chunk) becomes q = k = v = 0 and log decay 0: it writes nothing, forgets
nothing and reads 0. A token that opens another document than the row's first gets a log decay so low that it forgets
everything: exp(-10^4) is 0 in every float, hence exactly so are outputs and gradients across the border.
"""

import jax.numpy as jnp

from jattn.ops import segments as documents
from jattn.typing import Array, Float, Int32

FORGET = -1e4


def fold(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B T H K'],
    v: Float[Array, 'B T H V'],
    log_decay: Float[Array, 'B T H N'] | None,
    segments: Int32[Array, 'B T'] | None,
    chunk: int,
) -> tuple[Array, Array, Array, Array | None]:
    """q, k, v and log_decay for a single document, at a length that is a multiple of `chunk`."""
    if log_decay is not None:
        # Finite, because a sum takes log decays times 0 or 1; what lies below has decay 0 and gradient 0 all the same.
        log_decay = jnp.maximum(log_decay, FORGET)
    if segments is not None:
        if log_decay is None:
            log_decay = jnp.zeros((*k.shape[:3], 1), jnp.promote_types(k.dtype, jnp.float32))
        real = (segments != 0)[..., None, None]
        q, k, v, log_decay = (jnp.where(real, x, 0) for x in (q, k, v, log_decay))
        log_decay = jnp.where(documents.resets(segments)[..., None, None], FORGET, log_decay)
    filler = -q.shape[1] % chunk
    if filler:
        q, k, v, log_decay = (
            None if x is None else jnp.pad(x, ((0, 0), (0, filler), (0, 0), (0, 0))) for x in (q, k, v, log_decay)
        )
    return q, k, v, log_decay
