"""Causal attention within clusters: a token sees the last w members of its cluster and document, itself included.

    z_t = sum_s softmax_s(scale q_t . (k_s + r_ts)) (v_s + u_ts)      r, u: learned vectors of the rank of s behind t

or, with `top_attention`, every cluster takes its w best tokens, and a token gets the mean over the lists it is in.
Queries and keys are one. `prefix_attention` lays the tokens out cluster by cluster, O((T + C w) (C + w) K) a head, and
what a token gets does not depend on later ones, bit for bit. `stream` goes on from rings, which hold the last w keys
and values of every cluster: a call of one token reads one ring; a longer one puts the rings before its own tokens.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from jattn.contract import Cursor, Rows
from jattn.ops import segments as documents
from jattn.ops.softmax_attention.reference import hidden_score
from jattn.typing import Array, Bool, Float, Int32, at_least_float32


@struct.dataclass
class Relative:
    """The vectors of the ranks 0 .. w-1 behind a query, [w, K]: one for logits, one for values."""

    k: Float[Array, 'w K']
    v: Float[Array, 'w K']


@struct.dataclass
class ClusterRings:
    """The last members of every cluster in the document so far.

    Attributes:
        count: [B, H, C], how many there were.
        k, v: [B, H, C, w, K], the last ones; member n stands in slot n % w.
    """

    count: Int32[Array, 'B H C']
    k: Float[Array, 'B H C w K']
    v: Float[Array, 'B H C w K']

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: jnp.dtype) -> 'ClusterRings':
        """Those before any token; `shape` is that of k and v."""
        return cls(jnp.zeros(shape[:3], jnp.int32), jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def attend_ranks(
    q: Float[Array, '... T K'],
    k: Float[Array, '... S K'],
    v: Float[Array, '... S V'],
    q_ids: Int32[Array, '... T'],
    k_ids: Int32[Array, '... S'],
    *,
    members: int,
    relative: Relative | None,
    scale: float | None,
    mask_self: bool,
) -> Float[Array, '... T V']:
    """Attention among the members of lists; the queries are the last T of the S keys.

    A query sees the keys of its id that stand 0 .. members-1 ranks before it; id 0 sees nobody and is seen by nobody.
    """
    wide, (tokens, keys) = at_least_float32(q), (q.shape[-2], k.shape[-2])
    rank = (keys - tokens) + jnp.arange(tokens)[:, None] - jnp.arange(keys)[None]
    seen = visible(_like(rank, q_ids), q_ids, k_ids, members, mask_self)
    logits = jnp.einsum('...tk,...sk->...ts', q, k, preferred_element_type=wide)
    if relative is not None:
        by_rank = jnp.einsum('...tk,rk->...tr', q, relative.k.astype(q.dtype), preferred_element_type=wide)
        at = jnp.broadcast_to(_like(jnp.clip(rank, 0, members - 1), q_ids), logits.shape)
        logits = logits + jnp.take_along_axis(by_rank, at, axis=-1)
    logits = jnp.where(seen, logits * (1.0 if scale is None else scale), hidden_score(wide))
    weights = jnp.where(seen, jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    pattern = (weights / jnp.where(total > 0, total, 1)).astype(v.dtype)

    z = jnp.einsum('...ts,...sv->...tv', pattern, v, preferred_element_type=wide)
    if relative is not None:
        key = (keys - tokens) + jnp.arange(tokens)[:, None] - jnp.arange(members)[None]
        at = jnp.broadcast_to(_like(jnp.maximum(key, 0), q_ids), (*pattern.shape[:-1], members))
        by_rank = jnp.where(_like(key >= 0, q_ids), jnp.take_along_axis(pattern, at, axis=-1), 0)
        z = z + jnp.einsum('...tr,rv->...tv', by_rank, relative.v.astype(v.dtype), preferred_element_type=wide)
    return z.astype(v.dtype)


def visible(
    rank: Int32[Array, '... T S'],
    q_ids: Int32[Array, '... T'],
    k_ids: Int32[Array, '... S'],
    members: int,
    mask_self: bool,
) -> Bool[Array, '... T S']:
    """Who sees whom; `rank` says how far each key stands before each query."""
    seen = (rank >= 0) & (rank < members) & (q_ids[..., :, None] == k_ids[..., None, :]) & (q_ids > 0)[..., None]
    if not mask_self:
        return seen
    others = seen & (rank > 0)
    return jnp.where(jnp.any(others, axis=-1, keepdims=True), others, seen)


def _like(matrix: Array, ids: Array) -> Array:
    """[T, S] with leading axes of size 1 for those of ids [..., T]."""
    return matrix.reshape(*[1] * (ids.ndim - 1), *matrix.shape)


def top_lists(
    scores: Float[Array, 'B H T C'], real: Bool[Array, 'B T'], members: int
) -> tuple[Int32[Array, 'B H C w'], Bool[Array, 'B H C w']]:
    """The best real tokens of every centroid, in order, and which places of the lists are filled.

    >>> scores = jnp.array([0.1, 0.9, 0.5]).reshape(1, 1, 3, 1)
    >>> top_lists(scores, jnp.array([[True, True, True]]), 2)[0].tolist()
    [[[[1, 2]]]]
    """
    scores = jnp.where(real[:, None, :, None], jax.lax.stop_gradient(scores), -jnp.inf)
    best, index = jax.lax.top_k(jnp.moveaxis(scores, 2, 3), min(members, scores.shape[2]))
    index = jnp.sort(jnp.where(best > -jnp.inf, index, scores.shape[2]), axis=-1)  # places left over come last
    filled = index < scores.shape[2]
    return jnp.where(filled, index, 0), filled


def top_attention(
    q: Float[Array, 'B H T K'],
    v: Float[Array, 'B H T V'],
    scores: Float[Array, 'B H T C'],
    segments: Int32[Array, 'B T'],
    members: int,
    attend: functools.partial,
) -> Float[Array, 'B H T V']:
    """Every centroid's list attends within itself; a token gets the mean over its lists."""
    index, filled = top_lists(scores, segments > 0, members)
    row, head = jnp.arange(len(q))[:, None, None, None], jnp.arange(q.shape[1])[None, :, None, None]
    ids = jnp.where(filled, segments[row, index], 0)
    q = q[row, head, index]
    z = attend(q, q, v[row, head, index], ids, ids)
    total = jnp.zeros(v.shape, at_least_float32(v)).at[row, head, index].add(jnp.where(filled[..., None], z, 0))
    count = jnp.zeros(v.shape[:3], total.dtype).at[row, head, index].add(filled.astype(total.dtype))
    return (total / jnp.maximum(count, 1)[..., None]).astype(v.dtype)


