"""Exact learners of Boolean functions: each against a slow one that learns anew from every prefix."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import boolean_solvers as solvers
from jattn.testbeds.boolean import Boolean
from jattn.testbeds.boolean_functions import FUNCTIONS
from jattn.testbeds.points import split_points

ROWS, POINTS, INPUTS = 30, 12, 4


@pytest.fixture(scope='module')
def noise():
    """Points and labels without any rule; few inputs, so that points repeat and similarities tie."""
    rng = np.random.default_rng(0)
    return tuple(rng.choice([-1.0, 1.0], size).astype(np.float32) for size in ((ROWS, POINTS, INPUTS), (ROWS, POINTS)))


def by_prefix(learn, x, y):
    """learn(earlier points, earlier labels, point) at every point of every row."""
    return np.array([[learn(x[b, :i], y[b, :i], x[b, i]) for i in range(x.shape[1])] for b in range(len(x))])


@pytest.mark.parametrize('negations', [True, False])
def test_elimination_is_that_of_a_learner_which_crosses_out_literals(noise, negations):
    def learn(x, y, query):
        signs = (1, -1) if negations else (1,)
        kept = [(j, s) for j in range(INPUTS) for s in signs if all(p[j] == s for p, label in zip(x, y) if label > 0)]
        return 1 if all(query[j] == s for j, s in kept) else -1

    found = np.asarray(solvers.elimination(*noise, negations))
    np.testing.assert_array_equal(found, by_prefix(learn, *noise))
    assert 0 < np.mean(found > 0) < 1


@pytest.mark.parametrize('neighbours', [1, 2, 3, 5])
def test_neighbours_are_the_most_similar_points_the_earliest_first(noise, neighbours):
    def learn(x, y, query):
        nearest = sorted(range(len(x)), key=lambda j: (-int(x[j] @ query), j))
        return sum(y[j] for j in nearest[:neighbours])

    np.testing.assert_array_equal(solvers.nearest_neighbours(*noise, neighbours), by_prefix(learn, *noise))


def test_averaging_weighs_labels_by_similarity(noise):
    learn = lambda x, y, query: (y @ x) @ query if len(x) else 0
    np.testing.assert_array_equal(solvers.averaging(*noise), by_prefix(learn, *noise))


def test_parity_elimination_says_what_a_sum_of_earlier_points_says():
    x, _ = split_points(Boolean(function='parity', inputs=INPUTS).sample(jax.random.key(0), ROWS).inputs)
    x = np.asarray(x[:, :9])
    subset = np.random.default_rng(1).integers(0, 2, (ROWS, 1, INPUTS))
    y = 2.0 * (np.sum((x > 0) * subset, axis=-1) % 2) - 1

    def learn(x, y, query):
        """All sums of earlier points: the label of one that is the query, and log2 of how many differ."""
        bits, labels = (x > 0).astype(int), (y > 0).astype(int)
        choices = np.array(list(itertools.product([0, 1], repeat=len(x))), int)
        sums = choices @ bits % 2
        hit = np.all(sums == (query > 0), axis=1)
        answer = 2 * (choices[hit][0] @ labels % 2) - 1 if np.any(hit) else 0
        return answer, math.log2(len(np.unique(sums, axis=0)))

    answers, ranks = solvers.parity_elimination(x, y.astype(np.float32))
    expected = by_prefix(learn, x, y)
    np.testing.assert_array_equal(answers, expected[..., 0])
    np.testing.assert_array_equal(ranks, expected[..., 1])
    assert np.all((answers == 0) | (answers == y)) and np.any(answers == 0) and np.any(answers != 0)


def test_parity_elimination_reads_a_hundred_inputs():
    task = Boolean(function='parity', inputs=100, points=120)
    batch = task.sample(jax.random.key(0), 2)
    answers, ranks = jax.jit(solvers.parity_elimination)(*split_points(batch.inputs))
    known = np.asarray(answers) != 0
    assert np.all(known[:, 115:]) and np.all(np.asarray(ranks)[:, 115:] == 100) and not np.any(known[:, 1:80])
    np.testing.assert_array_equal(np.asarray(answers)[known], np.asarray(batch.targets)[:, ::2, 0][known])


def density(name, params, x, forced):
    """p(x) of a point of a clause's function, from the definition: forced points are uniform over where it is true."""
    weights = params['weights'][0] * FUNCTIONS[name].sign
    holds = all(x[j] == w for j, w in enumerate(weights) if w)
    return (1 - forced) / 2 ** len(x) + forced * holds / 2 ** (len(x) - np.count_nonzero(weights))


