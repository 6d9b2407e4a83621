"""H3's associative recall: layout, the look-up in plain Python, chance, how many keys are shown, wrong fields."""

import jax
import numpy as np
import pytest

from jattn.testbeds import SingleRecall
from tests.testbeds.draws import draw, solve, within

TASK = SingleRecall(vocabulary=9, pairs=5)


@pytest.fixture(scope='module')
def batch():
    return jax.tree.map(np.asarray, draw(TASK, jax.random.key(0), 4000))


def test_the_answer_is_the_value_that_stands_behind_the_key(batch):
    for inputs, targets in zip(batch.inputs, batch.targets):
        pairs, (marker, asked) = inputs[:10].reshape(5, 2), inputs[10:]
        value_of = dict(pairs.tolist())
        assert all(value_of[key] == value for key, value in pairs)  # a key has one value
        assert marker == 0 and value_of[asked] == targets[-1] and not targets[:-1].any()
        assert pairs[:, 0].min() >= 1 and pairs[:, 0].max() <= 4 < pairs[:, 1].min()
    assert batch.mask.sum(axis=1).tolist() == [1] * 4000 and batch.mask[:, -1].all()


def test_keys_and_values_are_uniform_and_every_shown_key_is_asked_equally_often(batch):
    pairs = batch.inputs[:, :10].reshape(-1, 5, 2)
    for token in range(1, 5):
        assert within((pairs[:, :, 0] == token).mean(axis=1), 1 / 4)
        assert within(batch.targets[:, -1] == token + 4, 1 / 4)
    different = np.array([len(set(row)) for row in pairs[:, :, 0].tolist()])
    assert within(different, TASK.facts()['different_keys'])
    asked = batch.inputs[:, -1:] == pairs[:, :, 0]
    assert asked.any(axis=1).all()
    # Whatever stands first is asked with probability 1 / (different keys), and not by how often it stands there.
    assert within(asked[:, 0] - 1 / different, 0)


def test_look_up_is_right_and_guessing_is_chance(batch):
    said, facts = solve(TASK, batch), TASK.facts()
    found = {name: TASK.metrics(logits, batch) for name, logits in said.items()}
    assert float(found['look_up']['accuracy'].value()) == 1 and float(found['look_up']['loss'].value()) == 0
    assert float(found['chance']['loss'].value()) == pytest.approx(facts['chance'], rel=1e-5)
    assert facts['chance_accuracy'] == 1 / 4


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(vocabulary=8), 'vocabulary=8 must be odd and at least 5'),
        (dict(vocabulary=3), 'vocabulary=3 must be odd and at least 5'),
        (dict(pairs=0), 'pairs=0 must be at least 1'),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SingleRecall(**fields)
