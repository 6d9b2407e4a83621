"""Induction and selective copying: layouts, exact baselines, floors, no leakage through the scored places."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import Induction, SelectiveCopying
from jattn.testbeds.selective_copying import NOISE, WRITE
from tests.testbeds.draws import draw


def scores(task, batch):
    return {
        name: {
            metric: float(mean.value()) for metric, mean in task.metrics(said, batch).items() if mean.count.ndim == 0
        }
        for name, said in task.baselines(batch).items()
    }


def test_the_answer_follows_the_first_marker():
    task = Induction(vocabulary=9, tokens=10)
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(0), 500))
    places = []
    for inputs, targets in zip(batch.inputs, batch.targets):
        first, last = np.flatnonzero(inputs == 0)
        assert last == 9 and first <= 7 and targets[-1] == inputs[first + 1] != 0
        np.testing.assert_array_equal(targets[:-1], inputs[1:])
        places.append(first)
    assert set(places) == set(range(8)) and np.all(batch.mask.sum(axis=1) == 1) and np.all(batch.mask[:, -1] == 1)


def test_look_up_is_right_and_guessing_is_chance():
    for task in (Induction(), SelectiveCopying()):
        batch = draw(task, jax.random.key(1), 4000)
        found, facts = scores(task, batch), task.facts()
        assert found['look_up']['accuracy'] == 1 and found['look_up']['loss'] == facts['look_up'] == 0
        assert found['chance']['loss'] == pytest.approx(facts['chance'], rel=1e-5)
        legal = round(1 / facts['chance_accuracy'])
        assert legal == {'Induction': 19, 'SelectiveCopying': 14}[type(task).__name__]


def test_the_floor_of_all_next_tokens_is_what_the_best_predictor_scores():
    """Bayes, token by token: the marker's hazard while it is not seen, certainty at the end, the answer copied."""
    task = Induction(vocabulary=5, tokens=6, scored='all')
    batch = draw(task, jax.random.key(2), 20_000)
    inputs, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
    losses = np.zeros(inputs.shape)
    for t in range(5):
        seen = (inputs[:, : t + 1] == 0).any(axis=1)
        left = task.tokens - 2 - (t + 1)  # places that the marker may still take
        hazard = np.where(seen | (left <= 0), 0.0, 1 / max(left, 1))
        marker = np.where(t + 1 == 5, 1.0, hazard)
        p = np.where(targets[:, t] == 0, marker, (1 - marker) / 4)
        losses[:, t] = -np.log(np.maximum(p, 1e-30))
    means = losses.mean(axis=1)
    assert means.mean() == pytest.approx(task.facts()['all_floor'], abs=4.5 * means.std() / math.sqrt(20_000))
    uniform = jnp.zeros((20_000, 6, 5))
    assert float(task.loss(uniform, batch).value()) == pytest.approx(math.log(5), rel=1e-5)
    assert float(task.loss(uniform, batch).count) == 6 * 20_000


def test_copies_stand_in_order_at_uniform_places():
    task = SelectiveCopying(vocabulary=8, tokens=16, copies=4)
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(3), 4000))
    for inputs, targets in zip(batch.inputs[:300], batch.targets):
        context = inputs[:12]
        assert np.all(inputs[12:] == WRITE) and np.sum(context == NOISE) == 8
        np.testing.assert_array_equal(context[context != NOISE], targets[12:])
        assert np.all(targets[:12] == 0) and np.all(targets[12:] >= 2)
    share = (batch.inputs[:, :12] != NOISE).mean(axis=0)
    assert np.all(np.abs(share - 1 / 3) < 4.5 * np.sqrt(2 / 9 / 4000))
    assert task.metrics(task.baselines(batch)['look_up'], batch)['accuracy_by_copy'].value().tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Induction(vocabulary=2), 'vocabulary=2 must be at least 3'),
        (lambda: Induction(tokens=2), 'tokens=2 must be at least 3'),
        (lambda: Induction(scored='some'), "scored='some' must be one of answer, all"),
        (lambda: SelectiveCopying(vocabulary=3), 'vocabulary=3 must be at least 4'),
        (lambda: SelectiveCopying(tokens=9, copies=5), 'tokens=9 must be at least 10'),
    ],
)
def test_wrong_fields_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
