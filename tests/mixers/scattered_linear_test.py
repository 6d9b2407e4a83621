"""Scattered linear attention against a dense loop over windows; its chunks, its padding, its convolutions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers.scattered_linear import (
    EPSILON,
    ScatteredLinearConfig,
    scattered_attention,
    scattered_reference,
    voxel_convolution,
)
from jattn.ops import gated_linear_attention

B, T, H, K = 2, 41, 2, 4
CFG = ScatteredLinearConfig(width=8, heads=H, chunk=8)
GRID = (2, 12, 12)
CROSS = dataclasses.replace(CFG, cross_window=True, window=4, grid=GRID)
RANDOM = np.random.default_rng(0)


def windows(sizes, before=0):
    """Ids of windows of these sizes, with padding (id 0) before and after; a size below 0 is padding."""
    ids = np.concatenate(
        [np.zeros(before, int)] + [np.full(abs(n), 2 * m + 1 if n > 0 else 0) for m, n in enumerate(sizes)]
    )
    return np.pad(ids, (0, T - len(ids))).astype(np.int32)


LAYOUTS = {
    'random': np.stack([windows([5, 1, 1, 9, 2, 17, 1, 3]), windows([3, 1, -4, 20, 1, 1, 2], before=6)]),
    'one': np.ones((B, T), np.int32),
    'voxels': np.stack([windows([1] * T), windows([1] * 30, before=4)]),
    'gaps': np.stack([windows([-9, 3, -10, 12, -7]), np.repeat(windows([10, 10]), 1)]),
    'split': np.stack([np.r_[[7] * 9, [0] * 20, [7] * 6, [8] * 6], np.zeros(T)]).astype(np.int32),
}
SEGMENTS = LAYOUTS['random']
Q, K_, V = (RANDOM.normal(size=(B, T, H, K)) for _ in range(3))
Q, K_ = np.maximum(Q, 0), np.maximum(K_, 0)
X = RANDOM.normal(size=(B, T, 8)).astype(np.float32)


@functools.cache
def attention_of(chunk):
    """The compiled `(q, k, v, segments) -> y` by chunks; chunk None: the reference."""
    if chunk is None:
        return jax.jit(scattered_reference)
    return jax.jit(functools.partial(scattered_attention, chunk=chunk))


def attend(q, k, v, segments, chunk=8):
    with jax.enable_x64(True):
        return np.asarray(attention_of(chunk)(q, k, v, segments))


def by_window(q, k, v, segments):
    """A dense loop: all pairs of a window."""
    y = np.zeros_like(v)
    for row in range(len(q)):
        for window in set(segments[row]) - {0}:
            at = np.flatnonzero(segments[row] == window)
            scores = np.einsum('thk,shk->hts', q[row, at], k[row, at])
            sums = np.einsum('hts,shv->thv', scores, v[row, at])
            y[row, at] = sums / (scores.sum(-1).T[..., None] + EPSILON)
    return y


@functools.cache
def run(cfg):
    return jax.jit(lambda variables, x, context: cfg.make().apply(variables, x, context)[0])


@functools.cache
def parameters(cfg):
    return nn.unbox(jax.jit(cfg.make().init)(jax.random.key(1), X, scene()[0]))['params']


@functools.cache
def scene(side=4):
    """The contexts of two rows of voxels drawn from the grid, sorted by window, and the windows' places."""
    rows = [RANDOM.permutation(np.prod(GRID))[:T] for _ in range(B)]
    at = np.stack([np.stack(np.unravel_index(row, GRID), -1) for row in rows])
    ids = 1 + at[..., 1] // side * (GRID[2] // side) + at[..., 2] // side
    order = np.argsort(ids, axis=1, kind='stable')
    at, ids = np.take_along_axis(at, order[..., None], 1), np.take_along_axis(ids, order, 1)
    return Context(segments=jnp.array(ids, jnp.int32), coordinates=jnp.array(at, jnp.int32)), at // [1, side, side]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('chunk', [1, 8, 32, T, None])
def test_any_windows_in_any_chunks_are_a_dense_loop_over_windows(layout, chunk):
    segments = LAYOUTS[layout]
    np.testing.assert_allclose(attend(Q, K_, V, segments, chunk), by_window(Q, K_, V, segments), atol=1e-12)


def test_the_layer_is_its_equations_in_float32():
    p = parameters(CFG)
    y = run(CFG)({'params': p}, X, Context(segments=jnp.array(SEGMENTS)))
    q, k, v = (np.einsum('btd,dhk->bthk', X, p[f'{name}_proj']['kernel']) for name in 'qkv')
    z = by_window(np.maximum(q, 0), np.maximum(k, 0), v, SEGMENTS)
    np.testing.assert_allclose(y, np.einsum('bthv,hvd->btd', z, p['o_proj']['kernel']), atol=1e-5)


