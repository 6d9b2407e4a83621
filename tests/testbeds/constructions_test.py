"""Attention layers in exact weights are steps of gradient descent; the closed-form best step; the single learners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import constructions, regression_solvers
from jattn.testbeds.constructions import NORMAL, attend, descent_layer, join, read_out, uniform_moments

ROWS, DIM, EXAMPLES = 7, 5, 8


@pytest.fixture(scope='module')
def prompts():
    """x, y, query in float64, with a first guess W_0."""
    rng = np.random.default_rng(0)
    x, query = rng.uniform(-1, 1, (ROWS, EXAMPLES, DIM)), rng.uniform(-1, 1, (ROWS, DIM))
    return x, np.einsum('bsf,bf->bs', x, rng.normal(size=(ROWS, DIM))), query, rng.normal(size=DIM)


def descend(x, y, weights, step):
    """One step of gradient descent on 1/(2N) |y - X w|^2, in numpy."""
    return weights + step / x.shape[1] * np.einsum('bs,bsf->bf', y - np.einsum('bsf,bf->bs', x, weights), x)


def run(layer, tokens, layers=1):
    tokens = jnp.asarray(tokens, jnp.float32)
    for _ in range(layers):
        tokens = attend(layer, tokens)
    return tokens


def tokens_of(x, y, query, start=None):
    return join(*(jnp.asarray(a, jnp.float32) for a in (x, y, query)), start)


@pytest.mark.parametrize('layers', [1, 2, 5])
def test_stacked_layers_with_the_same_weights_are_as_many_steps(prompts, layers):
    x, y, query, _ = prompts
    weights = np.zeros((ROWS, DIM))
    for _ in range(layers):
        weights = descend(x, y, weights, 0.7)
    out = run(descent_layer(DIM, EXAMPLES, 0.7), tokens_of(x, y, query), layers)
    np.testing.assert_allclose(read_out(out), np.sum(weights * query, axis=1), atol=1e-6)
    np.testing.assert_allclose(out[:, :-1, -1], y - np.einsum('bsf,bf->bs', x, weights), atol=1e-6)  # residuals
    np.testing.assert_array_equal(out[:, :, :-1], tokens_of(x, y, query)[:, :, :-1])


@pytest.mark.parametrize('layers', [1, 3])
def test_a_first_guess_stands_in_the_value_matrix_and_in_the_query(prompts, layers):
    x, y, query, guess = prompts
    weights = np.tile(guess, (ROWS, 1))
    for _ in range(layers):
        weights = descend(x, y, weights, 0.7)
    start = jnp.asarray(guess, jnp.float32)
    out = run(descent_layer(DIM, EXAMPLES, 0.7, start=start), tokens_of(x, y, query, start), layers)
    np.testing.assert_allclose(read_out(out), np.sum(weights * query, axis=1), atol=3e-6)


def test_the_query_holds_minus_the_prediction():
    tokens = tokens_of(np.ones((1, 1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    out = attend(descent_layer(1, 1, 0.5), tokens)
    assert out[0, -1, -1] == -0.5 and read_out(out)[0] == 0.5


def test_the_weights_are_the_published_ones():
    layer = descent_layer(2, 4, 1.0, start=jnp.array([5.0, 6.0]))
    keep = np.diag([1.0, 1.0, 0.0])
    np.testing.assert_array_equal(layer.key, keep)
    np.testing.assert_array_equal(layer.query, keep)
    np.testing.assert_array_equal(layer.value, [[0, 0, 0], [0, 0, 0], [5, 6, -1]])
    np.testing.assert_array_equal(layer.output, np.eye(3) / 4)


def test_corrected_descent_turns_every_x_by_the_covariance_and_steps_on_the_old_ones(prompts):
    x, y, query, _ = prompts
    gamma, out = 0.1, tokens_of(x, y, query)
    layer = descent_layer(DIM, EXAMPLES, 0.7, correction=gamma)
    points, residual, guess = np.concatenate([x, query[:, None]], axis=1), y, np.zeros(ROWS)
    for _ in range(3):
        out = attend(layer, out)
        examples = points[:, :-1]
        change = descend(examples, residual, np.zeros((ROWS, DIM)), 0.7)
        guess = guess + np.sum(change * points[:, -1], axis=1)
        residual = residual - np.einsum('bsf,bf->bs', examples, change)
        gram = np.einsum('bsf,bsg->bfg', examples, examples)
        points = np.einsum('bsf,bfg->bsg', points, np.eye(DIM) - gamma * gram)
        np.testing.assert_allclose(out[:, :, :-1], points, atol=2e-6)
        np.testing.assert_allclose(read_out(out), guess, atol=2e-6)


def test_the_correction_lowers_the_condition_number_of_the_next_step(prompts):
    x, y, query, _ = prompts
    out = attend(descent_layer(DIM, EXAMPLES, 0.7, correction=0.1), tokens_of(x, y, query))
    before, after = (np.linalg.cond(points) for points in (x, np.asarray(out[:, :-1, :-1], np.float64)))
    assert np.all(after < 0.9 * before)


def test_the_best_steps_and_risks_are_the_published_figures():
    for half_width, step, risk, zero in ((0.5, 0.6061, 0.4125, 0.8333), (1.0, 0.1515, 1.6498, 3.3333)):
        moments = uniform_moments(half_width)
        best = constructions.best_step(moments, 10, 10)
        assert best / 10 == pytest.approx(step, abs=5e-5)
        assert constructions.descent_risk(moments, 10, 10, best) == pytest.approx(risk, abs=5e-5)
        assert constructions.descent_risk(moments, 10, 10, 0.0) == pytest.approx(zero, abs=5e-5)
        for other in (0.99 * best, 1.01 * best):
            assert constructions.descent_risk(moments, 10, 10, other) > constructions.descent_risk(
                moments, 10, 10, best
            )


@pytest.mark.parametrize('name', ['halves', 'ones', 'normal'])
def test_the_layer_has_the_exact_risk(name):
    rows, dim, examples = 20_000, 4, 6
    moments = {'halves': uniform_moments(0.5), 'ones': uniform_moments(1.0), 'normal': NORMAL}[name]
    step = 0.8 * constructions.best_step(moments, dim, examples)

    @jax.jit
    def errors(key):
        x_key, weight_key = jax.random.split(key)
        shape = (rows, examples + 1, dim)
        width = (3 * moments.second) ** 0.5
        uniform = jax.random.uniform(x_key, shape, minval=-width, maxval=width)
        x = jax.random.normal(x_key, shape) if name == 'normal' else uniform
        y = jnp.sum(x * jax.random.normal(weight_key, (rows, 1, dim)), axis=-1)
        out = attend(descent_layer(dim, examples, step), join(x[:, :-1], y[:, :-1], x[:, -1]))
        return jnp.square(read_out(out) - y[:, -1])

    found = np.asarray(errors(jax.random.key(0)), np.float64)
    expected = constructions.descent_risk(moments, dim, examples, step)
    assert abs(found.mean() - expected) < 4 * found.std() / rows**0.5 and found.std() / rows**0.5 < 0.02 * expected


def test_the_risk_for_normal_coordinates_is_that_of_averaging_at_step_one():
    for dim, examples in ((20, 1), (20, 40), (5, 10)):
        assert constructions.descent_risk(NORMAL, dim, examples, 1.0) / dim == pytest.approx((dim + 1) / examples)


def test_a_single_step_goes_down_the_gradient_of_one_examples_error():
    w, x, y = jnp.array([[0.3, -1.0, 2.0]]), jnp.array([[1.0, 2.0, -0.5]]), jnp.array([0.7])

    def loss(w):
        return 0.5 * jnp.sum(jnp.square(jnp.sum(w * x, axis=-1) - y)) + 0.5 * 0.3 * jnp.sum(jnp.square(w))

    expected = w - 0.05 * jax.grad(loss)(w)
    np.testing.assert_allclose(constructions.single_step(w, x, y, 0.05, 0.3), expected, rtol=1e-6)


def test_updates_by_one_example_are_ridge_regression_and_what_probes_should_find(prompts):
    x, y = (jnp.asarray(a, jnp.float32) for a in prompts[:2])
    found = constructions.learnt(x, y, 0.3)
    for i in range(EXAMPLES):
        a, b = prompts[0][:, :i], prompts[1][:, :i]
        moment = np.einsum('bsf,bs->bf', a, b)
        gram = np.einsum('bsf,bsg->bfg', a, a) + 0.3 * np.eye(DIM)
        np.testing.assert_allclose(found['moment'][:, i], moment, atol=1e-5)
        np.testing.assert_allclose(
            found['weights'][:, i], np.linalg.solve(gram, moment[:, :, None])[:, :, 0], atol=1e-5
        )
    says = jnp.sum(found['weights'] * x, axis=-1)
    np.testing.assert_allclose(says, regression_solvers.ridge(x, y, 0.3), atol=1e-5)


def test_bad_calls_are_refused_by_name():
    with pytest.raises(ValueError, match='descent_layer: step is 0 and examples is 3, but neither may be 0'):
        descent_layer(2, 3, 0)
    with pytest.raises(ValueError, match='join: y has shape'):
        join(jnp.ones((2, 3, 4)), jnp.ones((2, 4)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match='attend: key has shape'):
        attend(descent_layer(3, 3, 1.0), jnp.ones((2, 3, 3)))
