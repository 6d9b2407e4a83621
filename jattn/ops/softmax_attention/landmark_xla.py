"""The grouped softmax of `landmark.py` block by block: two running softmaxes, memory linear in the length.

For some queries, over the blocks j of their documents, a few at a time: the inner softmax runs over each block's keys,
a tile at a time, and leaves their maximum m and sum l; then the outer one takes the block in,

    gate = m + log l (own block) or q.k_landmark      M' = max(M, gate)   p = exp(gate - M')
    L' = L exp(M - M') + p                            o' = o exp(M - M') + p u

with the mean u of its values under r = exp(s - m) / l, and out = o / L. The backward pass keeps M, 1/L and out, and
makes the inner softmax anew. With the gradient g of out and P = exp(gate - M) / L, the block's share,

    dgate = P (g.u - g.out)      ds = r (P (g.v - g.u) + [own] dgate)      dv = P r g

Blocks stand anywhere in a row and are of any length, other ones in each row, so tiles are cut where a block starts.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jattn.ops import segments as documents
from jattn.ops.softmax_attention.reference import hidden_score
from jattn.typing import Array, Bool, Float, Int32, at_least_float32

QUERIES = 128  # at a time
KEYS = 128  # at a time, in whole tiles: the running output is scaled once for all of them


class Queries(NamedTuple):
    """Where queries stand, [B or 1, T]: the place of the own key (-1: padding), the own block, the document's first."""

    place: Int32[Array, 'B T']
    block: Int32[Array, 'B T']
    first: Int32[Array, 'B T']


class Blocks(NamedTuple):
    """Where blocks stand, [B or 1, N]: the place of the first key, one past the last ordinary key, the last key."""

    start: Int32[Array, 'B N']
    stop: Int32[Array, 'B N']
    last: Int32[Array, 'B N']


@dataclasses.dataclass(frozen=True)
class Form:
    """What is static in a call; `many` blocks are taken in at a time, `tile` keys of each."""

    scale: float
    tile: int

    @property
    def many(self) -> int:
        return max(1, KEYS // self.tile)


def blockwise(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B S G K'],
    v: Float[Array, 'B S G V'],
    landmarks: Bool[Array, 'B S'],
    segments: tuple[Int32[Array, 'B T'], Int32[Array, 'B S']] | None,
    own: Int32[Array, 'B T'],
    *,
    scale: float,
    tile: int,
) -> Float[Array, 'B T H V']:
    """`landmark_attention` with the arguments it has made explicit."""
    if segments is None:
        keys = jnp.ones(landmarks.shape, jnp.int32)
        queries, blocks = _tables(own, landmarks, keys)
    else:
        order = jnp.argsort(segments[1] == 0, axis=1, stable=True)  # a block must have no gap: padding goes to the end
        k, v = (jnp.take_along_axis(x, order[:, :, None, None], axis=1) for x in (k, v))
        landmarks = jnp.broadcast_to(landmarks, order.shape)
        landmarks, keys = (jnp.take_along_axis(x, order, axis=1) for x in (landmarks, segments[1]))
        own = jnp.broadcast_to(jnp.clip(own, 0, k.shape[1] - 1), q.shape[:2])
        place = jnp.take_along_axis(jnp.cumsum(segments[1] != 0, axis=1) - 1, own, axis=1)
        queries, blocks = _tables(jnp.where(segments[0] != 0, place, -1).astype(jnp.int32), landmarks, keys)

    grouped = _cut(q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3]), 0)
    k, v = (jnp.moveaxis(jnp.pad(x, ((0, 0), (0, tile), (0, 0), (0, 0))), 1, 2) for x in (k, v))
    queries = Queries(*(_cut(x, -1) for x in queries))
    form = Form(scale, tile)
    blocks = Blocks(*(jnp.pad(x, ((0, 0), (0, form.many))) for x in blocks))
    out = _attention(form, jnp.moveaxis(grouped, 2, 4), k, v, queries, blocks)
    out = jnp.moveaxis(out, (0, 4), (1, 2)).reshape(q.shape[0], -1, q.shape[2], v.shape[-1])
    return out[:, : q.shape[1]]


def _tables(place: Array, landmarks: Bool[Array, 'B S'], segments: Int32[Array, 'B S']) -> tuple[Queries, Blocks]:
    """The blocks of each row, counted from 0 over all its documents, and where the queries stand."""
    real, opens = segments != 0, documents.openings(segments)
    after_landmark = jnp.pad(landmarks[:, :-1], ((0, 0), (1, 0)))
    number = jnp.cumsum(opens | after_landmark, axis=1, dtype=jnp.int32) - 1
    number = jnp.where(real, number, number.shape[1])
    first = lax.cummax(jnp.where(opens, number, 0), axis=1)

    def of_query(x: Array) -> Array:
        return jnp.where(place < 0, -1, jnp.take_along_axis(x, jnp.maximum(place, 0), axis=1))

    def border(side: str) -> Int32[Array, 'B N']:
        find = functools.partial(jnp.searchsorted, side=side)
        return jax.vmap(find, in_axes=(0, None))(number, jnp.arange(number.shape[1])).astype(jnp.int32)

    start, end = border('left'), border('right')
    last = jnp.maximum(end - 1, 0)
    closed = jnp.take_along_axis(landmarks, last, axis=1) & (end > start)
    return Queries(place, of_query(number), of_query(first)), Blocks(start, end - closed, last)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(form: Form, q: Array, k: Array, v: Array, queries: Queries, blocks: Blocks) -> Array:
    return _forward(form, q, k, v, queries, blocks)[0]