def test_one_voxel_a_window_hands_on_its_value():
    y = attend(Q, K_, V, LAYOUTS['voxels'])[0]
    score = np.sum(Q[0] * K_[0], -1, keepdims=True)
    np.testing.assert_allclose(y, score * V[0] / (score + EPSILON), atol=1e-14)
    assert np.any(score == 0) and np.all(y[score[..., 0] == 0] == 0)


def test_one_window_is_ordinary_linear_attention_without_a_mask():
    """That of both directions of the causal recurrence, the token itself taken once."""
    q, k, v = (a.astype(np.float32) for a in (Q, K_, np.concatenate([V, np.ones_like(V[..., :1])], -1)))
    causal = jax.jit(functools.partial(gated_linear_attention, log_decay=None, scale=1.0))
    both = causal(q, k, v) + causal(q[:, ::-1], k[:, ::-1], v[:, ::-1])[:, ::-1]
    sums = both - np.sum(q * k, -1, keepdims=True) * v
    expected = sums[..., :-1] / (sums[..., -1:] + EPSILON)
    np.testing.assert_allclose(attend(Q, K_, V, LAYOUTS['one']), expected, atol=2e-4)


def test_permuted_voxels_have_permuted_outputs_and_windows_know_nothing_of_each_other():
    context, _ = scene()
    variables = {'params': parameters(CFG)}
    y = np.asarray(run(CFG)(variables, X, context))
    segments = np.asarray(context.segments)
    # Voxels within windows, and the windows themselves (renamed, so that ids stay sorted).
    order = np.lexsort((RANDOM.random(segments.shape), -segments), axis=1)
    renamed = 100 - np.take_along_axis(segments, order, 1)
    take = lambda a: np.take_along_axis(a, order[..., None], 1)
    np.testing.assert_allclose(run(CFG)(variables, take(X), Context(segments=renamed)), take(y), atol=1e-5)
    window = segments[0, T // 2]
    own = (segments == window) & (np.arange(B) == 0)[:, None]
    changed = np.asarray(run(CFG)(variables, np.where(own[..., None], -2 * X, X), context))
    np.testing.assert_array_equal(changed[~own], y[~own])
    assert np.all(np.any(changed[own] != y[own], -1))


@pytest.mark.parametrize('cfg', [CFG, CROSS], ids=['alone', 'cross_window'])
def test_padding_changes_nothing_in_outputs_or_gradients(cfg):
    context, _ = scene()
    variables = {'params': parameters(cfg)}
    weights = RANDOM.normal(size=X.shape).astype(np.float32)

    @jax.jit
    def pull(variables, x, context, weights):
        def loss(variables, x):
            y = cfg.make().apply(variables, x, context)[0]
            return jnp.sum(weights * jnp.sin(y)), y

        return jax.grad(loss, (0, 1), has_aux=True)(variables, x)

    def padded(a, value):
        return jnp.concatenate([jnp.full_like(a[:, :3], value), a[:, :9], jnp.full_like(a[:, :5], value), a[:, 9:]], 1)

    (grads, towards), y = pull(variables, X, context, weights)
    # What stands at padding, its coordinates among them, is rubbish.
    rows = Context(segments=padded(context.segments, 0), coordinates=padded(context.coordinates, 1))
    (grads_p, towards_p), y_p = pull(variables, padded(jnp.array(X), 9.0), rows, padded(jnp.array(weights), 3.0))
    for ours, theirs in ((y_p, y), (towards_p, towards)):
        np.testing.assert_allclose(ours, padded(theirs, 0.0), atol=2e-5)
    for ours, theirs in zip(jax.tree.leaves(grads_p), jax.tree.leaves(grads)):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_gradients_are_those_of_the_reference():
    weights = RANDOM.normal(size=V.shape)

    def pull(chunk):
        loss = lambda q, k, v: jnp.sum(weights * jnp.sin(attention_of(chunk)(q, k, v, SEGMENTS)))
        return jax.jit(jax.grad(loss, (0, 1, 2)))(Q + 0.1, K_ + 0.1, V)

    with jax.enable_x64(True):
        for ours, exact in zip(pull(8), pull(None)):
            np.testing.assert_allclose(ours, exact, atol=1e-11)
            assert np.all(np.any(exact != 0, axis=(0, 1)))


def test_sums_are_float32_in_bfloat16():
    """Four hundred equal values: a bfloat16 sum of the weights would stop at 256."""
    ones = jnp.ones((1, 400, 1, 1), jnp.bfloat16)
    y = jax.jit(scattered_attention)(ones, ones, 3 * ones, jnp.ones((1, 400), jnp.int32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), 3)


def largest_array(tokens):
    """Of the arrays of the traced program, in numbers."""
    x, ids = jnp.zeros((1, tokens, 1, 16)), jnp.zeros((1, tokens), jnp.int32)
    jaxpr = jax.make_jaxpr(scattered_attention)(x, x, x, ids)
    return max(var.aval.size for eqn in jaxpr.jaxpr.eqns for var in eqn.outvars)


def test_no_outer_product_a_token_stands_in_memory():
    assert largest_array(1024) == 1024 * 32  # scores inside chunks of 32
    assert largest_array(4096) == 4 * largest_array(1024)


def test_convolutions_are_those_of_the_voxels_that_there_are():
    context, _ = scene()
    at, kernel = np.asarray(context.coordinates), RANDOM.normal(size=(3, 3, 3, 8))
    expected = np.zeros(X.shape)
    for row in range(B):
        for i, own in enumerate(at[row]):
            for j, other in enumerate(at[row]):
                if np.all(np.abs(other - own) <= 1):
                    expected[row, i] += kernel[tuple(other - own + 1)] * X[row, j]
    with jax.enable_x64(True):
        y = voxel_convolution(jnp.array(X, jnp.float64), jnp.array(kernel), context.coordinates, None, GRID)
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_cross_window_is_the_published_four_groups():
    context, _ = scene()
    p = parameters(CROSS)
    assert {name: leaf.shape for name, leaf in p['cross_window'].items()} == {
        'zyx': (3, 3, 3, 2),
        'along_x': (1, 1, 5, 2),
        'along_y': (1, 5, 1, 2),
    }
    alone = {name: leaf for name, leaf in p.items() if name != 'cross_window'}
    u = run(CFG)({'params': alone}, X, context)
    groups = jnp.split(u, 4, axis=-1)
    for i, name in enumerate(('zyx', 'along_x', 'along_y')):
        groups[i] = voxel_convolution(groups[i], p['cross_window'][name], context.coordinates, None, GRID)
    y = run(CROSS)({'params': p}, X, context)
    np.testing.assert_allclose(y, u + jnp.concatenate(groups, -1), atol=1e-5)
    np.testing.assert_allclose(y[..., 6:], 2 * u[..., 6:], atol=1e-5)


def test_each_layer_carries_information_exactly_one_window_further():
    """A dense scene of one level, 5 windows of 4 along x: what one voxel changes, window by window."""
    cfg = dataclasses.replace(CROSS, grid=(1, 4, 20))
    y, x = np.divmod(np.arange(80), 20)
    order = np.argsort(x // 4, kind='stable')
    at = np.stack([0 * x, y, x], -1)[order][None]
    context = Context(segments=jnp.array(1 + at[..., 2] // 4, jnp.int32), coordinates=jnp.array(at, jnp.int32))
    inputs = np.random.default_rng(1).normal(size=(1, 80, 8)).astype(np.float32)
    params = {'params': parameters(CROSS)}

    def windows_changed(layers):
        def out(x):
            for _ in range(layers):
                x = x + run(cfg)(params, x, context)
            return np.asarray(x)

        moved = inputs.copy()
        moved[0, 0] += 1  # in the first window
        changed = np.any(out(moved) != out(inputs), -1)[0]
        return sorted({int(window) for window in at[0, changed, 2] // 4})

    assert [windows_changed(layers) for layers in (1, 2, 3)] == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_voxels_off_the_grid_are_nan_and_touch_no_other():
    at = jnp.array([[[0, 0, 0], [0, -1, 0], [2, 0, 0], [1, 0, 0]]])
    u, kernel = jnp.array([[[1.0], [10.0], [100.0], [1000.0]]]), jnp.ones((3, 3, 3, 1))
    y = voxel_convolution(u, kernel, at, None, (2, 1, 1))
    np.testing.assert_array_equal(y.ravel(), [1001, np.nan, np.nan, 1001])


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'chunk': 0}, 'chunk=0 must be at least 1'),
        ({'cross_window': True, 'window': 5}, 'window=5 must be even'),
        ({'cross_window': True}, 'grid=None must be the voxels along z, y and x'),
        ({'cross_window': True, 'grid': (1, 8, 8), 'width': 30}, 'width=30 must be a multiple of groups=4'),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ScatteredLinearConfig(**fields)


def test_missing_coordinates_and_states_are_named():
    with pytest.raises(ValueError, match=r'reads context.coordinates \[B, T, 3\], but there are none'):
        jax.eval_shape(CROSS.make().init, jax.random.key(0), X)
    with pytest.raises(ValueError, match='sees both sides and has no state'):
        CFG.init_state(1, 1)
    with pytest.raises(ValueError, match='sees both sides and has no state'):
        jax.eval_shape(CFG.make().init, jax.random.key(0), X, Context(), ())
