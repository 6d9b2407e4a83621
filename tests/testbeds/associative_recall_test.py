"""Multi-query associative recall: layout, slot weights, overwrites, corruption, exact baselines and facts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import TESTBEDS, AssociativeRecall
from jattn.testbeds.associative_recall import majority_accuracy
from tests.testbeds.draws import assert_one_key_is_one_batch, draw, within

TASKS = {
    'plain': AssociativeRecall(vocabulary=32, tokens=24, pairs=4),
    'filled': AssociativeRecall(vocabulary=32, tokens=24, pairs=4, fill=True, power=1.0),
    'overwrites': AssociativeRecall(vocabulary=32, tokens=32, pairs=4, overwrites=2, fill=True),
    'repeated_overwrites': AssociativeRecall(vocabulary=32, tokens=40, pairs=4, overwrites=2, repeats=2),
    'corrupted': AssociativeRecall(vocabulary=32, tokens=40, pairs=4, repeats=3, corrupted=0.3),
}
ROWS = 2000


score = jax.jit(
    lambda task, batch: {name: task.metrics(logits, batch) for name, logits in task.baselines(batch).items()},
    static_argnums=0,
)


@pytest.fixture(scope='module', params=TASKS)
def drawn(request):
    task = TASKS[request.param]
    return task, jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))


def shows_of(task, row):
    """key -> the values that the context shows with it, in order."""
    shows = {}
    for key, value in row[: task.context].reshape(-1, 2).tolist():
        shows.setdefault(key, []).append(value)
    return shows


def test_every_key_is_asked_once_behind_the_context_at_the_first_place_of_a_slot(drawn):
    task, batch = drawn
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    for inputs, mask in zip(batch.inputs[:200], batch.mask):
        places = np.flatnonzero(mask)
        assert len(places) == task.pairs and np.all(places >= task.context) and np.all(places % 2 == 0)
        assert sorted(inputs[places]) == sorted(shows_of(task, inputs))


def test_keys_are_the_lower_half_values_the_upper_and_all_differ(drawn):
    task, batch = drawn
    half = task.vocabulary // 2
    for inputs, targets, mask in zip(batch.inputs[:200], batch.targets, batch.mask):
        shows = shows_of(task, inputs)
        assert len(shows) == task.pairs and all(1 <= key < half for key in shows)
        assert all(half <= value < task.vocabulary for values in shows.values() for value in values)
        assert len(set(targets[mask > 0])) == task.pairs
    assert np.all(batch.targets[batch.mask == 0] == 0) and np.all(batch.targets[batch.mask > 0] >= half)
    assert set(np.unique(batch.targets[batch.mask > 0])) == set(range(half, task.vocabulary))


def test_places_that_hold_nothing_are_zero_or_filled_with_any_token(drawn):
    task, batch = drawn
    rest = batch.inputs[:, task.context :][batch.mask[:, task.context :] == 0]
    assert set(np.unique(rest)) == (set(range(task.vocabulary)) if task.fill else {0})


def test_the_answer_is_the_last_clean_value(drawn):
    task, batch = drawn
    if task.corrupted:
        return
    for inputs, targets, mask, updated in zip(batch.inputs[:200], batch.targets, batch.mask, batch.meta['updated']):
        shows = shows_of(task, inputs)
        assert np.sum(updated) == task.overwrites
        for place in np.flatnonzero(mask):
            values = shows[inputs[place]]
            assert targets[place] == values[-1]
            assert len(values) == task.repeats * (1 + int(updated[place]))
            assert set(values[: task.repeats]) == {values[0]} and set(values[-task.repeats :]) == {values[-1]}
            assert (values[0] != values[-1]) == bool(updated[place])


def test_overwritten_keys_are_asked_as_late_as_the_others():
    task = TASKS['overwrites']
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(3), ROWS))
    place = np.arange(task.tokens)[None, :]
    late = [np.sum(place * mask, axis=1) / 2 for mask in (batch.meta['updated'], batch.mask - batch.meta['updated'])]
    assert within(late[0] - late[1], 0)


def test_with_questions_so_many_different_keys_are_asked_each_as_often_as_another():
    task = AssociativeRecall(vocabulary=16, tokens=16, pairs=4, overwrites=1, questions=2)
    batch = draw(task, jax.random.key(0), ROWS)
    assert float(score(task, batch)['look_up']['accuracy'].value()) == 1 and task.asked == 2
    inputs, masks = np.asarray(batch.inputs), np.asarray(batch.mask) > 0
    assert np.all(masks.sum(axis=1) == 2) and not masks[:, : task.context].any()
    asked = inputs[masks].reshape(ROWS, 2)
    assert np.all(asked[:, 0] != asked[:, 1])
    shown = inputs[:, : task.context : 2]
    # An overwritten key stands in two of the five places, and is asked no more often than the other three.
    places = (shown[:, :, None] == asked[:, None, :]).sum(axis=1)
    assert places.min() == 1 and places.max() == 2 and within((places == 2).sum(axis=1), 2 / 4)
    assert within(np.asarray(batch.meta['updated']).sum(axis=1), 2 / 4)


def test_questions_of_one_pair_follow_the_slots_weights():
    task = AssociativeRecall(vocabulary=32, tokens=22, pairs=1)
    slots = (np.asarray(draw(task, jax.random.key(1), 20_000).mask)[:, task.context :: 2]).astype(bool)
    weights = np.arange(1, 11) ** (task.power - 1.0)
    for frequency, weight in zip(slots.T, weights / weights.sum()):
        assert within(frequency, weight)


def test_questions_at_power_one_are_uniform():
    asked = draw(TASKS['filled'], jax.random.key(1), 20_000).mask[:, 8::2]
    for frequency in np.asarray(asked).T:
        assert within(frequency, 4 / 8)


def test_shown_values_are_corrupted_independently_and_uniformly():
    task = TASKS['corrupted']
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(4), ROWS))
    hits, places = [], []
    for inputs, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
        shows = shows_of(task, inputs)
        for place in np.flatnonzero(mask):
            wrong = [value != targets[place] for value in shows[inputs[place]]]
            hits.append(wrong)
            places += [(value - targets[place]) % 16 for value in shows[inputs[place]] if value != targets[place]]
    hits = np.array(hits)
    assert hits.shape[1] == 3 and all(within(column, 0.3) for column in hits.T)
    assert within(hits[:, 0] & hits[:, 1], 0.09) and within(hits[:, 0] & hits[:, 2], 0.09)
    assert set(places) == set(range(1, 16)) and all(within(np.array(places) == p, 1 / 15) for p in range(1, 16))


def test_baselines_score_what_the_facts_say(drawn):
    task, batch = drawn
    facts, scores = task.facts(), score(task, batch)
    for name in facts.keys() & scores.keys():
        assert float(scores[name]['loss'].value()) == pytest.approx(facts[name], abs=1e-5), name
    accuracy = {name: float(metrics['accuracy'].value()) for name, metrics in scores.items()}
    expected = facts['look_up_accuracy']
    spread = np.sqrt(expected * (1 - expected) / (ROWS * task.pairs))  # keys of a row are corrupted independently
    assert abs(accuracy['look_up'] - expected) <= 4.5 * spread
    assert float(scores['look_up']['sequence_accuracy'].value()) == (
        1 if not task.corrupted else pytest.approx(expected**task.pairs, abs=4.5 * np.sqrt(0.25 / ROWS))
    )
    if task.overwrites:
        assert accuracy['first_value'] == facts['first_value_accuracy'] == 0.5
        assert float(scores['first_value']['updated_accuracy'].value()) == 0
        assert float(scores['first_value']['untouched_accuracy'].value()) == 1
        assert float(scores['look_up']['updated_accuracy'].value()) == 1


def test_guesses_score_what_the_facts_say(drawn):
    task, batch = drawn
    facts, rng = task.facts(), np.random.default_rng(0)
    asked = batch.targets[batch.mask > 0].reshape(ROWS, task.pairs)
    assert within(rng.integers(task.vocabulary // 2, task.vocabulary, asked.shape) == asked, facts['chance_accuracy'])
    shown = batch.inputs[:, 1 : task.context : 2]
    guess = np.take_along_axis(shown, rng.integers(0, shown.shape[1], asked.shape), axis=1)
    assert within((guess == asked).mean(axis=1), facts['context_value_accuracy'])
    half = task.vocabulary // 2
    logits = jnp.where(jnp.arange(task.vocabulary) >= half, 0.0, -100.0)[None, None]
    loss = task.loss(jnp.broadcast_to(logits, (*batch.inputs.shape, task.vocabulary)), batch).value()
    assert float(loss) == pytest.approx(facts['chance_loss'], rel=1e-5)


def test_the_plain_task_has_the_published_chances():
    facts = AssociativeRecall(vocabulary=128, tokens=64, pairs=8).facts()
    assert facts['chance_accuracy'] == 2 / 128 and facts['context_value_accuracy'] == 1 / 8
    assert facts['context_values'] == np.log(8) and facts['look_up'] == 0 and facts['look_up_accuracy'] == 1


@pytest.mark.parametrize('repeats', [1, 2, 3, 4, 5])
def test_the_majoritys_accuracy_is_that_of_all_outcomes_counted(repeats):
    others, corrupted = 3, 0.35
    chances = [1 - corrupted] + [corrupted / others] * others
    expected = 0.0
    for outcome in itertools.product(range(others + 1), repeat=repeats):
        counts = np.bincount(outcome, minlength=others + 1)
        best = np.flatnonzero(counts == counts.max())
        expected += np.prod([chances[value] for value in outcome]) * (0 in best) / len(best)
    assert majority_accuracy(repeats, corrupted, others) == pytest.approx(expected, rel=1e-12)


def test_voting_beats_reading_the_first_show():
    task = TASKS['corrupted']
    assert task.facts()['look_up_accuracy'] > 1 - task.corrupted


def test_no_scaling_of_the_vote_has_a_lower_loss():
    task = TASKS['corrupted']
    batch = draw(task, jax.random.key(5), ROWS)
    logits, loss = jax.jit(task.baselines)(batch)['look_up'], jax.jit(task.loss)
    losses = [float(loss(scale * logits, batch).value()) for scale in (0.8, 1.0, 1.25)]
    assert losses[1] < min(losses[0], losses[2])


def test_accuracy_of_overwritten_and_other_keys_are_told_apart():
    task = TASKS['overwrites']
    batch = draw(task, jax.random.key(0), ROWS)
    outputs = jax.nn.one_hot(batch.targets, task.vocabulary) * batch.meta['updated'][:, :, None]
    metrics = jax.jit(task.metrics)(outputs, batch)
    assert float(metrics['updated_accuracy'].value()) == 1 and float(metrics['updated_accuracy'].count) == 2 * ROWS
    assert float(metrics['untouched_accuracy'].value()) == 0 and float(metrics['untouched_accuracy'].count) == 2 * ROWS
    assert float(metrics['accuracy'].value()) == 0.5 and float(metrics['sequence_accuracy'].value()) == 0


@pytest.mark.slow
@pytest.mark.parametrize('name', ['overwrites', 'corrupted'])
def test_the_same_key_gives_the_same_batch_under_jit_vmap_and_sharding(name):
    assert_one_key_is_one_batch(TASKS[name], rows=4)


BAD = {
    'odd': (dict(tokens=33), 'vocabulary=128 and tokens=33 must be even'),
    'pairs': (dict(pairs=0), 'pairs=0 and repeats=1 must be at least 1'),
    'overwrites': (dict(overwrites=9), r'overwrites=9 must lie in 0\.\.pairs = 8'),
    'vocabulary': (dict(vocabulary=16), 'vocabulary=16 has 7 keys and 8 values, too few for pairs=8'),
    'tokens': (dict(tokens=30), 'tokens=30 must be at least 32: 16 of the context and 2 for each of 8 questions'),
    'questions': (dict(questions=9), r'questions=9 must lie in 1\.\.pairs = 8'),
    'power': (dict(power=0.0), 'power=0.0 must be positive'),
    'corrupted': (dict(corrupted=0.99), r'corrupted=0.99 must lie in 0\.\.0.9844'),
    'both': (dict(corrupted=0.1, overwrites=1), 'overwrites=1 and corrupted=0.1 do not go together'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_sizes_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        AssociativeRecall(**fields)


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_a_tiny_copy_keeps_the_choices(task):
    tiny = task.tiny()
    assert tiny.tokens < task.tokens and (tiny.overwrites > 0) == (task.overwrites > 0)
    assert (tiny.repeats, tiny.corrupted, tiny.fill) == (task.repeats, task.corrupted, task.fill)
    assert dataclasses.replace(task, questions=1).tiny().questions == 1
    assert TESTBEDS['associative_recall'].tiny() == dataclasses.replace(TESTBEDS['associative_recall'].tiny())
