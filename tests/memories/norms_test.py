"""Norms at sizes whose powers leave float32, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.memories.norms import lq_direction, lq_norm, row_direction, row_norm


@pytest.mark.parametrize('scale', [1e-30, 1.0, 1e30])
def test_values_and_gradients_are_right_at_any_scale(scale):
    x = np.random.default_rng(0).normal(size=(3, 4))
    at = jnp.asarray(scale * x, jnp.float32)
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(row_norm(at), scale * size, rtol=1e-6)
    np.testing.assert_allclose(row_direction(at), x / size, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(row_norm(x)))(at), x / size, rtol=1e-5, atol=1e-6)
    for q in (4 / 3, 4.0):
        size = (np.abs(x) ** q).sum() ** (1 / q)
        np.testing.assert_allclose(lq_norm(at, q), scale * size, rtol=1e-6)
        np.testing.assert_allclose(lq_direction(at, q), x / size, rtol=1e-6)
        slope = np.sign(x) * np.abs(x / size) ** (q - 1)
        np.testing.assert_allclose(jax.grad(lq_norm)(at, q), slope, rtol=1e-5, atol=1e-6)


def test_zero_has_norm_zero_and_gradient_zero():
    zero = jnp.zeros((2, 3))
    assert not jnp.any(row_norm(zero)) and not jnp.any(row_direction(zero))
    assert not jnp.any(jax.grad(lambda x: jnp.sum(row_norm(x)))(zero))
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: jnp.sum(row_direction(x)))(zero)))
    for q in (4 / 3, 2.0, 4.0):
        assert not jnp.any(lq_direction(zero, q)) and lq_norm(zero, q) == 0 and not jnp.any(jax.grad(lq_norm)(zero, q))
