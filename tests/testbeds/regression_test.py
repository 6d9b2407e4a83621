"""In-context regression: layout, exact curves, metrics, pools, curriculum, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import regression_solvers as solvers
from jattn.testbeds.curriculum import CURRICULA, Curriculum, Ramp
from jattn.testbeds.regression import Regression
from tests.testbeds import draws
from tests.testbeds.draws import assert_one_key_is_one_batch, draw, solve

GROWING = Curriculum(
    dims=Ramp(start=3, increment=1, interval=10, end=5), points=Ramp(start=4, increment=4, interval=5, end=11)
)
TASKS = {
    'linear': Regression(),
    'noisy': Regression(noise=0.5, dim=4, points=9),
    'sparse': Regression(function='sparse_linear', support=2, points=7),
    'relu_net': Regression(function='relu_net', hidden=10, dim=3, points=4),
    'decision_tree': Regression(function='decision_tree', depth=3, points=4),
    'pool': Regression(pool=6, noise=0.5, dim=4, points=9),
    'repeated_query': Regression(shift='repeated_query', noise=0.3, points=6),
}
ROWS = 3000


draw_at = jax.jit(lambda task, key, rows, step: task.sample_at(key, rows, step), static_argnums=(0, 2))


def points_of(batch):
    """x [B, S, F] and y [B, S], in numpy."""
    inputs = np.asarray(batch.inputs)
    return inputs[:, ::2], inputs[:, 1::2, 0]


within = functools.partial(draws.within, errors=4, known_to=0.0)


def errors_of(task, batch, predictions):
    """Errors of each row at each point against f, over the normaliser."""
    return np.square(np.asarray(predictions)[:, ::2, 0] - batch.meta['noiseless']) / task.normaliser


@pytest.mark.parametrize('name', TASKS)
def test_points_and_labels_take_turns_and_a_label_is_the_target_of_its_point(name):
    task, batch = TASKS[name], draw(TASKS[name], jax.random.key(0), 6)
    assert batch.inputs.shape == (6, 2 * task.points, task.dim) and batch.targets.shape == (6, 2 * task.points, 1)
    assert (
        not np.any(batch.inputs[:, 1::2, 1:]) and not np.any(batch.mask[:, 1::2]) and not np.any(batch.targets[:, 1::2])
    )
    is_scored = np.asarray(batch.mask[:, ::2])
    np.testing.assert_array_equal(batch.targets[:, ::2, 0], np.where(is_scored, points_of(batch)[1], 0))
    assert np.all(is_scored.sum(axis=1) == (1 if name == 'repeated_query' else task.points))


@pytest.mark.parametrize('name', ['linear', 'noisy', 'sparse'])
def test_baselines_err_as_the_facts_say(name):
    task = TASKS[name]
    batch = draw(task, jax.random.key(3), ROWS)
    facts, compared = task.facts(), set()
    # What is not asked for is not computed: lasso would take most of the time.
    asked = jax.jit(lambda batch: {solver: task.baselines(batch)[solver] for solver in ('averaging', 'least_squares')})
    for solver, predictions in asked(batch).items():
        errors = errors_of(task, batch, predictions)
        for mark, i in task.marks.items():
            fact = f'{solver}_at_{mark}'
            if fact in facts:
                compared.add(fact)
                assert within(errors[:, i], facts[fact], known_to=1e-5), fact
    assert compared == {fact for fact in facts if '_at_' in fact} and len(compared) >= 3
    assert within(errors_of(task, batch, jnp.zeros_like(batch.targets))[:, 0], facts['zero'])
    labels = points_of(batch)[1]
    assert within(np.mean(np.square(labels), axis=1), facts['label_variance'])
    assert within(np.mean(np.square(labels - batch.meta['noiseless']), axis=1), facts['floor'])


def test_the_facts_of_twenty_dims_are_the_published_ones():
    facts = Regression(dim=20, points=41).facts()
    assert facts['normaliser'] == facts['label_variance'] == 20 and facts['zero'] == 1
    assert [facts[f'averaging_at_{m}'] for m in ('half_dim', 'dim', 'twice_dim')] == [2.1, 1.05, 0.525]
    assert [facts[f'least_squares_at_{m}'] for m in ('half_dim', 'dim', 'twice_dim')] == [0.5, 0.0, 0.0]
    noisy = Regression(dim=20, points=41, noise=1.0).facts()
    assert noisy['label_variance'] == 21 and noisy['floor'] == 1 and 'least_squares_at_dim' not in noisy
    assert noisy['least_squares_at_twice_dim'] == pytest.approx(20 / 19 / 20)


def test_metrics_are_the_loss_the_curve_its_marks_and_the_distances():
    task = TASKS['noisy']
    batch = draw(task, jax.random.key(0), 50)
    outputs = jax.random.normal(jax.random.key(1), batch.targets.shape)
    metrics, baselines = jax.jit(task.metrics)(outputs, batch), solve(task, batch)
    difference = np.asarray(outputs - batch.targets)[:, ::2, 0]
    assert metrics['loss'].count == 50 * 9
    assert float(metrics['loss'].value()) == pytest.approx(np.mean(np.square(difference)), rel=1e-5)
    curve = errors_of(task, batch, outputs).mean(axis=0)
    np.testing.assert_allclose(metrics['error_by_point'].value(), curve, rtol=1e-5)
    for name, i in (('half_dim', 2), ('dim', 4), ('twice_dim', 8)):
        assert float(metrics[f'error_at_{name}'].value()) == pytest.approx(curve[i], rel=1e-5)
    assert set(baselines) == {'zero', 'averaging', 'three_nearest', 'least_squares', 'ridge'}
    for name, says in baselines.items():
        squares = np.square(np.asarray(outputs - says)[:, ::2, 0]) / 4
        assert float(metrics[f'distance/{name}'].value()) == pytest.approx(squares.mean(), rel=1e-4), name
    at_ridge = jax.jit(task.metrics)(baselines['ridge'], batch)
    assert float(at_ridge['distance/ridge'].value()) == 0 and float(at_ridge['distance/averaging'].value()) > 0.01


def test_marks_that_a_prompt_does_not_reach_are_left_out():
    assert Regression(dim=5, points=5).marks == {'half_dim': 2}
    assert Regression(dim=1, points=3).marks == {'dim': 1, 'twice_dim': 2}


@pytest.mark.parametrize('name', ['sparse', 'pool'])
def test_a_label_moves_no_baseline_at_or_before_its_point(name):
    task = TASKS[name]
    batch = draw(task, jax.random.key(0), 6)
    for i in (0, 3):
        other = batch.replace(inputs=batch.inputs.at[:, 2 * i + 1, 0].add(3.0))
        for solver, says in solve(task, other).items():
            before = solve(task, batch)[solver]
            np.testing.assert_array_equal(says[:, : 2 * i + 1], before[:, : 2 * i + 1], err_msg=solver)
            assert solver == 'zero' or np.any(says[:, 2 * i + 2 :] != before[:, 2 * i + 2 :]), solver


def functions_of(task, rows, seed=0):
    """The weights of each row's linear function, found from its noiseless values."""
    batch = draw(dataclasses.replace(task, noise=0.0, points=3 * task.dim), jax.random.key(seed), rows)
    x, y = (np.asarray(v, np.float64) for v in points_of(batch))
    return np.einsum('bfs,bs->bf', np.linalg.pinv(x), y).round(3)


