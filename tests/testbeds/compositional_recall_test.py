"""Compositional recall: complete grids, exact answers, what one part of a key is worth."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.compositional_recall import CompositionalRecall
from tests.testbeds.draws import draw

TASKS = {
    'all': CompositionalRecall(parts=4, values=10, rows=2, columns=3),
    'some': CompositionalRecall(parts=3, values=6, rows=3, columns=2, questions=2),
}
ROWS = 500


def _score(task, batch):
    said = task.baselines(batch)
    losses = {name: task.loss(logits, batch).value() for name, logits in said.items()}
    return losses, task.metrics(said['look_up'], batch), said


score = jax.jit(_score, static_argnums=0)


@pytest.fixture(scope='module', params=TASKS)
def drawn(request):
    task = TASKS[request.param]
    return task, jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))


def test_every_cell_of_the_grid_is_shown_once_with_its_own_value(drawn):
    task, batch = drawn
    assert batch.inputs.shape == (ROWS, task.tokens) and batch.inputs.dtype == batch.targets.dtype == np.int32
    for inputs, targets, mask in zip(batch.inputs[:300], batch.targets, batch.mask):
        book = {(a, b): v for a, b, v in inputs[: 3 * task.pairs].reshape(-1, 3).tolist()}
        firsts, seconds = {a for a, _ in book}, {b for _, b in book}
        assert (len(firsts), len(seconds)) == (task.rows, task.columns)
        assert set(book) == set(itertools.product(firsts, seconds)) and len(set(book.values())) == task.pairs
        assert max(firsts) < task.parts <= min(seconds) and max(seconds) < 2 * task.parts <= min(book.values())
        questions = inputs[3 * task.pairs :].reshape(-1, 2).tolist()
        assert len({tuple(question) for question in questions}) == task.asked
        places = np.arange(3 * task.pairs + 1, task.tokens, 2)
        np.testing.assert_array_equal(np.flatnonzero(mask), places)
        assert targets[places].tolist() == [book[tuple(question)] for question in questions]
        assert np.all(targets[mask == 0] == 0)


def test_cells_are_shown_and_asked_at_all_places_alike(drawn):
    task, batch = drawn
    context = batch.inputs[:, : 3 * task.pairs].reshape(ROWS, -1, 3)
    question = batch.inputs[:, None, 3 * task.pairs : 3 * task.pairs + 2]
    place = np.argmax(np.all(context[:, :, :2] == question, axis=-1), axis=1)
    for cell in range(task.pairs):
        expected = 1 / task.pairs
        assert abs((place == cell).mean() - expected) < 4.5 * (expected * (1 - expected) / ROWS) ** 0.5


def test_baselines_score_what_the_facts_say(drawn):
    task, batch = drawn
    facts, (losses, look_up, _) = task.facts(), score(task, batch)
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(facts[name], rel=1e-5), name
    assert float(look_up['accuracy'].value()) == float(look_up['sequence_accuracy'].value()) == 1
    assert facts['look_up'] == 0 and facts['look_up_accuracy'] == 1


def test_neither_part_alone_decides(drawn):
    task, batch = drawn
    facts, said = task.facts(), score(task, batch)[2]
    assert facts['first_part_accuracy'] == 1 / task.columns and facts['second_part_accuracy'] == 1 / task.rows
    rng = np.random.default_rng(0)
    for name in ('first_part', 'second_part', 'context_values', 'chance'):
        candidates = np.asarray(said[name]) > -1
        guess = np.argmax(candidates * rng.uniform(size=candidates.shape), axis=-1)
        rows = ((guess == batch.targets) * batch.mask).sum(axis=1) / task.asked
        expected = facts[f'{name.removesuffix("s")}_accuracy']
        assert abs(rows.mean() - expected) < 4.5 * rows.std() / ROWS**0.5, name


@pytest.mark.slow
def test_same_key_same_batch_under_jit_and_vmap():
    task, keys = TASKS['some'], jax.random.split(jax.random.key(4), 2)
    rows = jax.jit(jax.vmap(lambda key: task.sample(key, ROWS)))(keys)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), rows, draw(task, keys[1], ROWS))
    assert not jnp.array_equal(rows.inputs[0], rows.inputs[1])


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(rows=1), r'rows=1 must lie in 2\.\.parts = 16: with one, the other part alone decides'),
        (dict(columns=17), r'columns=17 must lie in 2\.\.parts = 16'),
        (dict(values=15), 'values=15 must be at least 16'),
        (dict(questions=17), r'questions=17 must lie in 1\.\.16'),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        CompositionalRecall(**fields)
