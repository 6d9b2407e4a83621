"""Functions of in-context regression: definitions, variances, trees, and how the references err on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import regression_solvers as solvers
from jattn.testbeds.regression import Regression
from jattn.testbeds.regression_functions import FUNCTIONS, Sizes, tree_leaf
from tests.testbeds import draws
from tests.testbeds.draws import draw


def points_of(batch):
    """x [B, S, F] and y [B, S], in numpy."""
    inputs = np.asarray(batch.inputs)
    return inputs[:, ::2], inputs[:, 1::2, 0]


within = functools.partial(draws.within, errors=4, known_to=0.0)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_functions_have_the_variance_of_the_table(name):
    task = Regression(function=name, dim=6, points=5, hidden=20)
    expected = {'sparse_linear': 3, 'decision_tree': 1}.get(name, 6)
    y = np.asarray(draw(task, jax.random.key(0), 12_000).meta['noiseless'])
    assert task.variance == task.normaliser == task.facts()['label_variance'] == expected
    assert within(np.mean(np.square(y), axis=1), expected)


def test_values_are_those_of_the_definitions():
    rng, key = np.random.default_rng(0), jax.random.key(1)
    x, sizes = rng.normal(size=(40, 5)).astype(np.float32), Sizes(dim=5, support=2, hidden=7, depth=3)
    drawn = {name: jax.tree.map(np.asarray, f.draw(key, sizes, 5)) for name, f in FUNCTIONS.items()}
    weights, sparse, net, tree = (drawn[name] for name in ('linear', 'sparse_linear', 'relu_net', 'decision_tree'))
    hidden = np.maximum(x @ net['first'], 0)
    expected = {
        'linear': x @ weights['weights'],
        'sparse_linear': x @ sparse['weights'],
        'quadratic': x**2 @ drawn['quadratic']['weights'] / np.sqrt(3),
        'relu_net': np.sqrt(2 / 7) * hidden @ net['second'],
        'decision_tree': [descend(tree, point, 0, 3) for point in x],
    }
    for name, function in FUNCTIONS.items():
        np.testing.assert_allclose(function.value(drawn[name], x), expected[name], rtol=1e-4, atol=1e-5)
    assert np.sum(sparse['weights'] != 0) == 2


def descend(tree, point, node, levels):
    """The value of a tree from a node on: the right child where the coordinate is positive."""
    if levels == 0:
        return tree['leaves'][node - len(tree['coordinates'])]
    return descend(tree, point, 2 * node + 1 + int(point[tree['coordinates'][node]] > 0), levels - 1)


def test_a_tree_of_different_coordinates_has_equally_likely_leaves():
    x = jax.random.normal(jax.random.key(0), (16_000, 20))
    leaves = np.asarray(tree_leaf(jnp.arange(15, dtype=jnp.int32)[::-1], x))
    assert all(within(leaves == leaf, 1 / 16) for leaf in range(16)) and leaves.max() == 15


def test_a_tree_depends_on_its_coordinates_only_which_are_at_most_fifteen_and_uniform():
    function, sizes = FUNCTIONS['decision_tree'], Sizes(dim=40)
    drawn = jax.vmap(lambda key: function.draw(key, sizes, 40))(jax.random.split(jax.random.key(0), 400))
    coordinates = np.asarray(drawn['coordinates'])
    assert coordinates.shape == (400, 15) and drawn['leaves'].shape == (400, 16)
    assert within(coordinates.mean(axis=1), 39 / 2) and set(coordinates.ravel()) == set(range(40))
    x = jax.random.normal(jax.random.key(1), (30, 40))
    first, others = jax.tree.map(lambda leaf: leaf[0], drawn), ~np.isin(np.arange(40), coordinates[0])
    moved = x + 5 * jnp.asarray(others, x.dtype)[None]
    np.testing.assert_array_equal(function.value(first, x), function.value(first, moved))
    assert np.any(function.value(first, x) != function.value(first, -x))


def three_nearest(x, y, count, queries):
    """Errors of 3-NN on points that follow, the mean of each row, in numpy."""
    errors = []
    for q in queries:
        nearest = np.argsort(np.sum(np.square(x[:, :count] - x[:, [q]]), axis=-1), axis=1)[:, :3]
        errors.append(np.square(np.mean(np.take_along_axis(y[:, :count], nearest, axis=1), axis=1) - y[:, q]))
    return np.mean(errors, axis=0)


def least_squares(x, y, count, queries):
    """Errors of least squares on points that follow, the mean of each row, in numpy."""
    weights = np.einsum('bfs,bs->bf', np.linalg.pinv(x[:, :count]), y[:, :count])
    return np.mean(np.square(np.einsum('bqf,bf->bq', x[:, queries], weights) - y[:, queries]), axis=1)


# Means of 4000 functions with 30 queries each, in float64, with their standard errors.
SIMULATED = {
    ('relu_net', least_squares): {5: (1.039, 0.011), 10: (1.263, 0.019), 40: (1.023, 0.017), 100: (0.637, 0.010)},
    ('relu_net', three_nearest): {10: (0.690, 0.005), 40: (0.550, 0.004), 100: (0.483, 0.003)},
    ('decision_tree', three_nearest): {10: (1.167, 0.010), 40: (1.081, 0.009), 100: (1.034, 0.009)},
}


@pytest.mark.parametrize('name', ['relu_net', 'decision_tree'])
def test_reference_errors_on_networks_and_trees_are_the_simulated_ones(name):
    task = Regression(function=name, dim=20, points=116)
    x, y = points_of(draw(task, jax.random.key(0), 600))
    for (function, fit), figures in SIMULATED.items():
        for count, (expected, known_to) in figures.items() if function == name else ():
            errors = fit(x, y, count, range(100, 116)) / task.normaliser
            assert within(errors, expected, known_to=4 * known_to), (fit, count)


def test_networks_show_double_descent():
    task = Regression(function='relu_net', dim=8, points=41)
    x, y = (jnp.asarray(v) for v in points_of(draw(task, jax.random.key(0), 1000)))
    curve = jnp.mean(jnp.square(jax.jit(solvers.least_squares)(x, y) - y), axis=0) / task.normaliser
    assert curve[8] > 10 * curve[4] and curve[8] > 10 * curve[16] and curve[40] < 0.9 < 1.1 < curve[4]
