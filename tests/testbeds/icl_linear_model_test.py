"""One attention layer on joined tokens: its circuits, what they leave out, and what training makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jattn.testbeds import ICLLinear, ICLLinearMultitask
from jattn.testbeds import icl_linear_estimators as estimators
from jattn.testbeds.icl_linear import split_prompts
from jattn.testbeds.icl_linear_model import (
    Circuits,
    OneLayer,
    effective_preconditioner,
    measures,
    predict,
    prediction_gap,
    reduced_circuits,
)

TASK = ICLLinear(dim=3, context=9)
LAYER = OneLayer(2, TASK.input_size)
PATTERNS = ('softmax', 'linear', 'linear_mean')


@pytest.fixture(scope='module')
def batch():
    return TASK.sample(jax.random.key(1), 16)


@pytest.fixture(scope='module')
def params():
    return LAYER.init(jax.random.key(0))


def published_form(params, inputs, pattern):
    """sum_h O_h V_h Z^T p(Z K_h^T Q_h z_q), one prompt and head at a time, in float64."""
    weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
    outputs = []
    for prompt in np.asarray(inputs, np.float64):
        z, query, total = prompt[:-1], prompt[-1], 0
        for q, k, v, o in zip(*(weights[name] for name in ('query', 'key', 'value', 'output'))):
            scores = z @ k.T @ q @ query
            if pattern == 'softmax':
                scores = np.exp(scores / np.sqrt(len(query)))
                scores /= scores.sum()
            total = total + o @ v @ z.T @ (scores / len(z) if pattern == 'linear_mean' else scores)
        outputs.append(total)
    return np.array(outputs)


@pytest.mark.parametrize('pattern', PATTERNS)
def test_the_layer_is_the_published_formula(pattern, batch, params):
    layer = OneLayer(2, TASK.input_size, pattern=pattern)
    outputs = layer.apply(params, batch.inputs)
    assert outputs.shape == batch.targets.shape and not np.any(outputs[:, :-1])
    np.testing.assert_allclose(outputs[:, -1], published_form(params, batch.inputs, pattern), rtol=1e-4, atol=1e-5)


def test_kqs_label_column_meets_the_empty_slot_and_gets_no_gradient(batch, params):
    circuits = LAYER.circuits(params)

    def loss(circuits):
        return jnp.mean(jnp.square(predict(circuits, batch.inputs) - batch.targets[:, -1]))

    gradient = jax.grad(loss)(circuits).kq
    assert np.all(gradient[:, :, -1] == 0) and np.all(gradient[:, :, :-1] != 0)
    changed = circuits._replace(kq=circuits.kq.at[:, :, -1].add(5.0))
    np.testing.assert_array_equal(predict(changed, batch.inputs), predict(circuits, batch.inputs))
    read, reread = measures(circuits), measures(changed)
    jax.tree.map(np.testing.assert_array_equal, read, reread)


def test_ov_is_what_a_change_of_basis_between_v_and_o_leaves_alone(batch, params):
    basis = jnp.eye(TASK.input_size)[None] + 0.3 * jax.random.normal(jax.random.key(2), (2, 4, 4))
    moved = {
        **params,
        'output': params['output'] @ jnp.linalg.inv(basis),
        'value': basis @ params['value'],
    }
    np.testing.assert_allclose(LAYER.circuits(moved).ov, LAYER.circuits(params).ov, atol=1e-5)
    np.testing.assert_allclose(LAYER.apply(moved, batch.inputs), LAYER.apply(params, batch.inputs), atol=1e-5)


@pytest.mark.parametrize('pattern', PATTERNS)
def test_the_order_of_the_examples_does_not_matter(pattern, batch, params):
    layer = OneLayer(2, TASK.input_size, pattern=pattern)
    order = jnp.array([3, 0, 8, 1, 7, 2, 6, 5, 4, 9])  # the query stays last
    np.testing.assert_allclose(
        layer.apply(params, batch.inputs[:, order]), layer.apply(params, batch.inputs), rtol=1e-4, atol=1e-6
    )


def test_reduced_circuits_are_the_reduced_attention(batch):
    omega, mu = jnp.array([0.3, -0.2, 0.1]), jnp.array([1.0, -2.0, 0.5])
    x, y, query = split_prompts(batch.inputs, TASK.dim)
    circuits = reduced_circuits(omega, mu, TASK.dim)
    expected = estimators.reduced_attention(x, y[:, :, 0], query, omega, mu)
    np.testing.assert_allclose(predict(circuits, batch.inputs)[:, 0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(effective_preconditioner(circuits), 0.75 * np.eye(3), atol=1e-6)


def test_measures_of_hand_set_heads_are_those_that_were_set():
    # Two pairs of unequal weight, and a dummy; the third head is not homogeneous and reads a covariate too.
    circuits = reduced_circuits(jnp.array([0.2, -0.2, 0.4, 0.001]), jnp.array([2.0, -3.0, 1.0, 0.01]), dim=3)
    circuits = Circuits(
        circuits.kq.at[2, 0, 0].set(0.1).at[2, 3, 1].set(-0.05).at[:, :, 3].set(9.0), circuits.ov.at[2, 0, 0].set(1.0)
    )
    read = measures(circuits)
    np.testing.assert_allclose(read.omega, [0.2, -0.2, 0.3, 0.001], rtol=1e-5)
    np.testing.assert_allclose(read.mu, [2.0, -3.0, 1.0, 0.01])
    np.testing.assert_allclose(read.label_share, [1, 1, 0.5, 1])
    np.testing.assert_allclose(read.label_row, [0, 0, 0.05, 0])
    np.testing.assert_allclose(read.diagonal_share[2], 0.33 / 0.3325, rtol=1e-5)
    np.testing.assert_allclose(read.inhomogeneity, [0, 0, np.std([0.1, 0.4, 0.4]) / 0.3, 0], atol=1e-5)
    np.testing.assert_array_equal(read.active, [True, True, True, False])
    np.testing.assert_allclose(read.step, 0.4 + 0.6 + 0.3 + 0.00001, rtol=1e-5)
    np.testing.assert_allclose(read.zero_sum, 0.01 / 6.01, rtol=1e-3)
    np.testing.assert_allclose(read.sign_balance, 3.0 / 3.01, rtol=1e-5)
    assert read.sign_match == 1


def test_the_prediction_gap_is_relative_to_the_predictions_variance():
    f = jnp.array([1.0, -1.0, 3.0, -3.0])
    assert prediction_gap(f, f) == 0
    np.testing.assert_allclose(prediction_gap(f, f + 2.0), 4 / 5)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_opposite_heads_start_with_opposite_scores_and_matching_signs(seed):
    layer = OneLayer(4, 6)
    read = measures(layer.circuits(layer.init(jax.random.key(seed), opposite=True)))
    np.testing.assert_allclose(read.omega[:2], -read.omega[2:], rtol=1e-5)
    assert read.sign_match == 1 and 0 < read.zero_sum < 1


def test_matrices_are_drawn_within_one_over_root_fan_in():
    params = OneLayer(4, 6, 2).init(jax.random.key(0))
    bounds = {'query': 6**-0.5, 'key': 6**-0.5, 'value': 6**-0.5, 'output': 24**-0.5}
    assert {name: value.shape for name, value in params.items()}['output'] == (4, 2, 6)
    for name, bound in bounds.items():
        assert 0.9 * bound < np.max(np.abs(params[name])) <= bound


def test_impossible_layers_are_refused_by_name():
    with pytest.raises(ValueError, match='heads is 0'):
        OneLayer(0)
    with pytest.raises(ValueError, match="pattern is 'sofmax', but it must be one of softmax, linear, linear_mean"):
        OneLayer(2, pattern='sofmax')
    with pytest.raises(ValueError, match='heads is 3, but opposite heads come in pairs'):
        OneLayer(3).init(jax.random.key(0), opposite=True)
    with pytest.raises(ValueError, match='measures: ov has shape'):
        measures(LAYER.circuits(LAYER.init(jax.random.key(0)))._replace(ov=jnp.ones((2, 2, 4))))


def test_a_layer_of_two_labels_scores_a_multitask_batch():
    task = ICLLinearMultitask(dim=3, task_dim=2, context=7)
    layer = OneLayer(3, task.input_size, task.output_size)
    batch = task.sample(jax.random.key(0), 4)
    loss = task.loss(layer.apply(layer.init(jax.random.key(1)), batch.inputs), batch)
    assert np.isfinite(loss.value()) and loss.count == 8


@pytest.mark.slow
def test_training_two_opposite_heads_approaches_debiased_gradient_descent():
    optimizer, layer = optax.adam(1e-2), OneLayer(2, TASK.input_size)

    def loss(params, key):
        batch = TASK.sample(key, 64)
        return TASK.loss(layer.apply(params, batch.inputs), batch).value()

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(5), 600)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    params = train(layer.init(jax.random.key(0), opposite=True))
    read, facts = measures(layer.circuits(params)), TASK.facts()
    batch = TASK.sample(jax.random.key(9), 4000)
    error = TASK.loss(layer.apply(params, batch.inputs), batch).value()
    assert error < facts['debiased_gradient_descent'] + 0.05 < facts['one_head_approximate']
    assert read.sign_match == 1 and read.zero_sum < 0.2 and np.all(read.label_share > 0.9)
