"""The parts of paper 41's rerun that measure: averages, changed prompts, and what counts as serving a task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.icl_linear import patterns, settings, sweeps, training
from jattn.testbeds import ICLLinear, ICLLinearMultitask
from jattn.testbeds.icl_linear import split_prompts
from jattn.testbeds.icl_linear_model import Circuits, OneLayer, predict, reduced_circuits

TASK = ICLLinear(dim=2, context=6)


@pytest.fixture(scope='module')
def batch():
    return TASK.sample(jax.random.key(0), 5)


def model(heads, pattern='softmax', seed=0):
    layer = OneLayer(heads, TASK.input_size, pattern=pattern)
    circuits = layer.circuits(layer.init(jax.random.key(seed)))
    return training.Trained(layer, circuits, np.zeros(0), circuits)


def test_moved_prompts_are_those_of_the_shifted_task(batch):
    shifted = dataclasses.replace(TASK, shift=1.5).sample(jax.random.key(0), 5)
    moved = sweeps.moved(batch, TASK.dim, 1.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, shifted)


def test_the_first_examples_are_a_shorter_prompt_with_the_same_query(batch):
    short = sweeps.first_examples(batch, 4)
    assert short.inputs.shape == (5, 5, 3) and short.mask.tolist() == [[0, 0, 0, 0, 1]] * 5
    np.testing.assert_array_equal(short.inputs[:, :4], batch.inputs[:, :4])
    np.testing.assert_array_equal(short.inputs[:, -1], batch.inputs[:, -1])
    np.testing.assert_array_equal(short.targets[:, -1], batch.targets[:, -1])
    assert split_prompts(short.inputs, 2)[0].shape == (5, 4, 2)


def test_models_that_run_as_one_say_what_each_says_alone(batch):
    models = {'a': model(1), 'b': model(3, seed=1), 'c': model(2, 'linear'), 'd': model(2, seed=3)}
    said = training.models_predictor(models)(batch)
    for name, one in models.items():
        np.testing.assert_allclose(said[name], predict(one.circuits, batch.inputs, one.layer.pattern), rtol=1e-5)


def test_average_errors_are_means_and_standard_errors_of_paired_prompts():
    def predictor(batch):
        zero = jnp.zeros((len(batch.inputs), 1))
        return {'zero': zero, 'half': batch.targets[:, -1] / 2}

    changes = {0: lambda batch: batch, 1: lambda batch: batch.replace(targets=2 * batch.targets)}
    found = training.average_errors(TASK, predictor, 4000, jax.random.key(1), changes)
    batches = training.draw(TASK, 4000, jax.random.key(1))
    squares = np.concatenate([np.asarray(b.targets[:, -1, 0], np.float64) ** 2 for b in batches])
    assert len(squares) == 4000
    np.testing.assert_allclose(found['zero'][0], (squares.mean(), squares.std() / 4000**0.5), rtol=1e-4)
    np.testing.assert_allclose(found['half'][0][0], squares.mean() / 4, rtol=1e-4)
    np.testing.assert_allclose(found['zero'][1][0], 4 * squares.mean(), rtol=1e-4)


@pytest.mark.slow
def test_models_of_a_group_are_trained_as_if_alone():
    size = dataclasses.replace(training.SIZES['tiny'], batch=8)
    pair = {'a': training.Start(OneLayer(1, 3)), 'b': training.Start(OneLayer(2, 3), opposite=True)}
    together = training.train(TASK, pair, size, 500, jax.random.key(0))
    other = {'a': pair['a'], 'b': training.Start(OneLayer(2, 3, pattern='linear_mean'))}
    apart = training.train(TASK, other, size, 500, jax.random.key(0))
    np.testing.assert_allclose(together['a'].circuits.kq, apart['a'].circuits.kq, rtol=1e-3, atol=1e-4)
    assert not np.allclose(together['b'].circuits.kq, apart['b'].circuits.kq, atol=1e-2)
    assert together['b'].steps.tolist() == [500] and together['b'].trace.kq.shape == (1, 2, 3, 3)


MULTITASK = ICLLinearMultitask()


def heads(*rows):
    """Circuits of (KQ's diagonal on x1..x6, OV of y1 to f1, OV of y2 to f2)."""
    kq = np.zeros((len(rows), 8, 8))
    ov = np.zeros((len(rows), 2, 8))
    for head, (diagonal, first, second) in enumerate(rows):
        kq[head, range(6), range(6)] = diagonal
        ov[head, 0, 6], ov[head, 1, 7] = first, second
    return Circuits(jnp.array(kq), jnp.array(ov))


ONE, TWO, BOTH = [0.2] * 4 + [0] * 2, [0] * 2 + [0.2] * 4, [0.2] * 6
CASES = {
    'each_one_task': (heads((ONE, 2, 0.1), (ONE, -2, 0), (TWO, 0.2, 2), (TWO, 0, -2)), 0, 1.0),
    'one_shared': (heads((ONE, 2, 0), (TWO, 0, 2), (BOTH, -2, -2)), 1, 4 / 6),
    'a_dummy_is_not_counted': (heads((ONE, 2, 0), (TWO, 0, 2), (BOTH, 0.01, 0.01)), 0, 1.0),
}


@pytest.mark.parametrize('circuits, shared, support', CASES.values(), ids=CASES)
def test_heads_that_serve_several_tasks_are_counted(circuits, shared, support):
    assert settings.shared_heads(MULTITASK, circuits) == shared
    assert settings.support_share(MULTITASK, circuits) == pytest.approx(support, rel=1e-5)


def test_heads_are_described_by_where_they_look_and_what_they_read():
    text = settings.describe_heads(MULTITASK, heads((ONE, 2, 0.1), (BOTH, -1, -2)))
    assert 'head 0: KQ 0.20/0.20/0.00, OV 2.00/0.10' in text and 'head 1: KQ 0.20/0.20/0.20, OV -1.00/-2.00' in text


def test_the_off_diagonal_share_is_that_of_the_squares():
    assert settings.off_diagonal_share(np.array([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(16 / 25)


@pytest.mark.parametrize(
    'values, rule, worst',
    [
        ([1.0, 3.0, 2.0], {'below': 2.5}, 3.0),
        ([1.0, 3.0, 2.0], {'above': 0.5}, 1.0),
        ([1.0, 3.0, 2.2], {'near': (2.0, 1.5)}, 1.0),
    ],
    ids=['below', 'above', 'near'],
)
def test_a_line_over_runs_reports_the_worst(values, rule, worst):
    line = patterns.worst_line('claim', values, **rule)
    assert line.measured == worst and 'runs 1, 3, 2' in line.note
    assert np.isnan(patterns.worst_line('claim', [*values, float('nan')], **rule).measured)


def test_the_gradient_flow_lines_hold_and_end_at_the_stated_losses():
    lines, flow = patterns.flow_lines(ICLLinear())
    assert all(line.holds for line in lines) and len(lines) == 3
    np.testing.assert_allclose(flow['omega'][:, 0], -flow['omega'][:, 1], rtol=1e-4)


def test_hand_set_heads_are_the_pair_of_the_sheet():
    circuits = reduced_circuits(*(value * jnp.array([1.0, -1.0]) for value in sweeps.HAND_SET), dim=5)
    assert float(jnp.sum(circuits.ov)) == 0