def test_a_pool_has_so_many_functions_drawn_with_replacement():
    task = TASKS['pool']
    first, second = functions_of(task, 600), functions_of(task, 600, seed=1)
    rows, counts = np.unique(first, axis=0, return_counts=True)
    assert len(rows) == 6 and all(within(np.arange(600) < count, 1 / 6) for count in counts)
    assert {tuple(row) for row in first} == {tuple(row) for row in second}
    other = functions_of(dataclasses.replace(task, pool_seed=1), 600)
    assert not {tuple(row) for row in first} & {tuple(row) for row in other}
    fresh = functions_of(dataclasses.replace(task, shift='fresh_functions'), 600)
    assert len(np.unique(fresh, axis=0)) == len(np.unique(functions_of(Regression(dim=4), 600), axis=0)) == 600


def test_a_smaller_pool_is_the_beginning_of_a_larger_one():
    small, large = (
        {tuple(row) for row in functions_of(dataclasses.replace(TASKS['pool'], pool=m), 600)} for m in (2, 6)
    )
    assert len(small) == 2 and small < large


@pytest.mark.parametrize('function, noise', [('linear', 0.5), ('relu_net', 0.0)])
def test_the_average_of_a_pool_of_one_is_its_function(function, noise):
    task = Regression(function=function, pool=1, noise=noise, dim=3, points=3, hidden=5)
    batch = draw(task, jax.random.key(0), 4)
    says = solve(task, batch)['pool_average'][:, ::2, 0]
    np.testing.assert_allclose(says, batch.meta['noiseless'], rtol=1e-5, atol=1e-5)