@pytest.mark.parametrize('name', ['conjunction', 'disjunction', 'monotone_conjunction', 'threshold', 'majority'])
@pytest.mark.parametrize('label_noise', [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_bayes_is_the_sum_over_all_functions(name, label_noise):
    task = Boolean(function=name, inputs=3, points=8, label_noise=label_noise)
    batch = task.sample(jax.random.key(0), 5)
    (x, y), (functions, log_prior) = jax.tree.map(np.asarray, split_points(batch.inputs)), task.family.all_functions(3)
    assert np.sum(np.exp(log_prior)) == pytest.approx(1)
    says = np.asarray(
        jax.vmap(lambda p: task.family.label(jax.tree.map(lambda a: a[None], p), x.reshape(1, -1, 3))[0])(
            jax.tree.map(jnp.asarray, functions)
        )
    ).reshape(-1, 5, 8)
    near = np.ones(says.shape)
    if task.forced:
        rows = [{key: leaf[n] for key, leaf in functions.items()} for n in range(len(log_prior))]
        near = np.array([[[density(name, f, p, task.forced) for p in row] for row in x] for f in rows])
    likely = np.where(says == y, 1 - label_noise, label_noise)
    expected = np.zeros((5, 8))
    for i in range(8):
        weight = np.exp(log_prior)[:, None] * np.prod(near[:, :, : i + 1], axis=2) * np.prod(likely[:, :, :i], axis=2)
        plus = np.sum(weight * np.where(says[:, :, i] > 0, 1 - label_noise, label_noise), axis=0) / np.sum(
            weight, axis=0
        )
        with np.errstate(divide='ignore'):
            expected[:, i] = np.clip(np.log(plus) - np.log(1 - plus), -100, 100)
    sure = np.abs(expected) > 30  # numpy's 1 - plus is rounding there
    found = np.asarray(task.baselines(batch)['bayes'])[:, ::2, 0]
    np.testing.assert_allclose(found[~sure], expected[~sure], atol=2e-4)
    np.testing.assert_array_equal(np.sign(found[sure]), np.sign(expected[sure]))


def test_labels_that_no_function_has_leave_bayes_finite():
    labels = jnp.array([[[1.0, 1.0], [1.0, -1.0], [1.0, -1.0]]])
    odds = solvers.posterior(labels, -jnp.ones((1, 3)), jnp.log(jnp.array([0.25, 0.75])), jnp.zeros((1, 3, 2)))
    # The first point refutes both, so the prior still stands; the second refutes one more time only the first function.
    assert odds[0, 0] == jnp.inf and odds[0, 1] == pytest.approx(-math.log(3), abs=0.07) and odds[0, 2] < -1e5


# Of an independent simulation at 28 inputs and at 10: accuracy after so many examples, good to half a per cent.
ELIMINATION = {28: {10: 0.745, 20: 0.893, 40: 0.997, 69: 1.0}, 10: {5: 0.675, 10: 0.854, 20: 0.979, 39: 0.999}}


@pytest.mark.parametrize('inputs, points, mean', [(28, 70, 0.920), (10, 40, 0.895)])
def test_the_elimination_curve_is_that_of_an_independent_simulation(inputs, points, mean):
    family = FUNCTIONS['conjunction']
    curve = solvers.elimination_accuracy(family.literal_chances(inputs), points, family.forced)
    assert curve.mean() == pytest.approx(mean, abs=0.001)
    for i, known in ELIMINATION[inputs].items():
        assert curve[i] == pytest.approx(known, abs=0.006)


@pytest.mark.parametrize('inputs', [10, 20])
def test_the_parity_curve_has_the_known_figures(inputs):
    right = (1 + solvers.parity_known(inputs, 40)) / 2
    for more, known in {-1: 0.695, 0: 0.805, 1: 0.890, 2: 0.941, 5: 0.992}.items():
        assert right[inputs + more] == pytest.approx(known, abs=0.0005)


def test_as_many_points_as_inputs_are_independent_with_the_known_probability():
    task = Boolean(function='parity', inputs=20, points=21)
    x, y = split_points(task.sample(jax.random.key(0), 4000).inputs)
    full = np.asarray(jax.jit(solvers.parity_elimination)(x, y)[1])[:, 20] == 20
    assert abs(full.mean() - 0.2888) < 4 * np.sqrt(0.2888 * 0.7112 / 4000)
