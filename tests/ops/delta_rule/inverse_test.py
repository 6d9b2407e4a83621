"""The inverse of a chunk's triangular system: digits, derivatives, and why it is not taken by powers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops.delta_rule.inverse import unit_lower_inverse


@functools.cache
def near_parallel(size):
    """L of `size` keys of float32 that nearly coincide, written with full strength."""
    rng = np.random.default_rng(0)
    keys = rng.normal(size=64) + 0.1 * rng.normal(size=(3, size, 64))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    return np.tril(keys @ np.swapaxes(keys, 1, 2), -1).astype(np.float32)


@pytest.mark.parametrize('size', [1, 2, 16, 64])
def test_the_inverse_keeps_its_digits_for_near_parallel_keys(size):
    lower = near_parallel(size)
    inverse = np.asarray(jax.jit(unit_lower_inverse)(lower), np.float64)
    assert np.max(np.abs((np.eye(size) + lower) @ inverse - np.eye(size))) < 2e-6
    assert np.all(np.triu(inverse, 1) == 0)


def test_the_short_product_of_powers_loses_all_digits_for_near_parallel_keys():
    """Why `inverse.py` does not take it: six products would do for 64 tokens."""
    lower = near_parallel(64)
    identity = np.eye(64, dtype=np.float32)
    inverse, power = identity - lower, lower
    for _ in range(5):
        power = power @ power
        inverse = inverse @ (identity + power)
    assert np.max(np.abs((identity + lower) @ inverse - identity)) > 1e3


def test_the_inverse_has_derivatives_in_both_directions():
    lower, rng = near_parallel(64).astype(np.float64), np.random.default_rng(0)
    change, cotangent = np.tril(rng.normal(size=lower.shape), -1), rng.normal(size=lower.shape)
    with jax.enable_x64(True):
        inverse, forward = jax.jvp(unit_lower_inverse, (lower,), (change,))
        (backward,) = jax.vjp(unit_lower_inverse, lower)[1](cotangent)
    exact = np.linalg.inv(np.eye(64) + lower)
    transposed = np.swapaxes(exact, 1, 2)
    np.testing.assert_allclose(inverse, exact, atol=1e-12)
    np.testing.assert_allclose(forward, -exact @ change @ exact, atol=1e-12)
    np.testing.assert_allclose(backward, np.tril(-transposed @ cotangent @ transposed, -1), atol=1e-12)


@pytest.mark.parametrize('shape', [(3, 3), (2, 4)])
def test_an_inverse_of_another_shape_is_named(shape):
    with pytest.raises(ValueError, match=rf'lower has shape \({shape[0]}, {shape[1]}\)'):
        unit_lower_inverse(jnp.zeros(shape))
