"""Solvers over prefixes: each is a brute force per prefix in numpy, none leaks, and the errors are the known curves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import regression_solvers as solvers

ROWS, POINTS, DIM = 6, 9, 3
SOLVERS = {
    'averaging': solvers.averaging,
    'neighbours': lambda x, y: solvers.neighbours(x, y, 3),
    'least_squares': solvers.least_squares,
    'ridge': lambda x, y: solvers.ridge(x, y, 0.4),
    'lasso': lambda x, y: solvers.lasso(x, y, 0.2, sweeps=3000, tolerance=1e-6),
    'pool_average': lambda x, y: solvers.pool_average(lambda numbers: pool_values(x, numbers), y, 10, 0.3),
}
# Stopped early: were one prompt's end the end of all, a label would show in what comes before it.
STOPPED = SOLVERS | {'stopped_lasso': lambda x, y: solvers.lasso(x, y, 0.01, tolerance=0.1)}


def pool_values(x, numbers):
    """Values of the functions sin(n + 1) x_0 + cos(n) x_1."""
    first, second = jnp.sin(numbers + 1.0), jnp.cos(1.0 * numbers)
    return x[:, :, 0, None] * first[None, None] + x[:, :, 1, None] * second[None, None]


def by_averaging(x, y, query):
    return query @ np.mean(y[:, None] * x, axis=0)


def by_neighbours(x, y, query):
    return np.mean(y[np.argsort(np.linalg.norm(x - query, axis=1))[:3]])


def by_least_squares(x, y, query):
    return query @ np.linalg.pinv(x, rcond=1e-6) @ y


def by_ridge(x, y, query):
    return query @ np.linalg.solve(x.T @ x + 0.4 * np.eye(x.shape[1]), x.T @ y)


def by_lasso(x, y, query):
    """The best of the solutions for every pattern of signs."""
    best, found = np.inf, None
    for signs in itertools.product((-1, 0, 1), repeat=x.shape[1]):
        signs, weights = np.array(signs), np.zeros(x.shape[1])
        active = signs != 0
        part = x[:, active]
        gram, moment = part.T @ part / len(y), part.T @ y / len(y)
        weights[active] = np.linalg.lstsq(gram, moment - 0.2 * signs[active], rcond=1e-9)[0]
        value = np.sum(np.square(y - x @ weights)) / (2 * len(y)) + 0.2 * np.sum(np.abs(weights))
        if value < best - 1e-9:
            best, found = value, weights
    return query @ found


def by_pool_average(x, y, query):
    values = np.stack([np.sin(n + 1) * x[:, 0] + np.cos(n) * x[:, 1] for n in range(10)])
    posterior = np.exp(-np.sum(np.square(values - y), axis=1) / 0.6)
    return posterior / posterior.sum() @ [np.sin(n + 1) * query[0] + np.cos(n) * query[1] for n in range(10)]


BY = {
    'averaging': by_averaging,
    'neighbours': by_neighbours,
    'least_squares': by_least_squares,
    'ridge': by_ridge,
    'lasso': by_lasso,
    'pool_average': by_pool_average,
}


def prompts(name='full', dim=DIM):
    """x and noisy labels; of lower rank where the name says so."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(ROWS, POINTS, dim))
    if name == 'a_coordinate_is_0':
        x[:, :, 1] = 0
    if name == 'in_a_plane':
        x = x @ (rng.normal(size=(dim, 2)) @ rng.normal(size=(2, dim)))
    if name == 'repeated':
        x[:, 1] = -0.7 * x[:, 0]
        x[:, 4] = x[:, 3]
    y = x @ rng.normal(size=dim) + 0.5 * rng.normal(size=(ROWS, POINTS))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def brute(fit, x, y):
    """The predictions of `fit(examples, labels, query)` for every prefix."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    found = np.zeros(y.shape)
    for b, i in itertools.product(range(len(x)), range(1, y.shape[1])):
        found[b, i] = fit(x[b, :i], y[b, :i], x[b, i])
    return found


@pytest.mark.parametrize('name', SOLVERS)
def test_every_solver_is_its_brute_force_on_every_prefix(name):
    x, y = prompts()
    found, expected = SOLVERS[name](x, y), brute(BY[name], x, y)
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], rtol=2e-3 if name == 'lasso' else 1e-4, atol=2e-4)
    first = np.mean(pool_values(x, jnp.arange(10)), axis=-1)[:, 0] if name == 'pool_average' else 0
    np.testing.assert_allclose(found[:, 0], first, atol=1e-6)


@pytest.mark.parametrize('name', ['a_coordinate_is_0', 'in_a_plane', 'repeated'])
def test_least_squares_has_the_minimum_norm_whatever_the_rank(name):
    x, y = prompts(name)
    np.testing.assert_allclose(solvers.least_squares(x, y), brute(by_least_squares, x, y), rtol=1e-3, atol=1e-3)


def test_least_squares_has_the_minimum_norm_with_more_coordinates_than_points():
    x, y = prompts(dim=POINTS + 3)
    np.testing.assert_allclose(solvers.least_squares(x, y), brute(by_least_squares, x, y), rtol=1e-3, atol=1e-4)


def test_the_basis_is_orthonormal_and_spans_every_beginning():
    x, _ = prompts('repeated')
    basis, rank = solvers.row_basis(x)
    np.testing.assert_allclose(jnp.einsum('brf,bqf->brq', basis, basis), np.tile(np.eye(DIM), (ROWS, 1, 1)), atol=1e-6)
    assert rank.tolist() == [[1, 1, 2, 3, 3, 3, 3, 3, 3]] * ROWS
    for i in range(POINTS):
        known = basis[:, : int(rank[0, i])]
        inside = jnp.einsum('bsf,brf,brg->bsg', x[:, : i + 1], known, known)
        np.testing.assert_allclose(inside, x[:, : i + 1], atol=1e-5)


@pytest.mark.parametrize('name', STOPPED)
def test_a_label_moves_no_prediction_at_or_before_its_point_and_some_behind(name):
    x, y = prompts()
    solve = jax.jit(STOPPED[name])
    for i in (0, 4, POINTS - 2):
        before, after = solve(x, y), solve(x, y.at[:, i].add(30.0))
        np.testing.assert_array_equal(before[:, : i + 1], after[:, : i + 1])
        assert np.any(before[:, i + 1 :] != after[:, i + 1 :])


@pytest.mark.parametrize('name', SOLVERS)
def test_a_point_moves_no_prediction_before_it(name):
    x, y = prompts()
    solve = jax.jit(SOLVERS[name])
    before, after = solve(x, y), solve(x.at[:, 5].mul(-2.0), y)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])


def test_a_pool_is_the_same_in_blocks_of_any_size(monkeypatch):
    x, y = prompts()
    expected = brute(by_pool_average, x, y)[:, 1:]
    for block in (1, 4, 10):
        monkeypatch.setattr(solvers, 'AT_ONCE', block)
        np.testing.assert_allclose(SOLVERS['pool_average'](x, y)[:, 1:], expected, rtol=1e-4, atol=1e-5)


def test_a_pool_of_one_is_that_function_exactly():
    x, y = prompts()
    values = pool_values(x, jnp.arange(1))[:, :, 0]
    np.testing.assert_array_equal(solvers.pool_average(lambda n: pool_values(x, n), y, 1, 0.25), values)


def test_likelihoods_that_underflow_still_tell_the_functions_apart():
    x, _ = prompts()
    y = pool_values(x, jnp.array([7]))[:, :, 0]
    found = solvers.pool_average(lambda n: pool_values(x, n), y, 10, 1e-6)
    np.testing.assert_allclose(found[:, 2:], y[:, 2:], atol=1e-5)


def linear_errors(solve, key, rows, points, dim, noise=0.0):
    """Errors over F on linear functions, [rows, points], their mean over w ~ N(0, I) and the noise taken exactly.

    A solver that is linear in the labels errs by sum_k w_k (x_ik - f_i(x_k)) - sigma sum_j e_j f_i(label 1 at j).
    """

    def errors(key):
        x = jax.random.normal(key, (rows, points, dim))
        of_coordinate = jax.vmap(lambda k: x[:, :, k] - solve(x, x[:, :, k]))(jnp.arange(dim))
        total = jnp.sum(jnp.square(of_coordinate), axis=0)
        if noise:
            ones = jnp.broadcast_to(jnp.eye(points)[:, None], (points, rows, points))
            total += noise**2 * jnp.sum(jnp.square(jax.vmap(lambda one: solve(x, one))(ones)), axis=0)
        return total / dim

    return np.asarray(jax.jit(errors)(key), np.float64)


def holds(errors, expected, known_to=0.0):
    """Whether the mean is the expected value, to 4 standard errors and what it is known to."""
    spread = errors.std() / len(errors) ** 0.5
    return abs(errors.mean() - expected) <= 4 * spread + known_to + 1e-5 and spread < 0.15 * expected + 1e-9


def test_least_squares_without_noise_errs_by_one_minus_i_over_dim_and_then_not_at_all():
    errors = linear_errors(solvers.least_squares, jax.random.key(0), 100, 41, 20)
    assert all(holds(errors[:, i], 1 - i / 20) for i in range(20))
    assert errors[:, 20].max() < 1e-3 and errors[:, 22:].max() < 1e-7


def test_averaging_errs_by_dim_plus_one_over_i():
    errors = linear_errors(solvers.averaging, jax.random.key(1), 400, 41, 20)
    for i, expected in ((1, 21.0), (5, 4.2), (10, 2.1), (20, 1.05), (40, 0.525)):
        assert expected == 21 / i and holds(errors[:, i], expected)


def test_three_neighbours_err_as_simulated_in_numpy():
    # 2 and 4/3 are exact, the others are of 20000 draws in float64, to 0.002.
    errors = linear_errors(lambda x, y: solvers.neighbours(x, y, 3), jax.random.key(2), 500, 41, 20)
    for i, expected in ((0, 1), (1, 2), (3, 4 / 3), (10, 0.917), (20, 0.788), (40, 0.690)):
        assert holds(errors[:, i], expected, 0.004)


def test_ridge_errs_as_published_at_noise_one_half_and_less_than_with_another_penalty():
    errors = {
        penalty: linear_errors(lambda x, y, p=penalty: solvers.ridge(x, y, p), jax.random.key(3), 400, 16, 8, noise=0.5)
        for penalty in (0.15, 0.25, 0.4)
    }
    figures = {0: 1.0, 1: 0.879, 2: 0.761, 4: 0.532, 8: 0.182, 12: 0.063, 15: 0.038}
    assert all(holds(errors[0.25][:, i], expected, 0.003) for i, expected in figures.items())
    curves = {penalty: found.mean(axis=0) for penalty, found in errors.items()}
    assert np.all(np.diff(curves[0.25]) < 0)
    assert all(np.all(curves[0.25][1:] < curves[penalty][1:]) for penalty in (0.15, 0.4))


def test_ridge_tends_to_least_squares_as_its_penalty_goes_to_0():
    x, y = prompts()
    expected = solvers.least_squares(x, y)
    distances = [float(jnp.median(jnp.abs(solvers.ridge(x, y, p) - expected))) for p in (1e-1, 1e-2, 1e-3)]
    assert distances[0] / distances[1] == pytest.approx(10, rel=0.2)
    assert distances[1] / distances[2] == pytest.approx(10, rel=0.2)


def test_lasso_beats_least_squares_on_sparse_functions():
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (60, 7, 10))
    y = x[:, :, 0] * jax.random.normal(keys[1], (60, 1))
    sparse = lambda x, y: solvers.lasso(x, y, 0.05)
    lasso, plain = (np.mean(np.square(f(x, y) - y), axis=0) for f in (sparse, solvers.least_squares))
    assert lasso[6] < 0.5 * plain[6]


def test_bad_calls_are_refused_by_name():
    x, y = prompts()
    with pytest.raises(ValueError, match='ridge: penalty is 0, but it must be positive'):
        solvers.ridge(x, y, 0)
    with pytest.raises(ValueError, match='pool_average: noise_variance is 0.0, but it must be positive'):
        solvers.pool_average(lambda n: pool_values(x, n), y, 3, 0.0)
    with pytest.raises(ValueError, match='least_squares: y has shape'):
        solvers.least_squares(x, y[:, 1:])
