"""The system claim: attention of windows of very different sizes, flat, against rows filled up to the largest window.

flat             the chunks of `scattered_attention`: N rows, whatever the windows are
padded linear    the same attention on [windows, largest], masked
padded softmax   softmax attention on the same rows, window after window
"""

import statistics
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.cost import Cost, Make, draw, measure, print_table, slopes_from
from experiments.papers.scatterformer.settings import PAPER, Size
from jattn.mixers.scattered_linear import EPSILON, scattered_attention, with_ones
from jattn.typing import Array, Float, Int32

FLAT, EVEN, PADDED, SOFTMAX = 'flat', 'flat, even windows', 'padded linear', 'padded softmax'


def window_sizes(tokens: int, mean: int, sigma: float) -> np.ndarray:
    """Sizes that sum to `tokens`, the quantiles of a log-normal law in random order.

    >>> sizes = window_sizes(2048, 16, 1.06)
    >>> int(sizes.sum()), int(sizes.min()) >= 1, window_sizes(64, 16, 0.0).tolist()
    (2048, True, [16, 16, 16, 16])
    """
    count = max(tokens // mean, 1)
    normal = statistics.NormalDist()
    law = np.exp([sigma * normal.inv_cdf((n + 0.5) / count) for n in range(count)])
    borders = np.round(np.cumsum(law) / law.sum() * (tokens - count)).astype(int)
    sizes = 1 + np.diff(borders, prepend=0)
    return np.random.default_rng(0).permutation(sizes)


def padded_rows(sizes: np.ndarray) -> Int32[np.ndarray, 'M P']:
    """The token at each place of each window; past its end N, which is no token.

    >>> padded_rows(np.array([2, 1])).tolist()
    [[0, 1], [2, 3]]
    """
    place, first = np.arange(sizes.max())[None], (np.cumsum(sizes) - sizes)[:, None]
    return np.where(place < sizes[:, None], first + place, sizes.sum()).astype(np.int32)


def padded_linear(
    q: Float[Array, '1 N H K'], k: Float[Array, '1 N H K'], v: Float[Array, '1 N H K'], index: Int32[Array, 'M P']
) -> Float[Array, '1 N H K']:
    """Linear attention of both sides on padded windows; q and k behind the ReLU."""
    tokens = q.shape[1]
    q, k, v = (_gather(x, index) for x in (q, k, with_ones(v)))
    sums = jnp.einsum('mphk,mphv->mhkv', k, v)
    z = jnp.einsum('mphk,mhkv->mphv', q, sums)
    return _scatter(z[..., :-1] / (z[..., -1:] + EPSILON), index, tokens)


def padded_softmax(
    q: Float[Array, '1 N H K'], k: Float[Array, '1 N H K'], v: Float[Array, '1 N H K'], index: Int32[Array, 'M P']
) -> Float[Array, '1 N H K']:
    """Softmax attention on padded windows, one at a time."""
    tokens = q.shape[1]

    def one(window: Int32[Array, 'P']) -> Float[Array, 'P H K']:
        own_q, own_k, own_v = (_gather(x, window[None])[0] for x in (q, k, v))
        scores = jnp.einsum('phk,shk->hps', own_q, own_k) * q.shape[-1] ** -0.5
        scores = jnp.where((window < tokens)[None, None], scores, -jnp.inf)
        return jnp.einsum('hps,shk->phk', jax.nn.softmax(scores, axis=-1), own_v)

    return _scatter(jax.lax.map(one, index), index, tokens)


def _gather(x: Float[Array, '1 N H K'], index: Int32[Array, 'M P']) -> Float[Array, 'M P H K']:
    return x[0].at[index].get(mode='fill', fill_value=0)


def _scatter(z: Float[Array, 'M P H K'], index: Int32[Array, 'M P'], tokens: int) -> Float[Array, '1 N H K']:
    return jnp.zeros((tokens, *z.shape[2:]), z.dtype).at[index].set(z, mode='drop')[None]


def inputs(size: Size, tokens: int) -> tuple[Float[Array, '1 N H K'], ...]:
    """q, k behind the ReLU, and v."""
    shape = (1, tokens, size.heads, size.channels // size.heads)
    q, k, v = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3))
    return nn.relu(q), nn.relu(k), v


