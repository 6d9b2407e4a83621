"""Sums over lags against a loop over pairs, with documents, in value and gradient; whole, in calls, and in a stream."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context, Cursor, locate
from jattn.flops import count_flops
from jattn.nn.lag_sums import BLOCK, NEAR, fft_sums, lag_sums, stream_lag_sums
from jattn.ops import segments as documents

B, T, D = 2, 45, 3
SEGMENTS = np.array([[0] * 3 + [2] * 30 + [0] * 2 + [5] * 9 + [0], [1] * 17 + [3] + [4] * 27], np.int32)
SHAPES = {'matrix': (D, D), 'vector': (D,), 'number': (1,)}
WINDOWS = (1, 5, NEAR, NEAR + 1, 40, 100)


def drawn(kind, window):
    random = np.random.default_rng(0)
    x = random.normal(size=(B, T, D))
    return x, None if kind == 'one' else random.normal(size=(window, *SHAPES[kind]))


def by_pairs(x, weights, segments, window):
    """The sums as a matrix [T, T] of lags, masked by document."""
    lag = np.arange(T)[:, None] - np.arange(T)[None]
    seen = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, None] & ((lag >= 0) & (lag < window))[None]
    if weights is None:
        return jnp.einsum('bts,bsd->btd', seen.astype(x.dtype), x)
    each = weights[np.clip(lag, 0, window - 1)]
    equation = 'bts,bsd,tsdf->btf' if weights.ndim == 3 else 'bts,bsd,tsd->btd'
    if weights.shape[1:] == (1,):
        each = jnp.broadcast_to(each, (T, T, D))
    return jnp.einsum(equation, seen.astype(x.dtype), x, each)


def by_lags(x, weights, segments, window):
    return lag_sums(x, weights, window, documents.positions(segments))


def by_lags_of_one_document(x, weights, segments, window):
    del segments
    return lag_sums(x, weights, window)


@pytest.mark.parametrize('kind', ['matrix', 'vector', 'number', 'one'])
@pytest.mark.parametrize('window', WINDOWS)
def test_sums_over_lags_are_those_over_pairs_of_a_document_in_value_and_gradient(kind, window):
    def loss(sums):
        def total(arrays, segments):
            y = jnp.where((segments > 0)[..., None], sums(*arrays, segments, window), 0)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    with jax.enable_x64(True):
        arrays = drawn(kind, window)
        for sums, segments in ((by_lags, SEGMENTS), (by_lags_of_one_document, np.ones_like(SEGMENTS))):
            ours, exact = loss(sums)(arrays, segments), loss(by_pairs)(arrays, segments)
            for own, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(exact)):
                np.testing.assert_allclose(own, expected, atol=1e-11)


@functools.cache
def streamed(kind):
    @jax.jit
    def call(x, segments, cursor, count, tail, weights):
        rows = locate(Context(segments=segments), x.shape[:2], cursor)
        reach = rows.index + jnp.where(rows.carried, count[:, None], 0)
        y, tail = stream_lag_sums(x, weights, rows, reach, tail)
        return y, rows.cursor, jnp.where(rows.cursor.segment == cursor.segment, count, 0), reach, tail

    return call


@pytest.mark.parametrize('kind', ['matrix', 'vector', 'number', 'one'])
@pytest.mark.parametrize('size', [1, 9])
def test_calls_of_any_size_go_on_from_the_last_inputs(kind, size):
    """The window is longer than a call and shorter than a document, so that the tail is renewed many times over."""
    x, weights = (None if part is None else part.astype(np.float32) for part in drawn(kind, 20))
    # What is no document's has no say, however large: the tail starts full of it.
    cursor, count, tail = Cursor.fresh(B), jnp.zeros(B, jnp.int32), jnp.full((B, 19, D), 1e30, jnp.float32)
    outputs = []
    for start in range(0, T, size):
        part = slice(start, start + size)
        segments = jnp.array(SEGMENTS[:, part])
        y, cursor, count, reach, tail = streamed(kind)(x[:, part], segments, cursor, count, tail, weights)
        last = jnp.max(jnp.where((segments > 0) & (segments == cursor.segment[:, None]), reach + 1, 0), axis=1)
        count = jnp.maximum(count, last)
        outputs.append(y)
    real = SEGMENTS > 0
    exact = by_pairs(x, weights, SEGMENTS, 20)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1)[real], np.asarray(exact)[real], atol=2e-5)


@pytest.mark.parametrize('kind', ['vector', 'number'])
@pytest.mark.parametrize('window', [5, 100])
def test_fourier_sums_are_those_of_whole_documents(kind, window):
    with jax.enable_x64(True):
        x, weights = drawn(kind, window)
        exact = by_pairs(x, weights, np.ones((B, T), np.int32), window)
        np.testing.assert_allclose(fft_sums(x, weights), exact, atol=1e-12)


def test_a_constant_added_long_ago_leaves_no_trace_in_plain_sums():
    """A running sum from which old tokens are taken back would keep the rounding of 1e8."""
    x = np.random.default_rng(1).normal(size=(1, T, 1)).astype(np.float32)
    x[:, 0] = 1e8
    sums = lag_sums(x, None, 10)
    np.testing.assert_allclose(sums[0, 20:, 0], np.convolve(x[0, :, 0], np.ones(10))[20:T], atol=1e-5)


def products(kind, tokens, window):
    """Operations at width 8."""
    shape = {'matrix': (8, 8), 'vector': (8,), 'number': (1,)}
    weights = None if kind == 'one' else jnp.ones((window, *shape[kind]))
    return count_flops(lambda x: lag_sums(x, weights, window), jnp.ones((1, tokens, 8)))


def test_products_grow_with_length_times_window_and_ones_need_none():
    assert products('matrix', 64, 32) == 2 * 64 * 32 * 8 * 8
    assert products('one', 64, 32) == 0
    for kind in ('vector', 'number'):
        assert products(kind, 512, 64) == 4 * products(kind, 128, 64) == 2 * 512 * (64 + BLOCK) * 8
