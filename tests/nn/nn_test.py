"""The small parts: norms, projections, rotary, the short convolution, feed-forward, losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context, Cursor, locate
from jattn.flops import count_flops
from jattn.nn.feed_forward import ACTIVATIONS, FeedForwardConfig
from jattn.nn.linear import Linear
from jattn.nn.losses import Mean, cross_entropy
from jattn.nn.norm import NORMS
from jattn.nn.rotary import rotate
from jattn.nn.short_convolution import ShortConvolution, short_convolution


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_linear_contracts_all_input_axes():
    x = normal(2, 3, 4, 5)
    y, variables = Linear((7,), ('heads', 'head', 'embed'), use_bias=True).init_with_output(jax.random.key(0), x)
    params = nn.unbox(variables)['params']
    np.testing.assert_allclose(y, jnp.einsum('bthk,hkd->btd', x, params['kernel']), rtol=1e-4, atol=1e-5)
    assert params['bias'].shape == (7,)


def test_linear_starts_with_outputs_as_large_as_inputs():
    y, _ = Linear((512,), ('heads', 'head', 'embed')).init_with_output(jax.random.key(0), normal(64, 16, 32))
    assert 0.9 < float(jnp.std(y)) < 1.1


@pytest.mark.parametrize('name', NORMS)
def test_norms_keep_the_dtype_and_compute_in_float32(name):
    x = 300 * normal(2, 8).astype(jnp.bfloat16)
    y, _ = NORMS[name]().init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.std(y.astype(jnp.float32), axis=-1), 1, atol=0.2)


def test_rotated_scores_depend_on_the_distance_alone():
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)
    score = lambda i, j: jnp.sum(rotate(q, jnp.array([[i]])) * rotate(k, jnp.array([[j]])))
    np.testing.assert_allclose(score(3, 1), score(1003, 1001), rtol=1e-3)
    np.testing.assert_allclose(score(5, 5), jnp.sum(q * k), rtol=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
    with pytest.raises(ValueError, match='head_dim=7 must be even'):
        rotate(normal(1, 1, 1, 7), jnp.array([[0]]))


def test_a_short_convolution_starts_at_a_tenth_by_its_taps_alone():
    variables = nn.unbox(ShortConvolution(4).init(jax.random.key(0), normal(1, 8, 64), locate(Context(), (1, 8))))
    assert abs(float(jnp.std(variables['params']['kernel'])) - 0.05) < 0.005


def naive_convolution(x, kernel, segments):
    y = np.zeros_like(x)
    for b, t in np.ndindex(*segments.shape):
        own = [s for s in range(t + 1) if segments[b, s] == segments[b, t] != 0]
        for back, s in enumerate(reversed(own)):
            if back < len(kernel):
                y[b, t] += kernel[-1 - back] * x[b, s]
    return y


def test_convolution_stays_within_documents_across_any_cut():
    segments = jnp.array([[0, 0, 1, 1, 1, 1, 0, 2, 2, 2], [3, 3, 3, 3, 3, 3, 3, 3, 0, 0]], jnp.int32)
    x, kernel = normal(2, 10, 3), normal(4, 3, seed=1)
    expected = naive_convolution(np.asarray(x), np.asarray(kernel), np.asarray(segments))
    real = np.asarray(segments > 0)
    whole, _ = short_convolution(x, kernel, locate(Context(segments=segments), (2, 10)))
    np.testing.assert_allclose(whole[real], expected[real], rtol=1e-4, atol=1e-5)

    @jax.jit
    def call(x, segments, cursor, tail):
        rows = locate(Context(segments=segments), segments.shape, cursor)
        return *short_convolution(x, kernel, rows, tail), rows.cursor

    x, segments = np.asarray(x), np.asarray(segments)
    for cut in range(1, 10):
        cursor, tail, parts = Cursor.fresh(2), jnp.zeros((2, 3, 3)), []
        for piece in (slice(0, cut), slice(cut, 10)):
            y, tail, cursor = call(x[:, piece], segments[:, piece], cursor, tail)
            parts.append(y)
        np.testing.assert_allclose(np.concatenate(parts, 1)[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('gated', [False, True])
def test_feed_forward_declares_its_flops(gated):
    cfg = FeedForwardConfig(expansion=3, gated=gated)
    x = normal(1, 6, 8)
    variables = nn.unbox(cfg.make().init(jax.random.key(0), x))
    assert count_flops(lambda x: cfg.make().apply(variables, x), x) == cfg.flops(8, 6)


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activations_are_finite_and_not_constant(name):
    y = ACTIVATIONS[name](jnp.linspace(-5, 5, 11))
    assert np.all(np.isfinite(y)) and np.ptp(y) > 1


def test_cross_entropy_is_that_of_optax_and_masks():
    logits, targets = normal(2, 3, 5), jnp.array([[0, 1, 2], [4, 4, 0]])
    expected = -jax.nn.log_softmax(logits)[np.arange(2)[:, None], np.arange(3)[None], targets]
    mask = jnp.array([[1, 0, 1], [1, 1, 0]])
    found = cross_entropy(logits, targets, mask)
    np.testing.assert_allclose(found.value(), (expected * mask).sum() / 4, rtol=1e-5)
    z = jax.nn.logsumexp(logits, axis=-1)
    with_z = cross_entropy(logits, targets, mask, z_loss=0.1)
    np.testing.assert_allclose(with_z.total - found.total, 0.1 * (z**2 * mask).sum(), rtol=1e-4)


def test_a_masked_nan_does_not_count_nor_reach_the_gradient():
    values = jnp.array([1.0, jnp.nan])
    mean = lambda v: Mean.of(v, jnp.array([1, 0])).value()
    assert mean(values) == 1
    assert np.all(np.isfinite(jax.grad(mean)(values)))
