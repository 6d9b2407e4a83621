"""In-context linear regression: generators, closed-form predictors, exact risks, the approximate population loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import TESTBEDS, ICLLinear, ICLLinearMultitask
from jattn.testbeds import icl_linear_estimators as estimators
from jattn.testbeds import icl_linear_theory as theory
from jattn.testbeds.icl_linear import split_prompts
from tests.testbeds.draws import draw

PAPER = ICLLinear()  # F = 5, S = 40, sigma^2 = 0.1: the setting of every number below
SIZES = (PAPER.dim, PAPER.context, PAPER.noise_variance)
TASKS = {
    'isotropic': ICLLinear(dim=3, context=7),
    'correlated_and_shifted': ICLLinear(dim=3, context=12, correlation=-0.5, shift=0.5),
    'multitask': ICLLinearMultitask(dim=3, task_dim=2, context=7),
}


@pytest.fixture(scope='module')
def errors():
    """Squared errors [prompts] of every predictor of the paper at each length, on the first examples of 1e4 prompts."""
    omega, mu = jnp.array([0.13, -0.13]), jnp.array([3.45, -3.45])
    one_omega, one_mu = theory.one_head_optimum(*SIZES)
    step = 2 * 0.13 * 3.45

    @jax.jit
    def run(key):
        batch = ICLLinear(context=100).sample(key, 10_000)
        x, y, query = split_prompts(batch.inputs, 5)
        found = {}
        for length in (10, 20, 40, 60, 100):
            prompts = (x[:, :length], y[:, :length, 0], query)
            found[length] = {
                'two heads': estimators.reduced_attention(*prompts, omega, mu),
                'one head': estimators.reduced_attention(*prompts, one_omega, one_mu),
                'gradient descent': estimators.gradient_descent(*prompts, step),
                'debiased': estimators.debiased_gradient_descent(*prompts, step),
                'ridge': estimators.ridge(*prompts, 0.5),
            }
        return jax.tree.map(lambda f: jnp.square(f - batch.targets[:, -1, 0]), found)

    return jax.tree.map(lambda e: np.asarray(e, np.float64), run(jax.random.key(7)))


# The authors' table (5e4 draws) at omega = 0.13, mu = 3.45, step = 2 omega mu; one head at its optimum for S = 40.
AUTHORS = {
    10: (0.604, 0.875, 0.643, 0.614, 0.194),
    20: (0.367, 0.586, 0.371, 0.369, 0.135),
    40: (0.243, 0.405, 0.241, 0.243, 0.115),
    60: (0.200, 0.339, 0.198, 0.199, 0.109),
    100: (0.164, 0.284, 0.162, 0.163, 0.106),
}


@pytest.mark.parametrize('length', AUTHORS)
def test_simulated_errors_are_those_of_the_authors_table(errors, length):
    names = ('two heads', 'one head', 'gradient descent', 'debiased', 'ridge')
    for name, published in zip(names, AUTHORS[length]):
        mean, error = errors[length][name].mean(), errors[length][name].std() / 100
        assert abs(mean - published) < 4 * error * np.sqrt(1 + 10_000 / 50_000) + 0.0005, name


def test_exact_risks_of_other_steps_are_those_of_the_authors_table():
    step = 2 * 0.13 * 3.45
    for length, (_, _, plain, debiased, _) in AUTHORS.items():
        task, error = ICLLinear(context=length), 4 * 0.008 * np.sqrt(10 / length)  # of 5e4 draws, times four
        assert abs(theory.risk(task.plain_moments, step) - plain) < error
        assert abs(theory.risk(task.debiased_moments, step) - debiased) < error


def test_exact_risks_are_the_published_formulas():
    facts, (dim, context, noise) = PAPER.facts(), SIZES
    load = dim + 1 + noise * dim
    assert facts['floor'] == 0.1
    assert facts['zero'] == pytest.approx(1 + noise)
    assert facts['gradient_descent'] == pytest.approx(1 + noise - 1 / (1 + load / context))
    assert facts['debiased_gradient_descent'] == pytest.approx(1 + noise - 1 / (1 + load / (context - 1)))
    assert facts['gradient_descent'] == pytest.approx(0.23978, abs=1e-5)
    assert facts['debiased_gradient_descent'] == pytest.approx(0.24286, abs=1e-5)
    assert facts['one_head_approximate'] == pytest.approx(0.37207, abs=1e-5)
    assert facts['ridge_large_dim'] == pytest.approx(0.1141, abs=1e-4)
    assert theory.best_step(PAPER.plain_moments) == pytest.approx(1 / (1 + load / context))
    assert theory.best_step(PAPER.debiased_moments) == pytest.approx(1 / (1 + (1 + noise) * dim / context))


def test_the_best_preconditioner_of_plain_descent_is_that_of_linear_attention():
    task = ICLLinear(correlation=0.5)
    sigma, eye = task.covariance, np.eye(task.dim)
    spread = (np.trace(sigma) + task.noise_variance * task.dim) / task.context
    expected = np.linalg.inv((1 + 1 / task.context) * sigma + spread * eye)
    np.testing.assert_allclose(theory.best_preconditioner(task.plain_moments), expected, rtol=1e-10)


@pytest.mark.parametrize('name', ['plain_moments', 'debiased_moments'])
def test_no_other_preconditioner_has_a_lower_risk(name):
    moments = getattr(ICLLinear(correlation=0.5, shift=0.3), name)
    best = theory.best_preconditioner(moments)
    for change in np.random.default_rng(0).normal(size=(5, 5, 5)) / 100:
        assert theory.risk(moments, best + change) > theory.risk(moments, best)
    assert theory.risk(moments, theory.best_step(moments)) >= theory.risk(moments, best)


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_facts_are_what_sampling_says(task):
    @jax.jit
    def squares(key):
        batch = task.sample(key, 20_000)
        return {
            name: jnp.mean(jnp.square(f - batch.targets)[:, -1], axis=-1) for name, f in task.baselines(batch).items()
        }

    facts, compared = task.facts(), 0
    for name, values in squares(jax.random.key(3)).items():
        if name in facts:
            values, compared = np.asarray(values, np.float64), compared + 1
            assert abs(values.mean() - facts[name]) < 4 * values.std() / np.sqrt(len(values)), name
            assert values.mean() > facts['floor'], name
    assert compared >= 3


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_the_same_key_gives_the_same_batch_under_jit_vmap_and_sharding(task):
    key = jax.random.key(5)
    eager = task.sample(key, 4)
    mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    others = {
        'jit': draw(task, key, 4),
        'vmap': jax.tree.map(lambda leaf: leaf[1], jax.vmap(lambda k: task.sample(k, 4))(jax.random.split(key, 2))),
        'devices': jax.jit(task.sample, static_argnums=1, out_shardings=rows)(key, 4),
    }
    expected = {'jit': eager, 'vmap': draw(task, jax.random.split(key, 2)[1], 4), 'devices': eager}
    assert len(others['devices'].inputs.sharding.device_set) == 2
    for name, other in others.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other, expected[name])
    assert not np.allclose(eager.inputs, draw(task, jax.random.key(6), 4).inputs)


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_the_query_shows_no_label_and_only_its_label_is_scored(task):
    batch = draw(task, jax.random.key(0), 6)
    labels = slice(task.input_size - task.output_size, None)
    assert not np.any(batch.inputs[:, -1, labels]) and np.all(batch.inputs[:, :-1, labels] != 0)
    assert not np.any(batch.targets[:, :-1]) and np.all(batch.targets[:, -1] != 0)
    np.testing.assert_array_equal(batch.mask.sum(axis=1), 1)
    outputs = jax.random.normal(jax.random.key(1), batch.targets.shape)
    elsewhere = outputs.at[:, :-1].add(7.0)
    assert task.loss(outputs, batch).value() == task.loss(elsewhere, batch).value()
    metrics = jax.jit(task.metrics)(batch.targets, batch)
    assert metrics['loss'].value() == 0 and metrics['loss'].count == 6 * task.output_size


def test_nothing_shown_tells_the_noise_of_the_querys_label():
    batch = draw(PAPER, jax.random.key(2), 20_000)
    noise = batch.targets[:, -1, 0] - jnp.einsum('bf,bf->b', batch.inputs[:, -1, :5], batch.meta['weights'])
    assert float(jnp.var(noise)) == pytest.approx(0.1, rel=0.05)
    shown = batch.inputs[:, :, :].reshape(len(noise), -1)
    correlations = np.corrcoef(np.asarray(shown[:, :-1]).T, np.asarray(noise))[-1, :-1]
    assert np.max(np.abs(correlations)) < 4.5 / np.sqrt(len(noise))


def test_multitask_labels_are_regressions_on_their_windows():
    task = ICLLinearMultitask()
    batch = draw(task, jax.random.key(0), 500)
    x, weights = batch.inputs[:, -1, : task.dim], batch.meta['weights']
    expected = jnp.stack([jnp.sum(x[:, s : s + 4] * weights[:, n], axis=-1) for n, s in enumerate((0, 2))], axis=-1)
    np.testing.assert_allclose(batch.targets[:, -1], expected, atol=1e-5)  # the query's labels are noiseless
    shown = jnp.stack(
        [jnp.einsum('bsk,bk->bs', batch.inputs[:, :-1, s : s + 4], weights[:, n]) for n, s in enumerate((0, 2))],
        axis=-1,
    )
    noise = batch.inputs[:, :-1, task.dim :] - shown
    assert float(jnp.var(noise)) == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize('shape', [(6, 9, 4), (6, 3, 5)], ids=['more_examples', 'fewer_examples'])
def test_least_squares_is_the_minimum_norm_solution(shape):
    keys = jax.random.split(jax.random.key(0), 3)
    x, y, query = (jax.random.normal(k, s) for k, s in zip(keys, (shape, shape[:2], (shape[0], shape[2]))))
    expected = [np.linalg.lstsq(a, b)[0] @ q for a, b, q in zip(*(np.asarray(v, np.float64) for v in (x, y, query)))]
    np.testing.assert_allclose(estimators.least_squares(x, y, query), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(estimators.ridge(x, y, query, 0.0), estimators.least_squares(x, y, query))
    ridge = [
        np.linalg.solve(a.T @ a + 0.7 * np.eye(shape[2]), a.T @ b) @ q
        for a, b, q in zip(*(np.asarray(v, np.float64) for v in (x, y, query)))
    ]
    np.testing.assert_allclose(estimators.ridge(x, y, query, 0.7), ridge, rtol=1e-4, atol=1e-5)


def test_opposite_heads_tend_to_debiased_gradient_descent_as_omega_squared():
    batch = draw(PAPER, jax.random.key(0), 50)
    x, y, query = split_prompts(batch.inputs, 5)
    prompts, step = (x, y[:, :, 0], query), 0.879
    exact = estimators.debiased_gradient_descent(*prompts, step)

    def distance(small):
        signs = jnp.array([1.0, -1.0])
        heads = estimators.reduced_attention(*prompts, small * signs, step / (2 * small) * signs)
        return float(jnp.sqrt(jnp.mean(jnp.square(heads - exact))))

    assert distance(0.02) < 0.005
    assert distance(0.08) / distance(0.04) == pytest.approx(4, rel=0.1)


def test_a_constant_in_the_labels_cancels_in_opposite_heads_and_debiased_descent_only():
    batch = draw(PAPER, jax.random.key(0), 50)
    x, y, query = split_prompts(batch.inputs, 5)
    pairs = (jnp.array([0.13, -0.13]), jnp.array([3.45, -3.45]))
    one = (jnp.array([0.45]), jnp.array([1.63]))

    def change(predictor, *args):
        labels = y[:, :, 0]
        return float(jnp.max(jnp.abs(predictor(x, labels + 2.0, query, *args) - predictor(x, labels, query, *args))))

    assert change(estimators.reduced_attention, *pairs) < 1e-5
    assert change(estimators.debiased_gradient_descent, 0.9) < 1e-5
    assert change(estimators.reduced_attention, *one) == pytest.approx(2 * 1.63, rel=1e-4)  # mass 1, all at mu
    assert change(estimators.gradient_descent, 0.9) > 0.1


def test_population_gradients_are_those_of_the_loss_and_vanish_at_the_best_mu():
    omega, mu = jnp.array([0.3, -0.2, 0.1]), jnp.array([0.5, -1.0, 0.2])
    by_omega, by_mu = jax.grad(theory.population_loss, (0, 1))(omega, mu, *SIZES)
    ours = theory.population_gradients(omega, mu, *SIZES)
    np.testing.assert_allclose(ours[0], by_omega, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours[1], by_mu, rtol=1e-4, atol=1e-6)
    best = theory.best_values(omega, *SIZES)
    np.testing.assert_allclose(theory.population_gradients(omega, best, *SIZES)[1], 0, atol=1e-4)


def test_one_head_is_best_at_one_over_root_dim():
    grid = jnp.linspace(0.2, 0.8, 6001)

    def least(omega):
        return theory.population_loss(omega[None], theory.best_values(omega[None], *SIZES), *SIZES)

    losses = jax.vmap(least)(grid)
    omega, mu = theory.one_head_optimum(*SIZES)
    assert float(grid[jnp.argmin(losses)]) == pytest.approx(5**-0.5, abs=5e-3)
    assert float(theory.best_values(omega, *SIZES)[0]) == pytest.approx(float(mu[0]), rel=1e-5)
    assert float(losses.min()) == pytest.approx(1.1 - 1 / (1 + 1.1 * np.e * 5 / 40), abs=1e-5)


BAD = [
    ({'dim': 0}, 'ICLLinear: dim is 0'),
    ({'context': 1}, 'ICLLinear: context is 1'),
    ({'noise_variance': -0.1}, 'ICLLinear: noise_variance is -0.1'),
    ({'correlation': 1.0}, 'ICLLinear: correlation is 1.0'),
]


@pytest.mark.parametrize('fields, message', BAD, ids=[next(iter(fields)) for fields, _ in BAD])
def test_impossible_sizes_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        ICLLinear(**fields)


def test_windows_that_cannot_be_spread_evenly_are_refused():
    with pytest.raises(ValueError, match='dim - task_dim is 3, but it must be a multiple of tasks - 1 = 2'):
        ICLLinearMultitask(dim=7, tasks=3, task_dim=4)
    with pytest.raises(ValueError, match='task_dim is 9'):
        ICLLinearMultitask(task_dim=9)


def test_predictors_name_the_array_of_the_wrong_shape():
    with pytest.raises(ValueError, match='ridge: y has shape'):
        estimators.ridge(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 1)), jnp.ones((2, 4)), 1.0)
    with pytest.raises(ValueError, match='ridge: penalty is -1'):
        estimators.ridge(jnp.ones((2, 3, 4)), jnp.ones((2, 3)), jnp.ones((2, 4)), -1.0)
    with pytest.raises(ValueError, match='least_squares_risk: context is 6'):
        theory.least_squares_risk(5, 6, 0.1)


@pytest.mark.parametrize('name', ['icl_linear', 'icl_linear_multitask'])
def test_table_entries_are_hashable_and_shrink(name):
    task = TESTBEDS[name]
    assert hash(task) == hash(dataclasses.replace(task)) and type(task.tiny()) is type(task)
    assert task.tiny().context < task.context
