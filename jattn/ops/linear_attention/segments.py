"""Padding and documents, written into the inputs once, so that no fast form needs to know of either.

Padding (segment 0, and what fills the last chunk) becomes 0 in every array that a recurrence reads, the log decays
included: it writes nothing, forgets nothing and reads 0. A token that opens another document than the row's first gets
a log decay so low that it forgets everything: exp(-10^4) is 0 in every float, hence exactly so are outputs and
gradients across the border.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jattn.ops import segments as documents
from jattn.typing import Array, Float, Int32

FORGET = -1e4


def fold(
    arrays: Sequence[Float[Array, 'B T H F'] | None],
    log_decay: Float[Array, 'B T H N'] | None,
    segments: Int32[Array, 'B T'] | None,
    chunk: int,
) -> tuple[Array | None, ...]:
    """The arrays (what is None stays so), then log_decay, for a single document, at a multiple of `chunk` tokens."""
    if log_decay is not None:
        # Finite, because a sum takes log decays times 0 or 1; what lies below has decay 0 and gradient 0 all the same.
        log_decay = jnp.maximum(log_decay, FORGET)
    if segments is not None:
        if log_decay is None:
            log_decay = jnp.zeros((*arrays[0].shape[:3], 1), jnp.promote_types(arrays[0].dtype, jnp.float32))
        real = (segments != 0)[..., None, None]
        *arrays, log_decay = jax.tree.map(lambda x: jnp.where(real, x, 0), (*arrays, log_decay))
        log_decay = jnp.where(documents.resets(segments)[..., None, None], FORGET, log_decay)
    filler = ((0, 0), (0, -arrays[0].shape[1] % chunk), (0, 0), (0, 0))
    return jax.tree.map(lambda x: jnp.pad(x, filler), (*arrays, log_decay))
