"""Softmax attention over blocks with a running softmax: memory linear in the length, dead blocks never computed.

For each block of queries, over the key blocks j that it may see (`visibility.live_blocks`), with a running maximum m,
sum l and output o (Milakov & Gimelshein 2018; Rabe & Staats 2021; Dao et al. 2022, 2023):

    m' = max(m, max_s scores)    p = exp(scores − m')    l' = l e^{m−m'} + Σ_s p    o' = o e^{m−m'} + p v_j

and out = o / l at the end. The backward pass keeps m, 1/l and out, and rebuilds p. With the gradient g of the output,
ḡ = g / l and δ = ḡ·out,

    dv_j += pᵀ ḡ      ds = p (ḡ v_jᵀ − δ)      dq += scale ds k_j      dk_j += scale dsᵀ q      dbias = ds

where a softcap multiplies ds by its slope. m and l are kept apart, not as m + log l: exp(s − m) / l stays exact where
logits are large. Both passes walk the blocks of queries one after another, with an inner loop over as many key blocks
as are live; the backward one carries dk and dv. Batch and heads are never merged, so that both stay sharded.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jattn.ops.softmax_attention.reference import hidden_score, shape_scores
from jattn.ops.softmax_attention.visibility import Places, Rule, live_blocks, visible
from jattn.typing import Array, Float, at_least_float32


@dataclasses.dataclass(frozen=True)
class Form:
    """What is static in a call: who sees whom, how a product becomes a score, the sizes of the blocks."""

    rule: Rule
    scale: float
    softcap: float | None
    query_block: int
    key_block: int


@functools.partial(jax.jit, static_argnums=0, static_argnames=('softcap', 'scale', 'block'), inline=True)
def xla_attention(
    rule: Rule,
    query: Places,
    key: Places,
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B S G K'],
    v: Float[Array, 'B S G V'],
    *,
    bias: Float[Array, 'B H T S'] | None = None,
    softcap: float | None = None,
    scale: float,
    block: int | None = None,
) -> Float[Array, 'B T H V']:
    """Attention between the places of queries and keys, in blocks of `block` tokens (None: by the length)."""
    block = block or block_size(max(q.shape[1], k.shape[1]))
    form = Form(rule, scale, softcap, min(block, q.shape[1]), min(block, k.shape[1]))
    return _attention(form, q, k, v, bias, query, key)


def block_size(length: int) -> int:
    """Small blocks cut more of a short triangle away, large ones cost fewer turns of a long loop (timed on a CPU)."""
    return 64 if length <= 512 else 128 if length < 2048 else 256


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    form: Form, q: Array, k: Array, v: Array, bias: Array | None, query: Places, key: Places
) -> Float[Array, 'B T H V']:
    return _forward(form, q, k, v, bias, query, key)[0]


def _forward(
    form: Form, q: Array, k: Array, v: Array, bias: Array | None, query: Places, key: Places
) -> tuple[Array, tuple]:
    grid = _Grid(form, q, k, v, bias, query, key)
    dtype = at_least_float32(q, k, v)
    hidden = hidden_score(dtype)

    def query_block(i: Array) -> tuple[Array, Array, Array]:
        q_i = _at(grid.q, i)

        def key_block(n: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            largest, total, out = carry
            j = grid.order[i, n]
            to_scores, products, bias_ij = grid.scoring(i, j, q_i, _at(grid.k, j))
            scores = to_scores(products, bias_ij)
            raised = jnp.maximum(largest, jnp.max(scores, axis=-1))
            weights, kept = jnp.exp(scores - raised[..., None]), jnp.exp(largest - raised)
            update = _einsum('bgrts,bgsv->bgrtv', weights.astype(v.dtype), _at(grid.v, j), dtype)
            return raised, total * kept + jnp.sum(weights, axis=-1), out * kept[..., None] + update

        shape = q_i.shape[:-1]
        start = jnp.full(shape, hidden, dtype), jnp.zeros(shape, dtype), jnp.zeros((*shape, v.shape[-1]), dtype)
        largest, total, out = lax.fori_loop(0, grid.number[i], key_block, start)
        # A query that saw nobody has weights exp(hidden - hidden) = 1: its share 0 strikes them out, backwards too.
        share = jnp.where(largest > hidden, 1 / jnp.where(total > 0, total, 1), 0)
        return (out * share[..., None]).astype(v.dtype), largest, share

    out, largest, share = lax.map(query_block, jnp.arange(grid.q.shape[0]))
    out = _join(out, q.shape[1]).reshape(*q.shape[:3], v.shape[-1])
    return out, (q, k, v, bias, query, key, out, largest, share)


def _backward(form: Form, residuals: tuple, gradient: Array) -> tuple:
    q, k, v, bias, query, key, out, largest, share = residuals
    grid = _Grid(form, q, k, v, bias, query, key)
    dtype = at_least_float32(q, k, v)
    gradients, outs = grid.cut_queries(gradient), grid.cut_queries(out)

    def query_block(carry: tuple, i: Array) -> tuple[tuple, Array]:
        q_i, largest_i = _at(grid.q, i), _at(largest, i)[..., None]
        g_i = (_at(gradients, i) * _at(share, i)[..., None]).astype(v.dtype)
        delta = jnp.sum(g_i.astype(dtype) * _at(outs, i).astype(dtype), axis=-1, keepdims=True)

        def key_block(n: Array, carry: tuple) -> tuple:
            dq_i, dk, dv, dbias = carry
            j = grid.order[i, n]
            k_j, v_j = _at(grid.k, j), _at(grid.v, j)
            to_scores, products, bias_ij = grid.scoring(i, j, q_i, k_j)
            scores, pull = jax.vjp(to_scores, products, bias_ij)
            weights = jnp.exp(scores - largest_i)
            dproducts, dbias_ij = pull(weights * (_einsum('bgrtv,bgsv->bgrts', g_i, v_j, dtype) - delta))
            weights, dproducts = weights.astype(v.dtype), dproducts.astype(q.dtype)
            # Keys last: a sum over the queries then transposes the narrow q_i and g_i, not a whole block of scores.
            dv = _add(dv, _einsum('bgrtv,bgrts->bgvs', g_i, weights, dtype), j)
            dk = _add(dk, _einsum('bgrtk,bgrts->bgks', q_i, dproducts, dtype), j)
            dq_i += _einsum('bgrts,bgsk->bgrtk', dproducts, k_j, dtype)
            return dq_i, dk, dv, grid.put_bias(dbias, dbias_ij, i, j)

        dq_i, *carry = lax.fori_loop(0, grid.number[i], key_block, (jnp.zeros(q_i.shape, dtype), *carry))
        return tuple(carry), dq_i.astype(q.dtype)

    start = (
        jnp.zeros(jnp.swapaxes(grid.k, -1, -2).shape, dtype),
        jnp.zeros(jnp.swapaxes(grid.v, -1, -2).shape, dtype),
        None if bias is None else jnp.zeros_like(grid.bias),
    )
    (dk, dv, dbias), dq = lax.scan(query_block, start, jnp.arange(grid.q.shape[0]))
    dq = _join(dq, q.shape[1]).reshape(q.shape)
    dk, dv = (_join(jnp.swapaxes(d, -1, -2), x.shape[1]).astype(x.dtype) for d, x in ((dk, k), (dv, v)))
    if bias is not None:
        dbias = dbias.reshape(*bias.shape[:2], *dbias.shape[3:])[:, :, : q.shape[1], : k.shape[1]]
    return dq, dk, dv, dbias, None, None


_attention.defvjp(_forward, _backward)


class _Grid:
    """A call cut into blocks: q [nq,B,G,R,t,K], k and v [nk,B,G,s,·], bias [B|1,G|1,R|1,T,S]; H = G R."""

    def __init__(
        self, form: Form, q: Array, k: Array, v: Array, bias: Array | None, query: Places, key: Places
    ) -> None:
        self.form, self.groups = form, k.shape[2]
        self.query, self.key = query.blocks(form.query_block), key.blocks(form.key_block)
        padded = self.query.length, self.key.length
        if padded != (q.shape[1], k.shape[1]):
            self.form = dataclasses.replace(form, rule=dataclasses.replace(form.rule, segmented=True))
        self.order, self.number = live_blocks(self.form.rule, self.query, self.key)
        self.q, self.k, self.v = self.cut_queries(q), _cut(k, form.key_block), _cut(v, form.key_block)
        self.bias = None
        if bias is not None:
            heads = (1, 1) if bias.shape[1] == 1 else (self.groups, bias.shape[1] // self.groups)
            missing = ((0, total - size) for total, size in zip(padded, bias.shape[2:]))
            self.bias = jnp.pad(bias, ((0, 0), (0, 0), *missing)).reshape(bias.shape[0], *heads, *padded)

    def cut_queries(self, x: Array) -> Array:
        """Cuts [B,T,H,·] into [nq,B,G,R,t,·]."""
        return _cut(x.reshape(*x.shape[:2], self.groups, -1, x.shape[3]), self.form.query_block)

    def scoring(self, i: Array, j: Array, q_i: Array, k_j: Array) -> tuple[Callable, Array, Array | None]:
        """For block (i, j) the function to its scores, and that function's arguments: the products q·k and the bias."""
        mask = visible(self.form.rule, self.query.block(i), self.key.block(j))
        to_scores = functools.partial(
            shape_scores,
            mask=None if mask is None else mask[:, None, None],
            scale=self.form.scale,
            softcap=self.form.softcap,
        )
        products = _einsum('bgrtk,bgsk->bgrts', q_i, k_j, at_least_float32(q_i, k_j))
        if self.bias is None:
            return to_scores, products, None
        size = (*self.bias.shape[:3], *products.shape[-2:])
        return to_scores, products, lax.dynamic_slice(self.bias, self._bias_start(i, j), size)

    def put_bias(self, bias: Array | None, block: Array | None, i: Array, j: Array) -> Array | None:
        """Writes block (i, j) of a bias."""
        return None if bias is None else lax.dynamic_update_slice(bias, block, self._bias_start(i, j))

    def _bias_start(self, i: Array, j: Array) -> tuple:
        return 0, 0, 0, i * self.form.query_block, j * self.form.key_block


def _cut(x: Array, size: int) -> Array:
    """[B, T, ..., K] -> [blocks, B, ..., size, K], the last block filled up with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), (1, 2), (0, -2))


def _join(x: Array, length: int) -> Array:
    """The inverse of `_cut`: [blocks, B, ..., size, K] -> [B, T, ..., K]."""
    x = jnp.moveaxis(x, (0, -2), (1, 2))
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _at(x: Array, index: Array) -> Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _add(x: Array, update: Array, index: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, _at(x, index) + update, index, 0)


def _einsum(letters: str, x: Array, y: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum(letters, x, y, preferred_element_type=dtype)
