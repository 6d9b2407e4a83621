"""Softmax attention where each query and head has keys of its own, N blocks of C, in the three steps of `reference.py`.

A block may see its query otherwise than another does (turned to another distance), so there is one query a block.
"""

import jax
import jax.numpy as jnp

from jattn.ops.softmax_attention.reference import attention_pattern, default_scale, shape_scores
from jattn.typing import Array, Bool, Float, at_least_float32


def block_scores(
    q: Float[Array, 'B T H N K'],
    k: Float[Array, 'B T H N C K'],
    visible: Bool[Array, 'B T H N C'],
    *,
    softcap: float | None = None,
    scale: float | None = None,
) -> Float[Array, 'B H T N C']:
    """Scaled products of queries and keys, then softcap and mask."""
    products = jnp.einsum('bthnk,bthnck->bhtnc', q, k, preferred_element_type=at_least_float32(q, k))
    mask = jnp.swapaxes(visible, 1, 2)
    return shape_scores(products, None, mask, scale=default_scale(scale, q), softcap=softcap)


def block_pattern(scores: Float[Array, 'B H T N C'], visible: Bool[Array, 'B T H N C']) -> Float[Array, 'B H T N C']:
    """One softmax over the keys of all blocks."""
    flat = scores.reshape(*scores.shape[:3], -1)
    mask = visible.reshape(*visible.shape[:3], -1)
    pattern = jax.vmap(lambda scores, mask: attention_pattern(scores[:, None], mask)[:, 0], (1, 2), 1)(flat, mask)
    return pattern.reshape(scores.shape)


def block_attend(pattern: Float[Array, 'B H T N C'], v: Float[Array, 'B T H N C V']) -> Float[Array, 'B T H V']:
    """The mean of the values under the pattern, in the values' dtype."""
    dtype = at_least_float32(pattern, v)
    return jnp.einsum('bhtnc,bthncv->bthv', pattern.astype(v.dtype), v, preferred_element_type=dtype).astype(v.dtype)
