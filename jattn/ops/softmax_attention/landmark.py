"""Attention by a grouped softmax (Mohtashami & Jaggi 2023): the last token of a block is the gate to the block.

A block ends with its landmark; b(k) is the number of landmarks strictly before key k, and `own` = b(t) of query t.

    inside block b       r_ts = softmax of the scores over the ordinary tokens of b that t sees
    between the blocks   g_t  = softmax over b of    the score of b's landmark            earlier blocks
                                                     log sum exp of b's ordinary scores   the query's own block
    pattern_ts = g_t(b(s)) r_ts       0 for every landmark

which is one softmax over the tokens of the own block and the earlier landmarks, whose share then goes to their blocks.
A landmark sees its own block but never itself. An earlier block without ordinary tokens keeps its share: the row sums
to less than 1; a query that sees nothing has a row of 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jattn.ops.softmax_attention.landmark_xla import blockwise
from jattn.ops.softmax_attention.reference import (
    attend,
    attention_scores,
    default_scale,
    hidden_score,
)
from jattn.typing import Array, Bool, Float, Int32, axis_sizes

IMPLEMENTATIONS = (None, 'reference', 'xla')
FEW_QUERIES = 8  # a step of generation reads the keys once whatever the form


def landmark_attention(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B S G K'],
    v: Float[Array, 'B S G V'],
    landmarks: Bool[Array, 'B S'],
    *,
    segments: tuple[Int32[Array, 'B T'], Int32[Array, 'B S']] | None = None,
    own: Int32[Array, 'B T'] | None = None,
    scale: float | None = None,
    tile: int = 64,
    implementation: str | None = None,
) -> Float[Array, 'B T H V']:
    """Causal attention by the grouped softmax; the keys of a document stand in the order of time.

    Args:
        q: queries.
        k: keys, G heads where H is a multiple of G.
        v: values.
        landmarks: [B or 1, S], which keys close a block.
        segments: document ids of queries and keys, 0 = padding; None: one document.
        own: [B or 1, T], where among the keys each query's own key stands; None: queries and keys are the same tokens.
        scale: None: K^-1/2.
        tile: keys read at a time by 'xla'; the usual length of a block serves best.
        implementation: 'reference' (all T x S pairs), 'xla' (block by block, memory linear in T), or None: xla, and for
            a few queries the reference.

    >>> q = k = jnp.zeros((1, 4, 1, 2))
    >>> v = jnp.arange(4.0).reshape(1, 4, 1, 1)
    >>> landmark_attention(q, k, v, jnp.array([[False, True, False, False]]))[0, :, 0, 0].tolist()
    [0.0, 0.0, 1.0, 1.6666667461395264]
    """
    sizes = axis_sizes('landmark_attention', q=(q, 'B T H K'), k=(k, 'B S G K'), v=(v, 'B S G V'))
    if landmarks.shape not in ((sizes['B'], sizes['S']), (1, sizes['S'])):
        raise ValueError(f'landmark_attention: landmarks have shape {landmarks.shape}, but [B or 1, S] was expected')
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'landmark_attention: implementation={implementation!r}, but one of {IMPLEMENTATIONS} was expected'
        )
    scale = default_scale(scale, q)
    if own is None:
        own = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    if implementation == 'xla' or (implementation is None and q.shape[1] > FEW_QUERIES):
        return blockwise(q, k, v, landmarks, segments, own, scale=scale, tile=tile)
    mask = landmark_mask(segments, own, k.shape[1])
    pattern = landmark_pattern(attention_scores(q, k, mask, scale=scale), mask, landmarks, segments, own)
    return attend(pattern, v)


def landmark_mask(segments: tuple[Array, Array] | None, own: Int32[Array, 'B T'], keys: int) -> Bool[Array, 'B T S']:
    """The keys of a query's document up to its own."""
    mask = jnp.arange(keys)[None, None] <= own[:, :, None]
    if segments is None:
        return mask
    query, key = segments[0][:, :, None], segments[1][:, None, :]
    return mask & (query == key) & (key != 0)


