"""One chunk of gated linear attention on the plain matrices of one head: the mathematics that every fast form runs.

With chunk tokens c, s and the state S at the chunk's start (kept as [V, K], so that a decay per key channel is a row):

    y_c = scale · ( S (q_c ∘ into_c) + Σ_{s≤c} scores_cs v_s )         S' = S Diag(across) + Σ_s v_s (k_s ∘ out_of_s)^T

    scores_cs = Σ_k q_ck k_sk exp(Σ_{s<t≤c} log_decay_tk)
    into_c = exp(Σ_{t≤c} log_decay_t)         out_of_s = exp(Σ_{t>s} log_decay_t)         across = exp(Σ_t log_decay_t)

Every exponent is a sum of log decays, taken as a 0/1 matrix times the log decays and never as a difference of two
cumulative sums. So nothing overflows (all exponents ≤ 0), nothing cancels (a weak decay after a strong one keeps its
digits), a border between documents is a log decay of -10^4 and no mask, and no cumulative sum is needed, which TPU
kernels lack. The body holds rank-2 products, no slices and no loops: what Triton, Mosaic and XLA all take, and what
`jax.vjp` turns into the backward step, inside a kernel as well as outside.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jattn.typing import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How a backend multiplies matrices; arrays are float32, or float64, throughout.

    Attributes:
        precision: of products of queries, keys, values, scores and states.
        exact: of 0/1 matrices times log decays; anything below full digits would show as a wrong decay.
        mask_columns: sum a single column [C, 1] by masking and adding: matrix units refuse so narrow a product.
    """

    precision: lax.PrecisionLike
    exact: lax.PrecisionLike
    mask_columns: bool = False

    def multiply(self, letters: str, a: Array, b: Array) -> Array:
        """einsum of two matrices."""
        return jnp.einsum(letters, a, b, precision=self.precision)

    def add_up(self, mask: Bool[Array, 'C C'], x: Float[Array, 'C N']) -> Float[Array, 'C N']:
        """Row c: the sum of the rows t of x where mask_ct."""
        if self.mask_columns and x.shape[1] == 1:
            return jnp.sum(jnp.where(mask, row_of(x), 0), axis=1, keepdims=True)
        return jnp.einsum('ct,tn->cn', mask.astype(x.dtype), x, precision=self.exact)


def step(
    state: Float[Array, 'V K'],
    q: Float[Array, 'C K'],
    k: Float[Array, 'C K'],
    v: Float[Array, 'C V'],
    log_decay: Float[Array, 'C N'] | None,
    *,
    scale: float,
    arithmetic: Arithmetic,
) -> tuple[Float[Array, 'V K'], Float[Array, 'C V']]:
    """The state after the chunk and its outputs, both in the state's dtype; log_decay [C, 1] or [C, K], None: 0."""
    multiply = arithmetic.multiply
    q, k, v = (x.astype(state.dtype) for x in (q, k, v))
    into, out_of, across = decays(log_decay, arithmetic)
    (products,) = scores([(q, k)], log_decay, arithmetic)
    y = multiply('ck,vk->cv', q * into, state) + multiply('cs,sv->cv', products, v)
    return across * state + multiply('cv,ck->vk', v, k * out_of), scale * y


def decays(
    log_decay: Float[Array, 'C N'] | None, arithmetic: Arithmetic, *, strict: bool = False
) -> tuple[Array | float, ...]:
    """From the chunk's start into every token [C, N], out of every token to its end [C, N], and all across [1, N].

    strict: into a token without its own decay, for what reads the state before that token.
    """
    if log_decay is None:
        return 1.0, 1.0, 1.0
    rows, columns = places(log_decay.shape[0])
    seen = columns < rows if strict else columns <= rows
    into, out_of = (arithmetic.add_up(mask, log_decay) for mask in (seen, columns > rows))
    return jnp.exp(into), jnp.exp(out_of), jnp.exp(jnp.sum(log_decay, axis=0, keepdims=True))


def scores(
    pairs: Sequence[tuple[Array, Array]], log_decay: Array | None, arithmetic: Arithmetic, *, strict: bool = False
) -> list[Float[Array, 'C C']]:
    """For every (q, k): the products q_c·k_s for s ≤ c, every channel times the decay after s up to c; 0 for s > c.

    strict: for s < c, times the decay after s and before c.
    """
    if log_decay is not None and log_decay.shape[1] > 1:
        return _channel_scores(pairs, log_decay, arithmetic, strict)
    rows, columns = places(pairs[0][0].shape[0])
    seen = columns < rows if strict else columns <= rows
    products = [arithmetic.multiply('ck,sk->cs', q, k) for q, k in pairs]
    if log_decay is not None:
        between = jnp.exp(arithmetic.add_up(seen, jnp.where(rows > columns, log_decay, 0)))
        products = [product * between for product in products]
    return [jnp.where(seen, product, 0) for product in products]


def _channel_scores(
    pairs: Sequence[tuple[Array, Array]], log_decay: Array, arithmetic: Arithmetic, strict: bool
) -> list[Float[Array, 'C C']]:
    """A decay per channel cannot leave the product: it is split between q and k, at a border between the two tokens.

    Cut the chunk into blocks of 2^level tokens. Two tokens s < c stand in neighbouring blocks of one pair of blocks at
    exactly one level (that of the highest bit in which s and c differ). There c brings the decay from its block's
    start to itself, s the decay after itself to its block's end: the product of the two is the decay between them.
    """
    chunk = log_decay.shape[0]
    rows, columns = places(chunk)
    totals = [jnp.zeros((chunk, chunk), log_decay.dtype) if strict else on_diagonal(q, k) for q, k in pairs]
    for level in range((chunk - 1).bit_length()):
        row_block, column_block = rows >> level, columns >> level
        is_later = row_block % 2 == 1
        reach = (row_block == column_block) & (is_later ^ (columns > rows))
        if strict:
            reach &= rows != columns
        # Between neighbours, at level 0, a strict sum has no terms.
        decay = 1.0 if strict and level == 0 else jnp.exp(arithmetic.add_up(reach, log_decay))
        here = is_later & (row_block - 1 == column_block)
        for i, (q, k) in enumerate(pairs):
            totals[i] += jnp.where(here, arithmetic.multiply('ck,sk->cs', q * decay, k * decay), 0)
    return totals


def on_diagonal(q: Float[Array, 'C K'], k: Float[Array, 'C K']) -> Float[Array, 'C C']:
    """The products q_c·k_c of every token with itself."""
    rows, columns = places(q.shape[0])
    return jnp.where(rows == columns, jnp.sum(q * k, axis=1, keepdims=True), 0)


def row_of(column: Array) -> Array:
    """[C, 1] to [1, C] by masking and adding, which every backend can do."""
    rows, columns = places(column.shape[0])
    return jnp.sum(jnp.where(rows == columns, column, 0), axis=0, keepdims=True)


def column_of(row: Array) -> Array:
    """[1, C] to [C, 1], likewise."""
    rows, columns = places(row.shape[1])
    return jnp.sum(jnp.where(rows == columns, row, 0), axis=1, keepdims=True)


def places(chunk: int) -> tuple[jax.Array, jax.Array]:
    """The row and the column of every entry of a [C, C] matrix."""
    return tuple(lax.broadcasted_iota(jnp.int32, (chunk, chunk), axis) for axis in (0, 1))