def test_without_noise_one_example_tells_the_function_of_a_pool():
    task = dataclasses.replace(TASKS['pool'], noise=0.0)
    batch = draw(task, jax.random.key(0), 200)
    errors = errors_of(task, batch, solve(task, batch)['pool_average'])
    assert errors[:, 0].mean() > 0.3 and np.quantile(errors[:, 1], 0.95) < 1e-6 and errors[:, 4:].max() < 1e-6


def test_the_average_of_pools_of_sixteen_errs_as_simulated():
    # Means over 300 pools in float64, with standard errors; one pool differs from another by .12, .07, .009, .0005.
    @jax.jit
    @jax.vmap
    def errors(key):
        keys = jax.random.split(key, 4)
        pool, x = jax.random.normal(keys[0], (16, 8)), jax.random.normal(keys[1], (60, 9, 8))
        values = jnp.einsum('bsf,mf->bsm', x, pool)
        f = jnp.take_along_axis(values, jax.random.randint(keys[2], (60, 1, 1), 0, 16), axis=-1)[:, :, 0]
        says = solvers.pool_average(
            lambda numbers: values[:, :, numbers], f + 0.5 * jax.random.normal(keys[3], f.shape), 16, 0.25
        )
        return jnp.mean(jnp.square(says - f), axis=0) / 8

    found = errors(jax.random.split(jax.random.key(0), 150))
    for i, expected, known_to in ((0, 15 / 16, 0), (1, 0.568, 0.004), (4, 0.0163, 0.0005), (8, 0.00013, 0.00003)):
        assert within(found[:, i], expected, known_to=4 * known_to)


def test_the_average_of_a_huge_pool_is_ridge_and_that_of_a_small_one_is_not():
    distances = {}
    for pool in (4, 4096):
        task = Regression(pool=pool, noise=0.5, dim=2, points=6, shift='fresh_functions')
        says = solve(task, draw(task, jax.random.key(0), 100))
        distances[pool] = float(jnp.mean(jnp.square(says['pool_average'] - says['ridge'])[:, ::2]))
    assert distances[4096] < 0.01 < 0.3 < distances[4]


def test_a_curriculum_zeroes_coordinates_and_scores_fewer_points():
    task = Regression(curriculum=GROWING)
    full = draw(task, jax.random.key(0), 6)
    for step, dims, points in ((0, 3, 4), (4, 3, 4), (5, 3, 8), (10, 4, 11), (19, 4, 11), (20, 5, 11), (10**6, 5, 11)):
        batch = draw_at(task, jax.random.key(0), 6, step)
        x, y = points_of(batch)
        assert np.all(x[:, :, :dims] != 0) and not np.any(x[:, :, dims:])
        np.testing.assert_array_equal(batch.mask[:, ::2], np.tile(np.arange(11) < points, (6, 1)))
        np.testing.assert_array_equal(x[:, :, :dims], full.inputs[:, ::2, :dims])
        assert batch.inputs.shape == full.inputs.shape and task.loss(batch.targets, batch).count == 6 * points
        weights = np.einsum('bfs,bs->bf', np.linalg.pinv(points_of(full)[0]), points_of(full)[1])
        np.testing.assert_allclose(y, np.einsum('bsf,bf->bs', x, weights), atol=1e-4)  # w is not cut
    jax.tree.map(np.testing.assert_array_equal, batch, full)
    plain = Regression()
    jax.tree.map(np.testing.assert_array_equal, draw_at(plain, jax.random.key(0), 6, 0), full)