def landmark_pattern(
    scores: Float[Array, 'B H T S'],
    mask: Bool[Array, 'B T S'],
    landmarks: Bool[Array, 'B S'],
    segments: tuple[Array, Array] | None,
    own: Int32[Array, 'B T'],
) -> Float[Array, 'B H T S']:
    """The grouped softmax, with the arguments of `landmark_attention`."""
    batch = scores.shape[0]
    mask, landmarks, own = (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (mask, landmarks, own))
    marks = (landmarks if segments is None else landmarks & (segments[1] != 0)).astype(jnp.int32)
    blocks = jnp.cumsum(marks, axis=1) - marks  # of all documents of the row: the mask keeps them apart
    own_block = jnp.take_along_axis(blocks, jnp.clip(own, 0, blocks.shape[1] - 1), axis=1)[:, None, :, None]
    number = jnp.arange(blocks.shape[1]).reshape(1, 1, 1, -1)

    def over_blocks(reduce: Callable, x: Array) -> Array:
        """[B, ., T, S] to [B, ., T, N]: what each block's keys amount to."""

        def row(x: Array, blocks: Array) -> Array:
            return jnp.moveaxis(reduce(jnp.moveaxis(x, -1, 0), blocks, num_segments=len(blocks)), 0, -1)

        return jax.vmap(row)(x, blocks)

    def of_key(x: Array) -> Array:
        """[B, ., T, N] to [B, ., T, S]: of each key's block."""
        return jnp.take_along_axis(x, jnp.broadcast_to(blocks[:, None, None], (*x.shape[:3], blocks.shape[1])), axis=-1)

    hidden = hidden_score(scores.dtype)
    ordinary, gated = mask[:, None] & ~landmarks[:, None, None], mask[:, None] & landmarks[:, None, None]
    largest = over_blocks(jax.ops.segment_max, jnp.where(ordinary, scores, hidden))
    largest = lax.stop_gradient(jnp.maximum(largest, hidden))  # a block without keys has -inf
    weights = jnp.where(ordinary, jnp.exp(jnp.where(ordinary, scores - of_key(largest), 0)), 0)
    total = over_blocks(jax.ops.segment_sum, weights)
    safe = jnp.where(total > 0, total, 1)
    inside = weights / of_key(safe)

    landmark = over_blocks(jax.ops.segment_sum, jnp.where(gated, scores, 0))
    has_landmark = over_blocks(jax.ops.segment_max, gated.astype(jnp.int32)) > 0
    gate = jnp.where(number == own_block, largest + jnp.log(safe), landmark)
    exists = jnp.where(number == own_block, total > 0, has_landmark & (number < own_block))
    return inside * of_key(_softmax(gate, exists))


def grouped_pattern(scores: Float[Array, 'B H T N C'], visible: Bool[Array, 'B T H N C']) -> Float[Array, 'B H T N C']:
    """The grouped softmax over N blocks that each query and head chose (`blocks.py`), the last of them its own.

    >>> pattern = grouped_pattern(jnp.zeros((1, 1, 1, 2, 3)), jnp.array([[[[[True] * 3, [True, False, False]]]]]))
    >>> pattern[0, 0, 0].tolist()
    [[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]]
    """
    size, visible = scores.shape[-1], jnp.swapaxes(visible, 1, 2)
    ordinary = visible & (jnp.arange(size) < size - 1).reshape(1, 1, 1, 1, -1)
    inside = _softmax(scores, ordinary)
    hidden = hidden_score(scores.dtype)
    own = jax.nn.logsumexp(jnp.where(ordinary, scores, hidden)[..., -1, :], axis=-1, keepdims=True)
    gate = jnp.concatenate([scores[..., :-1, -1], own], axis=-1)
    exists = jnp.concatenate([visible[..., :-1, -1], jnp.any(ordinary[..., -1, :], axis=-1, keepdims=True)], axis=-1)
    return inside * _softmax(gate, exists)[..., None]


def _softmax(scores: Float[Array, '... S'], seen: Bool[Array, '... S']) -> Float[Array, '... S']:
    """Softmax over what is seen; 0 where nothing is."""
    hidden = hidden_score(scores.dtype)
    largest = lax.stop_gradient(jnp.max(jnp.where(seen, scores, hidden), axis=-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores - largest, 0)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)