def table(context: ClaimContext, size: Size) -> dict[str, Cost]:
    """Time and memory at every number of tokens, printed and drawn."""

    def flat(sigma: float) -> Make:
        def make(tokens: int) -> tuple:
            sizes = window_sizes(tokens, size.mean_window, sigma)
            segments = jnp.asarray(np.repeat(np.arange(1, len(sizes) + 1), sizes)[None], jnp.int32)
            return scattered_attention, (*inputs(size, tokens), segments)

        return make

    def padded(function: Callable) -> Make:
        def make(tokens: int) -> tuple:
            index = jnp.asarray(padded_rows(window_sizes(tokens, size.mean_window, size.sigma)))
            return function, (*inputs(size, tokens), index)

        return make

    makes = {
        FLAT: flat(size.sigma),
        EVEN: flat(0.0),
        PADDED: padded(padded_linear),
        SOFTMAX: padded(padded_softmax),
    }
    found = measure(makes, size.cost_lengths, size.repeats, say=context.say)
    title = f'N tokens in log-normal windows of {size.mean_window} on average, {size.channels} channels'
    print_table(title, found, slopes_from(size.cost_lengths))
    draw(found, context.out / 'cost.png', title, slopes_from(size.cost_lengths))
    return found


def difference(size: Size) -> float:
    """The largest difference between the flat form and its padded one, over the largest output."""
    tokens = size.cost_lengths[-1]
    sizes = window_sizes(tokens, size.mean_window, size.sigma)
    segments = jnp.asarray(np.repeat(np.arange(1, len(sizes) + 1), sizes)[None], jnp.int32)
    own = jax.jit(scattered_attention)(*inputs(size, tokens), segments)
    other = jax.jit(padded_linear)(*inputs(size, tokens), jnp.asarray(padded_rows(sizes)))
    return float(jnp.max(jnp.abs(own - other)) / jnp.max(jnp.abs(other)))


def lines(found: Mapping[str, Cost], apart: float, size: Size) -> list[Line]:
    """Flat attention knows nothing of windows; what is padded pays for the largest."""
    longest, shortest = size.cost_lengths[-1], slopes_from(size.cost_lengths)
    sizes = window_sizes(longest, size.mean_window, size.sigma)
    rows = padded_rows(sizes).size / longest
    at = {name: cost.at(longest) for name, cost in found.items()}
    where = f'{longest} tokens in {len(sizes)} windows, largest {sizes.max()}'
    span = f'N from {max(shortest, size.cost_lengths[0])} to {longest}'
    slope = found[FLAT].slope(shortest=shortest)
    memory = found[PADDED].at(longest, 'bytes') / found[FLAT].at(longest, 'bytes')
    return [
        Line.number(PAPER, f'{where}: rows when padded, over tokens', rows, near=(20.0, 4.0)),
        Line.number(PAPER, f'{where}: difference between flat and padded, relative', apart, below=1e-4),
        Line.number(PAPER, f'exponent of N in the time of flat attention, {span}', slope, near=(1.0, 0.15)),
        Line.number(PAPER, f'{where}: time of flat attention over even windows', at[FLAT] / at[EVEN], near=(1.0, 0.25)),
        Line.number(PAPER, f'{where}: time of {PADDED} over flat', at[PADDED] / at[FLAT], above=3.0),
        Line.number(PAPER, f'{where}: memory of {PADDED} over flat', memory, above=3.0),
        Line.number(PAPER, f'{where}: time of {SOFTMAX} over flat', at[SOFTMAX] / at[FLAT], above=3.0),
    ]