def _forward(form: Form, q: Array, k: Array, v: Array, queries: Queries, blocks: Blocks) -> tuple[Array, tuple]:
    dtype = at_least_float32(q, k, v)
    hidden = hidden_score(dtype)

    def some_queries(part: tuple[Array, Queries]) -> tuple[Array, Array, Array]:
        q_i, queries_i = part

        def fold(n: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            largest, total, out = carry
            few = _Few(form, q_i, k, v, queries_i, blocks, first + n * form.many)
            raised = jnp.maximum(largest, jnp.max(few.gate, axis=-1))
            share = jnp.where(few.exists, jnp.exp(few.gate - raised[..., None]), 0)
            kept = jnp.exp(largest - raised)

            def add(tile: Array, out: Array) -> Array:
                inside, _, v_n, _ = few.tile(tile)
                weights = (share[..., None] * inside).astype(v.dtype)
                return out + jnp.einsum('bgrtnc,bgncv->bgrtv', weights, v_n, preferred_element_type=dtype)

            out = lax.fori_loop(0, few.tiles, add, out * kept[..., None])
            return raised, total * kept + jnp.sum(share, axis=-1), out

        first, steps = _span(form, queries_i)
        shape = q_i.shape[:-1]
        start = jnp.full(shape, hidden, dtype), jnp.zeros(shape, dtype), jnp.zeros((*shape, v.shape[-1]), dtype)
        largest, total, out = lax.fori_loop(0, steps, fold, start)
        share = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
        return (out * share[..., None]).astype(v.dtype), largest, share

    out, largest, share = lax.map(some_queries, (q, queries))
    return out, (q, k, v, queries, blocks, out, largest, share)


def _backward(form: Form, residuals: tuple, gradient: Array) -> tuple:
    q, k, v, queries, blocks, out, largest, share = residuals
    dtype = at_least_float32(q, k, v)

    def some_queries(carry: tuple[Array, Array], part: tuple) -> tuple[tuple[Array, Array], Array]:
        q_i, queries_i, out_i, g_i, largest_i, share_i = part
        g_i = g_i.astype(dtype)
        delta = jnp.sum(g_i * out_i.astype(dtype), axis=-1)

        def fold(n: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            dq, dk, dv = carry
            few = _Few(form, q_i, k, v, queries_i, blocks, first + n * form.many)
            share = jnp.where(few.exists, jnp.exp(few.gate - largest_i[..., None]) * share_i[..., None], 0)

            def towards(v_n: Array) -> Float[Array, 'B G R T N C']:
                return jnp.einsum('bgrtv,bgncv->bgrtnc', g_i, v_n, preferred_element_type=dtype)

            def add_mean(tile: Array, mean: Array) -> Array:
                inside, _, v_n, _ = few.tile(tile)
                return mean + jnp.sum(inside * towards(v_n), axis=-1)

            towards_mean = lax.fori_loop(0, few.tiles, add_mean, jnp.zeros_like(few.gate))
            dgate = share * (towards_mean - delta[..., None])
            dlandmark = form.scale * jnp.where(few.own, 0, dgate)
            dq += jnp.einsum('bgrtn,bgnk->bgrtk', dlandmark, few.landmarks)
            dk = _add(dk, jnp.einsum('bgrtk,bgrtn->bgkn', q_i, dlandmark)[..., None], few.last)

            def add(tile: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
                dq, dk, dv = carry
                inside, k_n, v_n, start = few.tile(tile)
                outer = share[..., None] * (towards(v_n) - towards_mean[..., None])
                dscores = form.scale * inside * (outer + jnp.where(few.own, dgate, 0)[..., None])
                dq += jnp.einsum('bgrtnc,bgnck->bgrtk', dscores, k_n)
                dk = _add(dk, jnp.einsum('bgrtk,bgrtnc->bgknc', q_i, dscores), start)
                dv = _add(dv, jnp.einsum('bgrtv,bgrtnc->bgvnc', g_i, inside * share[..., None]), start)
                return dq, dk, dv

            return lax.fori_loop(0, few.tiles, add, (dq, dk, dv))

        first, steps = _span(form, queries_i)
        dq, *carry = lax.fori_loop(0, steps, fold, (jnp.zeros(q_i.shape, dtype), *carry))
        return tuple(carry), dq.astype(q.dtype)

    # Keys last: a sum over the queries then transposes the narrow q and g, not the scores.
    start = tuple(jnp.zeros(jnp.swapaxes(x, 2, 3).shape, dtype) for x in (k, v))
    (dk, dv), dq = lax.scan(some_queries, start, (q, queries, out, gradient, largest, share))
    return dq, *(jnp.swapaxes(d, 2, 3).astype(x.dtype) for d, x in ((dk, k), (dv, v))), None, None


_attention.defvjp(_forward, _backward)


class _Few:
    """The N blocks from `number` on as some queries [B,G,R,t,K] see them: gates and inner sums, all [B,G,R,t,N]."""

    def __init__(
        self, form: Form, q: Array, k: Array, v: Array, queries: Queries, blocks: Blocks, number: Array
    ) -> None:
        self.form, self.q, self.k, self.v = form, q, k, v
        self.start, self.stop, self.last = (lax.dynamic_slice_in_dim(x, number, form.many, axis=1) for x in blocks)
        numbers = number + jnp.arange(form.many)[None, None]
        place, own, first = (x[..., None] for x in queries)
        self.place, self.in_document = place, (first <= numbers) & (numbers <= own)
        self.tiles = jnp.max(-(-(self.stop - self.start) // form.tile))
        self.own = (own == numbers)[:, None, None]

        dtype = at_least_float32(q, k, v)
        shape = (*q.shape[:-1], form.many)
        start = jnp.full(shape, hidden_score(dtype), dtype), jnp.zeros(shape, dtype)
        self.largest, total = lax.fori_loop(0, self.tiles, self._fold, start)
        self.total = jnp.where(total > 0, total, 1)
        self.landmarks = _slices(k, self.last, 1)[:, :, :, 0]
        gate = form.scale * jnp.einsum('bgrtk,bgnk->bgrtn', q, self.landmarks, preferred_element_type=dtype)
        gate = jnp.where(self.own, self.largest + jnp.log(self.total), gate)
        self.exists = jnp.where(self.own, total > 0, self.in_document[:, None, None])
        self.gate = jnp.where(self.exists, gate, hidden_score(dtype))

    def tile(self, n: Array) -> tuple[Array, ...]:
        """The n-th tile of each: weights inside the block [B,G,R,t,N,C], keys, values, and where it starts [B,N]."""
        scores, seen, k, start = self._scores(n)
        inside = jnp.where(seen, jnp.exp(jnp.where(seen, scores - self.largest[..., None], 0)), 0)
        return inside / self.total[..., None], k, _slices(self.v, start, self.form.tile), start

    def _fold(self, n: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        largest, total = carry
        scores, seen, *_ = self._scores(n)
        raised = jnp.maximum(largest, jnp.max(jnp.where(seen, scores, hidden_score(scores.dtype)), axis=-1))
        weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores - raised[..., None], 0)), 0)
        return raised, total * jnp.exp(largest - raised) + jnp.sum(weights, axis=-1)

    def _scores(self, n: Array) -> tuple[Array, ...]:
        size, start = self.form.tile, self.start + n * self.form.tile
        k, dtype = _slices(self.k, start, size), at_least_float32(self.q, self.k)
        scores = self.form.scale * jnp.einsum('bgrtk,bgnck->bgrtnc', self.q, k, preferred_element_type=dtype)
        place = start[..., None] + jnp.arange(size)[None, None]
        seen = (place < self.stop[..., None])[:, None] & (place[:, None] <= self.place[..., None])
        return scores, (seen & self.in_document[..., None])[:, None, None], k, start


def _span(form: Form, queries: Queries) -> tuple[Array, Array]:
    """The first block that some of the queries see, and how many steps lead to the last."""
    first = jnp.min(jnp.where(queries.place >= 0, queries.first, jnp.iinfo(jnp.int32).max))
    end = jnp.max(queries.block) + 1
    first = jnp.minimum(first, end)
    return first, -(-(end - first) // form.many)


def _cut(x: Array, filler: int) -> Array:
    """[B, T, ...] to [parts, B, QUERIES, ...]."""
    size = min(QUERIES, x.shape[1])
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2)), constant_values=filler)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _slices(x: Float[Array, 'B G S K'], starts: Int32[Array, 'B N'], size: int) -> Float[Array, 'B G N C K']:
    """Slices of each row; where `starts` has one row, the same of all."""

    def cut(x: Array, start: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim - 2)

    if len(starts) == 1:
        return jax.vmap(cut, (None, 0), 2)(x, starts[0])
    return jax.vmap(jax.vmap(cut, (None, 0), 1))(x, starts)


def _add(x: Float[Array, 'B G K S'], update: Float[Array, 'B G K N C'], starts: Int32[Array, 'B N']) -> Array:
    """Adds to the slices, which may overlap."""
    size = update.shape[-1]

    def add(x: Array, new: Array, start: Array) -> Array:
        old = lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim - 1)
        return lax.dynamic_update_slice_in_dim(x, old + new, start, axis=x.ndim - 1)

    for n in range(starts.shape[1]):
        start, new = starts[:, n], update[..., n, :]
        x = add(x, new, start[0]) if len(start) == 1 else jax.vmap(add)(x, new, start)
    return x