def test_the_support_of_a_sparse_function_lies_in_the_coordinates_that_are_not_0():
    task = Regression(function='sparse_linear', curriculum=GROWING)
    _, y = points_of(draw_at(task, jax.random.key(0), 400, 0))
    assert within(np.mean(np.square(y), axis=1), 3)  # as in the full task
    later = points_of(draw_at(task, jax.random.key(0), 400, 10**6))
    weights = np.abs(np.einsum('bfs,bs->bf', np.linalg.pinv(later[0]), later[1])) > 1e-3
    assert np.all(weights.sum(axis=1) == 3) and all(within(column, 3 / 5) for column in weights.T)


def test_the_published_curricula_fit_the_published_tasks():
    for function, name, points in (('linear', 'linear', 41), ('relu_net', 'nonlinear', 101)):
        task = Regression(function=function, dim=20, points=points, curriculum=CURRICULA[name])
        assert task.curriculum.dims.steps == 30_000


@pytest.mark.slow
@pytest.mark.parametrize('name', ['sparse', 'relu_net', 'pool', 'repeated_query'])
def test_the_same_key_gives_the_same_batch_under_jit_vmap_and_sharding(name):
    assert_one_key_is_one_batch(TASKS[name], rows=6, atol=1e-5)


BAD = {
    'function': (dict(function='quadratc'), "function is 'quadratc', which does not exist; did you mean 'quadratic'"),
    'shift': (dict(shift='x_doubled'), "shift is 'x_doubled', which does not exist; did you mean 'x_double'"),
    'points': (dict(points=0), 'points is 0, but it must be at least 1'),
    'dim': (dict(dim=0), 'dim is 0, but it must be at least 1'),
    'depth': (dict(depth=0), 'depth is 0, but it must be at least 1'),
    'pool': (dict(pool=-1), 'pool is -1, but it must not be negative'),
    'noise': (dict(noise=-0.5), 'noise is -0.5, but it must not be negative'),
    'support': (dict(function='sparse_linear', support=6), 'support is 6, but it must not exceed dim = 5'),
    'nonlinear': (dict(function='relu_net', shift='x_half'), "shift is 'x_half', but function is 'relu_net'"),
    'half': (
        dict(shift='half_subspace', dim=1),
        "shift is 'half_subspace', but dim is 1: half of it must be at least 1",
    ),
    'orthogonal': (dict(shift='orthogonal_query'), 'points is 11: it must not exceed dim = 5'),
    'noises': (dict(shift='noisy_labels', noise=0.1), 'noise is 0.1: the shift brings its own, set noise to 0'),
    'fresh': (dict(shift='fresh_functions'), "shift is 'fresh_functions', but pool is 0: all functions are fresh"),
    'dims_end': (dict(dim=4, curriculum=GROWING), 'curriculum.dims ends at 5, but the full task has 4'),
    'points_end': (dict(points=12, curriculum=GROWING), 'curriculum.points ends at 11, but the full task has 12'),
    'narrow': (
        dict(function='sparse_linear', support=4, curriculum=GROWING),
        'support is 4, but it must not exceed curriculum.dims.start = 3',
    ),
    'both': (dict(shift='x_half', curriculum=GROWING), "shift is 'x_half', but shifts are of the full task"),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_tasks_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=f'Regression: .*{message}'):
        Regression(**fields)


def test_a_support_wider_than_a_function_that_is_not_sparse_is_no_error():
    assert Regression(dim=2).support == 3


@pytest.mark.parametrize('task', [*TASKS.values(), Regression(curriculum=GROWING)], ids=[*TASKS, 'curriculum'])
def test_a_tiny_copy_is_small_and_keeps_the_choices(task):
    tiny = task.tiny()
    assert tiny.dim <= 4 and tiny.points <= 9 and tiny.pool <= 8 and hash(tiny) == hash(task.tiny())
    for name in ('function', 'noise', 'shift', 'pool_seed'):
        assert getattr(tiny, name) == getattr(task, name)
    assert (tiny.pool > 0) == (task.pool > 0) and (tiny.curriculum is None) == (task.curriculum is None)
