"""In-context linear classification: labels, what one point tells, the loss, no leakage, wrong fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import LinearClassification
from jattn.testbeds.linear_classification import one_example_accuracy
from tests.testbeds.draws import draw, solve, within

TASK = LinearClassification(dim=3, points=8)


@pytest.fixture(scope='module')
def batch():
    return jax.tree.map(np.asarray, draw(TASK, jax.random.key(0), 20_000))


def right_by_row(said, batch, point):
    return (said * batch.targets)[:, 2 * point, 0] > 0


def test_labels_are_balanced_and_lie_on_two_sides_of_one_plane(batch):
    x, y = batch.inputs[:, ::2], batch.inputs[:, 1::2, 0]
    np.testing.assert_array_equal(batch.targets[:, ::2, 0], y)
    assert set(np.unique(y)) == {-1, 1} and within(y.mean(axis=1), 0)
    assert (batch.mask == np.tile([1, 0], 8)).all() and (batch.targets[:, 1::2] == 0).all()
    # A perceptron separates the first rows: there is a plane.
    for points, labels in zip(x[:50], y[:50]):
        w = np.zeros(3)
        for _ in range(20_000):
            wrong = np.flatnonzero(labels * (points @ w) <= 0)
            if not len(wrong):
                break
            w += labels[wrong[0]] * points[wrong[0]]
        assert not len(wrong)


def test_one_labelled_point_tells_what_is_stated(batch):
    said = solve(TASK, batch)
    for name in ('averaging', 'three_nearest'):  # three_nearest says the label of the one point
        assert not right_by_row(said[name], batch, 0).any()
    assert within(right_by_row(said['averaging'], batch, 1), TASK.facts()['one_example_accuracy'])
    assert within(right_by_row(said['least_squares'], batch, 1), TASK.facts()['one_example_accuracy'])
    assert one_example_accuracy(2) == pytest.approx(0.75, abs=1e-9)


def test_more_points_help_every_baseline(batch):
    for name, logits in solve(TASK, batch).items():
        curve = TASK.metrics(logits, batch)['accuracy_by_point'].value()
        assert name == 'chance' or curve[7] > curve[1] + 0.03


def test_the_loss_is_the_logistic_one(batch):
    outputs = np.random.default_rng(0).normal(size=batch.targets.shape).astype(np.float32)
    expected = np.mean(np.log1p(np.exp(-(outputs * batch.targets)[:, ::2, 0].astype(np.float64))))
    assert float(TASK.loss(outputs, batch).value()) == pytest.approx(expected, rel=1e-5)
    assert float(TASK.loss(0 * outputs, batch).value()) == pytest.approx(TASK.facts()['chance'], rel=1e-5)


def test_no_baseline_sees_the_label_that_it_is_asked_for(batch):
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf[:16]), batch)
    changed = rows.replace(inputs=rows.inputs.at[:, 9, 0].multiply(-1))  # y_4
    for name, said in solve(TASK, rows).items():
        np.testing.assert_array_equal(said[:, :10], solve(TASK, changed)[name][:, :10])


@pytest.mark.parametrize('name', ['dim', 'points'])
def test_wrong_sizes_are_named(name):
    with pytest.raises(ValueError, match=f'{name}=0 must be at least 1'):
        LinearClassification(**{name: 0})
