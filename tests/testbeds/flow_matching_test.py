"""Flow matching towards known points: the best velocity is the mean of all, and leads there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.flow_matching import FlowMatching, integrate

TASK = FlowMatching(tokens=3, features=2, points=4)
BATCH = jax.jit(TASK.sample, static_argnums=1)(jax.random.key(0), 4000)
BEST = TASK.velocity(BATCH.inputs, BATCH.meta['times'])


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std() / len(values) ** 0.5


def test_zero_has_the_risk_that_the_facts_say():
    mean, error = mean_and_error(jnp.mean(jnp.sum(jnp.square(BATCH.targets), axis=-1), axis=-1))
    assert abs(mean - TASK.facts()['zero']) < 4 * error


def test_the_best_velocity_is_what_is_expected_given_the_point():
    """Its error is orthogonal to every function of the point, such as itself."""
    for function in (BEST, BATCH.inputs, jnp.sin(3 * BATCH.inputs)):
        mean, error = mean_and_error(jnp.sum((BATCH.targets - BEST) * function, axis=(1, 2)))
        assert abs(mean) < 4 * error
    losses = [float(TASK.loss(outputs, BATCH).value()) for outputs in (BEST, 0.9 * BEST, 1.1 * BEST)]
    assert losses[0] < min(losses[1:])


def test_the_best_velocity_leads_from_noise_to_the_points():
    noise = jax.random.normal(jax.random.key(1), (200, 3, 2))
    ends = np.asarray(jax.jit(lambda x: integrate(TASK.velocity, x, 64))(noise))
    distances = np.sqrt(np.square(ends[:, None] - TASK.known[None]).sum(axis=(2, 3)))
    assert np.mean(distances.min(axis=1) < 1e-2) > 0.97
    counts = np.bincount(distances.argmin(axis=1), minlength=4)
    assert np.all(np.abs(counts - 50) < 4 * (200 * 0.25 * 0.75) ** 0.5)


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match='points is 0'):
        FlowMatching(points=0)
