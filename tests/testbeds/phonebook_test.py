"""Phonebook: lines, examples and the asked name; the exact answer; chances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.phonebook import Phonebook
from tests.testbeds.draws import draw

TASK = Phonebook(lines=5, names=3)
ROWS = 2000


@pytest.fixture(scope='module')
def drawn():
    return jax.tree.map(np.asarray, draw(TASK, jax.random.key(0), ROWS))


def lines_of(batch):
    """[B, lines + examples + 1, 12], the last one completed by the last target."""
    stream = np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1)
    return stream.reshape(len(stream), -1, 12)


def test_lines_have_different_names_and_numbers_from_six_billion_on(drawn):
    book = lines_of(drawn)[:, :5]
    assert drawn.inputs.dtype == drawn.targets.dtype == np.int32 and drawn.inputs.shape == (ROWS, 12 * 8 - 1)
    codes = np.sort(3 * book[:, :, 0] + book[:, :, 1], axis=1)
    assert np.all(np.diff(codes, axis=1) > 0)
    assert set(np.unique(book[:, :, 0])) == {0, 1, 2} and set(np.unique(book[:, :, 1])) == {3, 4, 5}
    assert set(np.unique(book[:, :, 2])) == {12, 13, 14, 15} and set(np.unique(book[:, :, 3:])) == set(range(6, 16))
    for digit, count in ((2, 4), (3, 10), (11, 10)):
        share = (book[:, :, digit] == 15).mean()
        assert abs(share - 1 / count) < 4.5 * (share / (5 * ROWS)) ** 0.5


def test_three_different_lines_stand_again_and_the_third_number_is_asked(drawn):
    lines = lines_of(drawn)
    found = np.all(lines[:, :5, None] == lines[:, None, 5:], axis=-1)
    assert np.all(found.sum(axis=1) == 1), 'each of the last three lines is one of the book'
    which = np.argmax(found, axis=1)
    assert all(len(set(row)) == 3 for row in which.tolist())
    for line in range(5):
        assert abs((which[:, 2] == line).mean() - 1 / 5) < 4.5 * (4 / 25 / ROWS) ** 0.5
    np.testing.assert_array_equal(drawn.targets[:, -10:], lines[:, -1, 2:])
    np.testing.assert_array_equal(drawn.mask, np.tile(np.arange(95) >= 85, (ROWS, 1)))
    assert np.all(drawn.targets[:, :85] == 0)


def test_look_up_is_right_and_guessing_is_chance(drawn):
    said, facts = jax.jit(TASK.baselines)(drawn), TASK.facts()
    metrics = jax.jit(TASK.metrics)(said['look_up'], drawn)
    assert float(metrics['loss'].value()) == facts['look_up'] == 0
    assert float(metrics['accuracy'].value()) == float(metrics['sequence_accuracy'].value()) == 1
    assert metrics['accuracy_by_digit'].value().tolist() == [1.0] * 10
    assert float(TASK.loss(said['chance'], drawn).value()) == pytest.approx(facts['chance'], rel=1e-5)
    rng = np.random.default_rng(0)
    guess = np.concatenate([rng.integers(12, 16, (ROWS, 1)), rng.integers(6, 16, (ROWS, 9))], axis=1)
    right = (guess == drawn.targets[:, -10:]).mean(axis=1)
    assert abs(right.mean() - facts['chance_accuracy']) < 4.5 * right.std() / ROWS**0.5
    line = lines_of(drawn)[np.arange(ROWS), rng.integers(0, 5, ROWS), 2:]
    whole = np.all(line == drawn.targets[:, -10:], axis=1)
    assert abs(whole.mean() - facts['any_line_sequence_accuracy']) < 4.5 * whole.std() / ROWS**0.5


def test_a_number_is_guessed_once_in_four_billion():
    assert Phonebook().facts()['chance_sequence_accuracy'] == pytest.approx(1 / 4e9)
    assert Phonebook().input_size == 210 and Phonebook(lines=20).tokens == 12 * 23 - 1


def test_one_wrong_digit_spoils_the_number_alone(drawn):
    said = jax.jit(TASK.baselines)(drawn)['look_up']
    wrong = said.at[: ROWS // 2, -1].set(jax.nn.one_hot(0, TASK.output_size))
    metrics = jax.jit(TASK.metrics)(wrong, drawn)
    assert float(metrics['sequence_accuracy'].value()) == 0.5
    assert float(metrics['accuracy'].value()) == pytest.approx(0.95)


@pytest.mark.slow
def test_same_key_same_batch_under_jit_and_vmap(drawn):
    keys = jnp.stack([jax.random.key(1), jax.random.key(0)])
    rows = jax.jit(jax.vmap(lambda key: TASK.sample(key, ROWS)))(keys)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), rows, drawn)
    assert not jnp.array_equal(rows.inputs[0], rows.inputs[1])


@pytest.mark.parametrize(
    ('fields', 'message'),
    [(dict(lines=2), 'lines=2 must be at least 3'), (dict(names=3, lines=10), 'names=3 gives 9 names, too few')],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Phonebook(**fields)
