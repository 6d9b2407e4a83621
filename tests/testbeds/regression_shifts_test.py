"""Shifts of in-context regression: what least squares must score, variances, and where examples and query lie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import regression_solvers as solvers
from jattn.testbeds.regression import Regression
from jattn.testbeds.regression_shifts import SHIFTS, rotate
from tests.testbeds import draws
from tests.testbeds.draws import draw

LINEAR_SHIFTS = [name for name in SHIFTS if name not in ('none', 'fresh_functions')]
DIM, ROWS = 4, 2700


solve = jax.jit(solvers.least_squares)


def drawn(name):
    """A shifted task and a batch of it."""
    task = Regression(dim=DIM, points=DIM if name == 'orthogonal_query' else 9, shift=name)
    return task, draw(task, jax.random.key(0), ROWS)


def points_of(batch):
    """x [B, S, F] and y [B, S], in numpy."""
    inputs = np.asarray(batch.inputs)
    return inputs[:, ::2], inputs[:, 1::2, 0]


within = functools.partial(draws.within, errors=4, known_to=0.0)


@pytest.mark.parametrize('name', LINEAR_SHIFTS)
def test_least_squares_under_a_shift_errs_as_it_must(name):
    task, batch = drawn(name)
    x, y = (jnp.asarray(v) for v in points_of(batch))
    errors = np.square(np.asarray(solve(x, y)) - batch.meta['noiseless']) / task.normaliser
    is_scored = np.asarray(batch.mask[:, ::2]) > 0
    curve = {i: errors[is_scored[:, i], i] for i in range(task.points)}
    if SHIFTS[name].query is not None:
        assert all(len(of_point) == ROWS // task.points for of_point in curve.values())
    assert within(curve[0], task.facts()['zero'])
    if name == 'orthogonal_query':
        assert all(within(curve[i], 1) for i in range(4))
    elif name == 'repeated_query':
        assert max(curve[i].max() for i in range(1, 9)) < 1e-4
    elif name == 'noisy_labels':
        assert within(curve[8], 4 / 5 * DIM / (8 - DIM - 1) / DIM)
    else:
        rank = DIM // 2 if name == 'half_subspace' else DIM
        assert np.quantile(curve[rank], 0.99) < 1e-4 and max(curve[i].max() for i in range(rank + 2, 9)) < 1e-4
        if name not in ('skewed_covariance', 'random_quadrant'):
            assert all(within(curve[i], 1 - i / rank) for i in range(rank))


@pytest.mark.parametrize('name', LINEAR_SHIFTS)
def test_shifts_keep_the_variance_that_the_facts_say(name):
    task, batch = drawn(name)
    x, y = points_of(batch)
    is_scored, facts = np.asarray(batch.mask[:, ::2]) > 0, task.facts()
    assert within(np.square(y[is_scored]), facts['label_variance'])
    assert within(np.square(np.asarray(batch.meta['noiseless'])[is_scored] - y[is_scored]), facts['floor'])
    assert within(np.sum(np.square(x), axis=-1)[is_scored], 4 * SHIFTS[name].x_scale ** 2)
    expected = {'noisy_labels': 4.0, 'x_third': 4 / 9, 'y_third': 4 / 9, 'x_triple': 36.0, 'y_double': 16.0}
    assert facts['label_variance'] == pytest.approx(expected.get(name, facts['label_variance']))


def test_two_streams_show_examples_one_query_and_nothing_behind_it():
    task = Regression(shift='repeated_query', noise=0.3, points=6)
    x, y = points_of(draw(task, jax.random.key(2), 60))
    place = np.asarray(draw(task, jax.random.key(2), 60).mask[:, ::2]).argmax(axis=1)
    assert np.bincount(place).tolist() == [10] * 6
    for points, labels, i in zip(x, y, place):
        assert np.all(points[: i + 1] != 0) and not np.any(points[i + 1 :])
        assert np.all(labels[: i + 1] != 0) and not np.any(labels[i + 1 :])
        assert i == 0 or np.min(np.sum(np.abs(points[:i] - points[i]), axis=1)) == 0
    first = {int(draw(task, jax.random.key(seed), 6).mask[0, ::2].argmax()) for seed in range(12)}
    assert len(first) > 3  # the first row's number of examples is random


def test_the_repeated_example_is_any_of_them():
    task = Regression(shift='repeated_query', dim=1, points=4)
    x, _ = points_of(draw(task, jax.random.key(0), 4000))
    full = np.asarray(draw(task, jax.random.key(0), 4000).mask[:, 6]) > 0
    which = np.argmax(x[full, :3, 0] == x[full, 3:, 0], axis=1)
    assert all(within(which == j, 1 / 3) for j in range(3))


def test_examples_of_a_quadrant_share_signs_and_queries_do_not():
    task = Regression(shift='random_quadrant', dim=3, points=5)
    batch = draw(task, jax.random.key(0), 2000)
    x, is_last = points_of(batch)[0], np.asarray(batch.mask[:, 8]) > 0
    signs = np.sign(x[is_last])
    assert np.all(signs[:, :4] == signs[:, :1])
    assert within(signs[:, 0].mean(axis=1), 0) and within(np.all(signs[:, 4] == signs[:, 0], axis=1), 1 / 8)


def test_a_query_is_orthogonal_to_its_examples():
    task = Regression(shift='orthogonal_query', dim=5, points=5)
    batch = draw(task, jax.random.key(0), 50)
    for points, i in zip(points_of(batch)[0], np.asarray(batch.mask[:, ::2]).argmax(axis=1)):
        np.testing.assert_allclose(points[:i] @ points[i], 0, atol=2e-5)
        assert np.linalg.norm(points[i]) > 0.1


def test_rotated_points_have_the_spectrum_along_a_random_basis():
    spectrum = 1 / np.arange(1, 4)
    # Unit vectors in place of draws show the map itself, U diag(a s) U^T.
    maps = np.asarray(rotate(jax.random.key(0), jnp.tile(jnp.eye(3)[None], (500, 1, 1)), spectrum), np.float64)
    np.testing.assert_allclose(maps, np.swapaxes(maps, 1, 2), atol=1e-5)
    expected = np.sort(spectrum * np.sqrt(3 / np.sum(spectrum**2)))
    np.testing.assert_allclose(np.linalg.eigvalsh(maps), np.tile(expected, (500, 1)), atol=1e-5)
    np.testing.assert_allclose(np.sum(np.square(maps), axis=(1, 2)), 3, rtol=1e-5)
    assert all(within(maps[:, i, j], expected.mean() * (i == j)) for i in range(3) for j in range(3))


@pytest.mark.parametrize('name', ['orthogonal_query', 'half_subspace', 'noisy_labels'])
def test_a_shifted_task_has_a_tiny_copy(name):
    assert Regression(shift=name, dim=12, points=9).tiny().shift == name
