"""Sums over the last tokens of a document, weighed by how long ago they were: causal convolutions of long filters.

    e_t = sum_{j=0..n_t-1} F_j x_{t-j}      n_t = min(tokens of t's document up to t, l)

F_j is a matrix, a vector, a number, or 1. Matrices cost a product a lag. Vectors and numbers are Toeplitz matrices
between blocks, but for the nearest lags of packed rows, which are shifted products. Ones need no product: sums over
1, 2, 4, ... tokens make each other, and since none is taken back, nothing drifts in a stream. Lags never cross into
another document. The state is the last l-1 inputs; how many of them are the document's its length says, so they are
never cleared.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jattn.contract import Rows
from jattn.typing import Array, Float, Int32, at_least_float32

NEAR = 16  # lags that are summed as shifted products where documents share a row
BLOCK = 64  # tokens of a block where they do not


def lag_sums(
    x: Float[Array, 'B T D'],
    weights: Float[Array, 'l *F'] | None,
    lags: int,
    reach: Int32[Array, 'B T'] | None = None,
    tail: Float[Array, 'B P D'] | None = None,
) -> Float[Array, 'B T D']:
    """sum_j F_j x_{t-j} over the lags j < l that reach back to a token of t's document, float32 at least.

    Args:
        x: the tokens.
        weights: F [l, D, D], [l, D] or [l, 1]; None: ones.
        lags: l.
        reach: how many earlier tokens of its document stand before each token. None: all of x.
        tail: the l-1 tokens before x. None: there are none.

    >>> x = jnp.arange(5.0).reshape(1, 5, 1)
    >>> lag_sums(x, None, 3)[0, :, 0].tolist()
    [0.0, 1.0, 3.0, 6.0, 9.0]
    >>> lag_sums(x, None, 3, reach=jnp.array([[0, 1, 0, 1, 2]]))[0, :, 0].tolist()
    [0.0, 1.0, 2.0, 5.0, 9.0]
    """
    if tail is None:
        lags = min(lags, x.shape[1])
    if weights is None:
        return _plain_sums(x, lags, reach, tail)
    before = jnp.zeros((len(x), lags - 1, x.shape[2]), x.dtype) if tail is None else tail
    line, weights = jnp.concatenate([before, x], axis=1), weights[:lags]
    if weights.ndim == 3:
        return _matrix_sums(line, weights, reach)
    blocks = jax.checkpoint(_block_sums, static_argnums=3)
    if reach is None:
        return blocks(line, weights, None, 0)
    near = _shifted_sums(line, weights[:NEAR], reach)
    return near if lags <= NEAR else near + blocks(line, weights, reach, NEAR)


def stream_lag_sums(
    x: Float[Array, 'B T D'],
    weights: Float[Array, 'l *F'] | None,
    rows: Rows,
    reach: Int32[Array, 'B T'],
    tail: Float[Array, 'B l-1 D'],
) -> tuple[Float[Array, 'B T D'], Float[Array, 'B l-1 D']]:
    """`lag_sums` of a call that goes on from the last l-1 inputs, and those after it."""
    # Between the tail and the call's first real token padding may stand: the row is rolled until they meet.
    real, before = rows.segments > 0, tail.shape[1]
    first, last = jnp.argmax(real, axis=1), x.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    rolled, tail_before = _roll(x, first), tail.astype(x.dtype)
    sums = _roll(lag_sums(rolled, weights, before + 1, _roll(reach, first), tail_before), -first)
    end = jnp.where(jnp.any(real, axis=1), last + 1 - first, 0)
    newest = end[:, None] + jnp.arange(before)[None]
    line = jnp.concatenate([tail_before, rolled], axis=1)
    return sums, jnp.take_along_axis(line, newest[..., None], axis=1).astype(tail.dtype)


def _matrix_sums(line: Array, weights: Float[Array, 'L D D'], reach: Array | None) -> Array:
    """A product a lag; for a single token one over all lags."""
    lags, wide = len(weights), at_least_float32(line)
    tokens = line.shape[1] - lags + 1
    if tokens == 1:
        line = line if reach is None else jnp.where((np.arange(lags)[::-1][None] <= reach)[..., None], line, 0)
        return jnp.einsum('bld,ldf->bf', line[:, ::-1], weights, preferred_element_type=wide)[:, None]

    @jax.checkpoint
    def add(total: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        lag, matrix = now
        x = lax.dynamic_slice_in_dim(line, lags - 1 - lag, tokens, axis=1)
        x = x if reach is None else jnp.where((reach >= lag)[..., None], x, 0)
        return total + jnp.einsum('btd,df->btf', x, matrix, preferred_element_type=wide), None

    start = jnp.zeros((len(line), tokens, weights.shape[2]), wide)
    return lax.scan(add, start, (jnp.arange(lags), weights))[0]


def _shifted_sums(line: Array, weights: Float[Array, 'L F'], reach: Array) -> Array:
    """The first lags, as shifted products."""
    tokens, wide = reach.shape[1], at_least_float32(line)
    before, total = line.shape[1] - tokens, 0
    for lag in range(len(weights)):
        term = line[:, before - lag : before - lag + tokens].astype(wide) * weights[lag].astype(wide)[None, None]
        total = total + jnp.where((reach >= lag)[..., None], term, 0)
    return total


def _block_sums(line: Array, weights: Float[Array, 'L F'], reach: Array | None, first: int) -> Array:
    """The lags from `first` on, as products of blocks of queries with the blocks before them.

    What a block's queries see `first` >= its size tokens back is the document of its first token: one mask of the keys
    serves them all. Without documents nothing is masked, and `first` may be 0.
    """
    lags = len(weights)
    tokens = line.shape[1] - lags + 1
    size = min(first or BLOCK, tokens)
    count, before = -(-tokens // size), -(-(lags - 1) // size)
    line = jnp.pad(line, ((0, 0), (before * size - (lags - 1), -tokens % size), (0, 0)))
    blocks, seen = line.reshape(len(line), before + count, size, -1), range(before if first else before + 1)
    keys = jnp.concatenate([blocks[:, n : n + count] for n in seen], axis=2)
    behind = before * size - np.arange(keys.shape[2])  # how far a key stands before the block's first query
    if reach is not None:
        keys = jnp.where((behind[None, None] <= reach[:, ::size, None])[..., None], keys, 0)

    lag = np.arange(size)[:, None] + behind[None]
    used = (lag >= first) & (lag < lags)
    toeplitz = jnp.where(used[..., None], weights[np.where(used, lag, 0)], 0)
    equation, toeplitz = ('cs,bnsd->bncd', toeplitz[..., 0]) if weights.shape[1] == 1 else ('csd,bnsd->bncd', toeplitz)
    sums = jnp.einsum(equation, toeplitz, keys, preferred_element_type=at_least_float32(line))
    sums = sums.reshape(len(line), count * size, -1)[:, :tokens]
    return sums if reach is None else jnp.where((reach >= first)[..., None], sums, 0)


def _plain_sums(x: Array, lags: int, reach: Array | None, tail: Array | None) -> Array:
    """All lags with weight 1: sums over 1, 2, 4, ... tokens, each of two of those before, and l put together."""
    before = 0 if tail is None else tail.shape[1]
    line = x if tail is None else jnp.concatenate([tail, x], axis=1)
    if tail is not None:
        reach = jnp.concatenate([reach[:, :1] + np.arange(-before, 0)[None], reach], axis=1)

    def earlier(sums: Array, by: Array) -> Array:
        """The sums up to `by` < l tokens ago, 0 where that is another document."""
        padded = jnp.pad(sums, ((0, 0), (lags, 0), (0, 0)))
        moved = lax.dynamic_slice_in_dim(padded, lags - by, sums.shape[1], axis=1)
        return moved if reach is None else jnp.where((reach >= by)[..., None], moved, 0)

    def double(sums: tuple[Array, Array], now: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        (own, total), (size, taken, used) = sums, now
        return (own + earlier(own, size), jnp.where(used, total + earlier(own, taken), total)), None

    sizes = 2 ** np.arange(lags.bit_length())
    used = (lags & sizes) > 0
    taken = lags & (sizes - 1)
    start = line.astype(at_least_float32(line))
    # A loop, since XLA would fuse the levels and add up every token for itself.
    (_, total), _ = lax.scan(double, (start, jnp.zeros_like(start)), (sizes, taken, used))
    return total[:, before:]


def fft_sums(x: Float[Array, 'B T D'], weights: Float[Array, 'l F']) -> Float[Array, 'B T D']:
    """`lag_sums` of whole documents, by the Fourier transform of twice the length, float32 at least."""
    tokens, wide = x.shape[1], at_least_float32(x)
    of_x = jnp.fft.rfft(x.astype(wide), 2 * tokens, axis=1)
    of_weights = jnp.fft.rfft(weights[:tokens].astype(wide), 2 * tokens, axis=0)
    return jnp.fft.irfft(of_x * of_weights[None], 2 * tokens, axis=1)[:, :tokens]


def _roll(x: Float[Array, 'B T *F'], shift: Int32[Array, 'B']) -> Float[Array, 'B T *F']:
    """Rolls each row left by its own shift."""
    at = (jnp.arange(x.shape[1])[None] + shift[:, None]) % x.shape[1]
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)