def ranks(
    cluster: Int32[Array, 'B H T'], real: Bool[Array, 'B H T'], clusters: int
) -> tuple[Int32[Array, 'B H T'], Int32[Array, 'B H C']]:
    """How many real tokens of its cluster stand before each, and how many each cluster has.

    >>> ranks(jnp.array([[[0, 1, 0, 0]]]), jnp.array([[[True, True, False, True]]]), 2)[0].tolist()
    [[[0, 0, 0, 1]]]
    """
    joined = jax.nn.one_hot(cluster, clusters, dtype=jnp.int32) * real[..., None].astype(jnp.int32)
    upto = jnp.cumsum(joined, axis=2)
    own = jnp.take_along_axis(upto, cluster[..., None], axis=-1)[..., 0]
    return jnp.where(real, own - 1, 0), upto[:, :, -1]


def document_ids(
    segments: Int32[Array, 'B T'], first: Int32[Array, 'B'], cluster: Int32[Array, 'B H T'], clusters: int
) -> Int32[Array, 'B H T']:
    """One number for each pair of a document and a cluster, 0 for padding; a row's first document is number `first`."""
    document = first[:, None] + jnp.cumsum(documents.resets(segments), axis=1, dtype=jnp.int32)
    return jnp.where((segments > 0)[:, None], document[:, None] * clusters + cluster, 0)


