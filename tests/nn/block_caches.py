"""Runs the policies of `jattn/nn/block_cache.py` on queries, keys and values drawn at random, for their tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jattn.contract import Context, locate
from jattn.nn.rotary import rotate
from jattn.ops.softmax_attention.blocks import block_attend, block_pattern, block_scores

B, T, H, G, K = 2, 40, 4, 2, 6
WHOLE = np.ones((B, T), np.int32)
PACKED = np.array([[0] * 2 + [3] * 23 + [0] + [4] * 14, [1] * 7 + [2] * 33], np.int32)
DOCUMENTS = ((0, 2, 25), (0, 26, 40), (1, 0, 7), (1, 7, 40))  # (row, start, end)


def draw(seed=0, tokens=T):
    random = np.random.default_rng(seed)
    shapes = ((B, tokens, H, K), (B, tokens, G, K), (B, tokens, G, K))
    return tuple(1.5 * random.normal(size=shape).astype(np.float32) for shape in shapes)


@functools.cache
def compiled(cache, pattern=block_pattern):
    """`(state or None, q, k, v, segments) -> state, (outputs, chosen, distance, seen)`."""

    @jax.jit
    def call(state, q, k, v, segments):
        rows = locate(Context(segments=segments), q.shape[:2], None if state is None else state.cursor)
        state, view = cache.extend(state, q, k, v, rows, rotate)
        few = view.read()
        z = block_attend(pattern(block_scores(few.q, few.k, few.visible), few.visible), few.v)
        return state, (z, view.chosen, view.distance, view.seen)

    return call


def run(cache, arrays, segments=WHOLE, size=None, pattern=block_pattern, capacity=T):
    """The outputs, chosen blocks, distances and seen tokens, in calls of `size` tokens (None: without a state)."""
    call = compiled(cache, pattern)
    if size is None:
        return [np.asarray(x) for x in call(None, *arrays, segments)[1]]
    state, parts = cache.init(B, capacity, G, K, K, jnp.float32, heads=H), []
    for start in range(0, arrays[0].shape[1], size):
        part = slice(start, start + size)
        state, out = call(state, *(x[:, part] for x in (*arrays, segments)))
        parts.append(out)
    return [np.concatenate(x, axis=1) for x in zip(*parts)]


def turn(x, position):
    """Rotary embedding of [..., K] in numpy."""
    half = x.shape[-1] // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def softmax(x):
    weights = np.exp(x - np.max(x))
    return weights / np.sum(weights)


def assert_documents_are(read, cache, size, pattern=block_pattern, segments=PACKED):
    """`read(cache, q [T,H,K], k [T,H,K], v [T,H,K]) -> [T,H,K]` of each document alone."""
    arrays = draw()
    z = run(cache, arrays, segments, size, pattern)[0]
    for row, start, end in DOCUMENTS:
        q, k, v = (np.repeat(x[row, start:end], H // x.shape[2], axis=1).astype(np.float64) for x in arrays)
        np.testing.assert_allclose(z[row, start:end], read(cache, q, k, v), atol=2e-5)
