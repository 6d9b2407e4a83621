"""Softmax attention over blocks with a running softmax: memory linear in the length, dead blocks never computed.

For each block of queries, over the key blocks j that it may see (`visibility.live_blocks`), with running maximum m, sum l
and output o (Milakov & Gimelshein 2018; Dao et al. 2022, 2023; memory: Rabe & Staats 2021):

    m' = max(m, max_s scores)    p = exp(scores − m')    l' = l e^{m−m'} + Σ_s p    o' = o e^{m−m'} + p v_j

and out = o / l at the end. The backward pass keeps m, l and out alone and rebuilds p. With ḡ = g / l for the gradient g
of the output and δ = ḡ·out,

    dv_j += pᵀ ḡ      ds = p (ḡ v_jᵀ − δ)      dq += scale ds k_j      dk_j += scale dsᵀ q      dbias = ds

where the softcap multiplies ds by its slope. m and l are kept apart, not as m + log l: exp(s − m) / l stays exact where
logits are large. Both passes walk the blocks of queries one after another with an inner loop whose length is read from
the table; the backward one carries dk and dv. Plain `jax.numpy`: batch and heads are never merged, so both stay sharded.
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
    """Attention between the places of queries and keys, in blocks of `block` tokens (None: 64 up to 512 tokens, else 256)."""
    block = block or (64 if max(q.shape[1], k.shape[1]) <= 512 else 256)
    form = Form(rule, scale, softcap, min(block, q.shape[1]), min(block, k.shape[1]))
    return _attention(form, q, k, v, bias, query, key)


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
        q_i, shape = _at(grid.q, i), grid.q.shape[1:-1]

        def key_block(n: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            largest, total, out = carry
            j = grid.order[i, n]
            to_scores, products, bias_ij = grid.products(i, j, q_i)
            scores = to_scores(products, bias_ij)
            raised = jnp.maximum(largest, jnp.max(scores, axis=-1))
            weights, kept = jnp.exp(scores - raised[..., None]), jnp.exp(largest - raised)
            update = _product('bgrts,bgsv->bgrtv', weights, _at(grid.v, j), dtype)
            return raised, total * kept + jnp.sum(weights, axis=-1), out * kept[..., None] + update

        start = jnp.full(shape, hidden, dtype), jnp.zeros(shape, dtype), jnp.zeros((*shape, v.shape[-1]), dtype)
        largest, total, out = lax.fori_loop(0, grid.number[i], key_block, start)
        # A query that saw nobody: its weights, exp(hidden - hidden), count nothing here and in the backward pass.
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
        q_i = _at(grid.q, i)
        g_i = (_at(gradients, i) * _at(share, i)[..., None]).astype(v.dtype)
        delta = jnp.sum(g_i.astype(dtype) * _at(outs, i).astype(dtype), axis=-1, keepdims=True)
        largest_i = _at(largest, i)[..., None]

        def key_block(n: Array, carry: tuple) -> tuple:
            dq_i, dk, dv, dbias = carry
            j = grid.order[i, n]
            to_scores, products, bias_ij = grid.products(i, j, q_i)
            scores, pull = jax.vjp(to_scores, products, bias_ij)
            weights = jnp.exp(scores - largest_i)
            dv = _add(dv, _product2('bgrtv,bgrts->bgvs', g_i, weights, dtype), j)
            dscores = weights * (_product('bgrtv,bgsv->bgrts', g_i, _at(grid.v, j), dtype) - delta)
            dproducts, dbias_ij = pull(dscores)
            dk = _add(dk, _product2('bgrtk,bgrts->bgks', q_i, dproducts, dtype), j)
            dq_i = dq_i + _product('bgrts,bgsk->bgrtk', dproducts, _at(grid.k, j), dtype)
            return dq_i, dk, dv, grid.put_bias(dbias, dbias_ij, i, j)

        dq_i, *carry = lax.fori_loop(0, grid.number[i], key_block, (jnp.zeros(q_i.shape, dtype), *carry))
        return tuple(carry), dq_i.astype(q.dtype)

    start = jnp.zeros(grid.k.swapaxes(-1,-2).shape, dtype), jnp.zeros(grid.v.swapaxes(-1,-2).shape, dtype), jax.tree.map(jnp.zeros_like, grid.bias)
    (dk, dv, dbias), dq = lax.scan(query_block, start, jnp.arange(grid.q.shape[0]))
    dq = _join(dq, q.shape[1]).reshape(q.shape)
    dk, dv = _join(dk.swapaxes(-1,-2), k.shape[1]).astype(k.dtype), _join(dv.swapaxes(-1,-2), v.shape[1]).astype(v.dtype)
    if bias is not None:
        dbias = dbias.reshape(*bias.shape[:2], *dbias.shape[3:])[:, :, : bias.shape[2], : bias.shape[3]]
    return dq, dk, dv, dbias, None, None


_attention.defvjp(_forward, _backward)


class _Grid:
    """A call cut into blocks: q [nq,B,G,R,t,K], k and v [nk,B,G,s,·], bias [B|1,G|1,R|1,T,S]; heads are G groups of R."""

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
            heads = (1, 1) if bias.shape[1] == 1 else (self.groups, -1)
            missing = ((0, total - size) for total, size in zip(padded, bias.shape[2:]))
            self.bias = jnp.pad(bias, ((0, 0), (0, 0), *missing)).reshape(bias.shape[0], *heads, *padded)

    def cut_queries(self, x: Array) -> Array:
        """Cuts [B,T,H,·] into [nq,B,G,R,t,·]."""
        return _cut(x.reshape(*x.shape[:2], self.groups, -1, x.shape[3]), self.form.query_block)

    def products(self, i: Array, j: Array, q_i: Array) -> tuple[Callable, Array, Array | None]:
        """For block (i, j) the function to its scores and that function's arguments: the products q·k and the bias."""
        mask = visible(self.form.rule, self.query.block(i), self.key.block(j))
        to_scores = functools.partial(
            shape_scores,
            mask=None if mask is None else mask[:, None, None],
            scale=self.form.scale,
            softcap=self.form.softcap,
        )
        products = _product('bgrtk,bgsk->bgrts', q_i, _at(self.k, j), at_least_float32(q_i, self.k))
        if self.bias is None:
            return to_scores, products, None
        size = (*self.bias.shape[:3], self.form.query_block, self.form.key_block)
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


def _product(letters: str, x: Array, y: Array, dtype: jnp.dtype) -> Array:
    """An einsum with operands in y's dtype (the activations') and a sum in `dtype`."""
    return jnp.einsum(letters, x.astype(y.dtype), y, preferred_element_type=dtype)

def _product2(letters: str, x: Array, y: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum(letters, x, y.astype(x.dtype), preferred_element_type=dtype)