def prefix_attention(
    q: Float[Array, 'B H T K'],
    v: Float[Array, 'B H T V'],
    cluster: Int32[Array, 'B H T'],
    ids: Int32[Array, 'B H T'],
    clusters: int,
    members: int,
    attend: functools.partial,
) -> Float[Array, 'B H T V']:
    """Every token over the last members of its cluster, itself included.

    The tokens are laid out cluster by cluster, each from a block's start on, so that what is added up for a token, and
    in which order, does not depend on later ones. A block of queries reads its keys and those of `members` before it.
    """
    tokens = q.shape[2]
    size = min(max(members // 4, min(members, 16)), tokens)
    count = tokens // size + clusters
    before = min(-(-(members - 1) // size), -(-tokens // size) - 1)
    rank, total = ranks(cluster, ids > 0, clusters)
    blocks = -(-total // size)
    start = size * (jnp.cumsum(blocks, axis=-1) - blocks)
    slot = jnp.take_along_axis(start, cluster, axis=-1) + rank
    slot = jnp.where(ids > 0, slot, count * size + jnp.arange(tokens)[None, None])  # out of bounds: dropped
    row, head = jnp.arange(len(q))[:, None, None], jnp.arange(q.shape[1])[None, :, None]

    def lay(x: Array) -> Array:
        """[B, H, T, ...] to blocks [B, H, N, size, ...]."""
        laid = jnp.zeros((*x.shape[:2], count * size, *x.shape[3:]), x.dtype)
        laid = laid.at[row, head, slot].set(x, mode='drop', unique_indices=True)
        return laid.reshape(*x.shape[:2], count, size, *x.shape[3:])

    def with_blocks_before(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, 0), (before, 0), *[(0, 0)] * (x.ndim - 3)))
        return jnp.concatenate([padded[:, :, n : n + count] for n in range(before + 1)], axis=3)

    def attend_blocks(q: Array, v: Array, ids: Array) -> Array:
        return attend(q, with_blocks_before(q), with_blocks_before(v), ids, with_blocks_before(ids))

    # Nothing is kept for the backward pass but the laid out tokens.
    z = jax.checkpoint(attend_blocks)(lay(q), lay(v), lay(ids))
    return z.reshape(*z.shape[:2], -1, z.shape[-1]).at[row, head, slot].get(mode='fill', fill_value=0)


def stream(
    q: Float[Array, 'B H T K'],
    v: Float[Array, 'B H T V'],
    cluster: Int32[Array, 'B H T'],
    rows: Rows,
    cursor: Cursor,
    rings: ClusterRings,
    attend: functools.partial,
) -> tuple[Float[Array, 'B H T V'], ClusterRings]:
    """`prefix_attention` that goes on from rings, and those with the call's last document; `cursor`: that before it."""
    tokens, (clusters, members) = q.shape[2], rings.k.shape[2:4]
    new = write(rings, q, v, cluster, rows, cursor)
    if tokens == 1:
        k_seen, v_seen, filled = newest_last(new, cluster[:, :, 0])
        real = jnp.broadcast_to(rows.segments[:, None] > 0, cluster.shape).astype(jnp.int32)
        return attend(q, k_seen.astype(q.dtype), v_seen.astype(v.dtype), real, filled.astype(jnp.int32)), new

    # Rings are tokens that stand before the call's own, of document 1.
    each = jnp.broadcast_to(jnp.arange(clusters)[None, None], rings.count.shape)
    old_k, old_v, filled = newest_last(rings, each)
    old_cluster = jnp.repeat(each, members, axis=2)
    old = (*(part.reshape(*part.shape[:2], -1, part.shape[-1]) for part in (old_k, old_v)), old_cluster)
    old_ids = jnp.where(filled.reshape(old_cluster.shape), clusters + old_cluster, 0)
    own_ids = document_ids(rows.segments, jnp.where(rows.continues, 1, 2), cluster, clusters)
    joined = zip((*old, old_ids), (q, v, cluster, own_ids))
    whole = (jnp.concatenate([before.astype(own.dtype), own], axis=2) for before, own in joined)
    return prefix_attention(*whole, clusters, members, attend)[:, :, -tokens:], new


def newest_last(
    rings: ClusterRings, cluster: Int32[Array, 'B H *N']
) -> tuple[Float[Array, 'B H *N w K'], Float[Array, 'B H *N w K'], Bool[Array, 'B H *N w']]:
    """The keys and values in the rings of some clusters, the newest last, and which of them are filled."""
    members = rings.k.shape[3]
    wide = lambda x: x.reshape(*x.shape, *[1] * (cluster.ndim - x.ndim + 1))
    row, head = wide(jnp.arange(len(cluster))), wide(jnp.arange(cluster.shape[1])[None])
    count = rings.count[row[..., 0], head[..., 0], cluster][..., None]
    age = jnp.arange(members).reshape(*[1] * cluster.ndim, members)
    at = (row, head, cluster[..., None], (count + age) % members)
    return rings.k[at], rings.v[at], count + age >= members


def write(
    rings: ClusterRings,
    k: Float[Array, 'B H T K'],
    v: Float[Array, 'B H T V'],
    cluster: Int32[Array, 'B H T'],
    rows: Rows,
    cursor: Cursor,
) -> ClusterRings:
    """Puts the tokens of the call's last document into the rings; `cursor`: before the call."""
    clusters, members = rings.k.shape[2:4]
    kept = (rows.segments > 0) & (rows.segments == rows.cursor.segment[:, None])
    kept = jnp.broadcast_to(kept[:, None], cluster.shape)
    carried_on = rows.cursor.segment == cursor.segment
    before = jnp.where(carried_on[:, None, None], rings.count, 0)
    rank, total = ranks(cluster, kept, clusters)
    count = before + total
    index, end = (jnp.take_along_axis(x, cluster, axis=-1) for x in (before, count))
    index = index + rank
    # Of the tokens that share a slot only the newest is stored: scatters have no order.
    slot = jnp.where(kept & (index >= end - members), index % members, members)
    at = (jnp.arange(len(k))[:, None, None], jnp.arange(k.shape[1])[None, :, None], cluster, slot)
    stored = (old.at[at].set(own.astype(old.dtype), mode='drop') for old, own in ((rings.k, k), (rings.v, v)))
    return ClusterRings(count, *stored)
