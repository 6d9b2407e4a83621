"""The small training loop of the papers' reruns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.papers.fit import fit


def noisy_square(params, key):
    return jnp.sum(jnp.square(params['w'] - 1 + 0.1 * jax.random.normal(key, (2,))))


START, SGD = {'w': jnp.array([3.0, -2.0])}, optax.sgd(0.1)


def test_calls_of_any_length_take_the_same_steps():
    once, trace = fit(START, noisy_square, SGD, 40, jax.random.key(0), steps_per_call=40)
    split, halves = fit(START, noisy_square, SGD, 40, jax.random.key(0), steps_per_call=20, watch=lambda p: p['w'])
    np.testing.assert_allclose(once['w'], split['w'], rtol=1e-6)
    np.testing.assert_allclose(trace['loss'][0], halves['loss'].mean(), rtol=1e-6)
    assert halves['step'].tolist() == [20, 40]
    np.testing.assert_array_equal(halves['watched'][-1], split['w'])
    assert halves['loss'][1] < halves['loss'][0]


def test_another_key_draws_other_batches():
    one, _ = fit(START, noisy_square, SGD, 20, jax.random.key(0), steps_per_call=20)
    two, _ = fit(START, noisy_square, SGD, 20, jax.random.key(1), steps_per_call=20)
    assert not np.allclose(one['w'], two['w'])


def test_a_loss_that_is_not_finite_stops_the_fit_and_says_where():
    with pytest.raises(FloatingPointError, match='within 20 steps after step 0'):
        fit(START, noisy_square, optax.sgd(1e30), 40, jax.random.key(0), steps_per_call=20)


def test_steps_that_do_not_fill_the_calls_are_refused():
    with pytest.raises(ValueError, match='steps is 30, but must be a positive multiple of steps_per_call, 20'):
        fit(START, noisy_square, SGD, 30, jax.random.key(0), steps_per_call=20)
