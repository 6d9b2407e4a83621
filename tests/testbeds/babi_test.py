"""Babi: a world told in facts among noise; the simulator against a loop, where facts stand, what guessing scores."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import TESTBEDS, Babi
from jattn.testbeds.babi_world import (
    BEFORE,
    DROP,
    MOVE,
    NOISE,
    OBJECT,
    OBJECTS,
    PEOPLE,
    PERSON,
    PLACE,
    PLACES,
    TAKE,
    VERB,
    WHERE,
    WORDS,
    say,
    tell,
)
from tests.testbeds.draws import assert_one_key_is_one_batch, draw, solve, within

ROWS = 1500
TASKS = {
    'qa1': Babi(task='qa1', tokens=60, noise=5),
    'qa2': Babi(task='qa2', tokens=60, noise=5),
    'qa3': Babi(task='qa3', tokens=60, noise=5),
    'full': Babi(task='qa3', tokens=11, most_facts=3, noise=1),
}
LEAST = {'qa1': 2, 'qa2': 2, 'qa3': 3}
measure = jax.jit(lambda task, outputs, batch: task.metrics(outputs, batch), static_argnums=0)


@pytest.fixture(scope='module', params=TASKS)
def drawn(request):
    task = TASKS[request.param]
    return task, jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))


def facts_of(row):
    """(place in the row, person, verb, what) of every fact, in words, and the two words of the question."""
    words = [WORDS[token] if token < NOISE else None for token in row]
    facts, at = [], 0
    while at < len(words) - 2:
        if words[at] is None:
            at += 1
        else:
            facts.append((at, *words[at : at + 3]))
            at += 3
    return facts, words[-2:]


class Told:
    """The world in plain Python, by names."""

    def __init__(self):
        self.places, self.holders, self.there, self.before = {}, {}, {}, {}

    def hear(self, person, verb, what):
        """One fact, and whether it may happen."""
        if verb == 'moved':
            legal = self.places.get(person) != what
            self.places[person] = what
            for thing in [thing for thing, holder in self.holders.items() if holder == person]:
                self.before[thing], self.there[thing] = self.there[thing], what
            return legal
        here = self.places.get(person)
        if verb == 'took':
            legal = here is not None and what not in self.holders and self.there.get(what, here) == here
            self.holders[what] = person
            self.there[what] = here
            return legal
        return self.holders.pop(what, None) == person

    def answers(self, task):
        return {'qa1': self.places, 'qa2': self.there, 'qa3': self.before}[task]


def test_facts_are_legal_and_the_answer_is_that_of_a_loop(drawn):
    task, batch = drawn
    assert batch.inputs.dtype == batch.targets.dtype == np.int32 and batch.inputs.shape == (ROWS, task.tokens)
    counts, everything = set(), set()
    for row, targets in zip(batch.inputs, batch.targets):
        facts, (question, asked) = facts_of(row)
        told = Told()
        assert all(told.hear(*fact) for _, *fact in facts)
        assert question == ('before' if task.task == 'qa3' else 'where')
        assert told.answers(task.task)[asked] == WORDS[targets[-1]]
        if task.task == 'qa3':
            assert told.before[asked] != told.there[asked]
        counts.add(len(facts))
        everything |= {(verb, what) for _, _, verb, what in facts}
        assert np.sum(row[:-2] >= NOISE) == task.tokens - 2 - 3 * len(facts) and row.max() < task.input_size
    assert counts == set(range(LEAST[task.task], task.most_facts + 1))
    if task.most_facts > 3:
        things = [('took', 'dropped'), ('apple', 'ball', 'milk')] if task.task != 'qa1' else [(), ()]
        assert everything == {*itertools.product(['moved'], WORDS[PLACE:OBJECT]), *itertools.product(*things)}


def test_the_number_of_facts_is_uniform(drawn):
    task, batch = drawn
    counts = np.sum((batch.inputs[:, :-2] >= PERSON) & (batch.inputs[:, :-2] < PLACE), axis=1)
    choices = range(LEAST[task.task], task.most_facts + 1)
    assert all(within(counts == count, 1 / len(choices)) for count in choices)


def test_only_the_answer_is_scored(drawn):
    task, batch = drawn
    is_last = np.arange(task.tokens) == task.tokens - 1
    assert np.all(batch.mask == is_last[None, :]) and np.all(batch.targets[:, :-1] == 0)
    assert np.all((batch.targets[:, -1] >= PLACE) & (batch.targets[:, -1] < OBJECT))


def test_the_simulator_is_right_and_guesses_score_what_the_facts_say(drawn):
    task, batch = drawn
    facts, said = task.facts(), solve(task, batch)
    metrics = measure(task, said['simulator'], batch)
    assert float(metrics['loss'].value()) == facts['simulator'] == 0 and float(metrics['accuracy'].value()) == 1
    assert float(measure(task, said['chance'], batch)['loss'].value()) == pytest.approx(facts['chance'], rel=1e-5)
    answers = batch.targets[:, -1]
    assert facts['chance_accuracy'] == 1 / 6 and facts['chance'] == pytest.approx(np.log(6))
    assert all(within(answers == place, 1 / 6) for place in range(PLACE, OBJECT))
    right = np.argmax(said['last_place'][:, -1], axis=-1) == answers
    last = [[WORDS.index(what) for _, _, verb, what in facts_of(row)[0] if verb == 'moved'][-1] for row in batch.inputs]
    np.testing.assert_array_equal(right, last == answers)
    if task.task == 'qa1':
        assert within(right, facts['last_place_accuracy'])
    else:
        assert 'last_place_accuracy' not in facts


@pytest.mark.parametrize('most', [2, 3, 4])
def test_the_last_place_is_right_as_often_as_counting_says(most):
    chances = []
    for count in range(2, most + 1):
        movers = itertools.product(range(PEOPLE), repeat=count)
        chances.append(np.mean([1 / len(set(row)) for row in movers]))
    expected = np.mean(chances) + (1 - np.mean(chances)) / 6
    assert Babi(most_facts=most).facts()['last_place_accuracy'] == pytest.approx(expected, rel=1e-12)


def test_what_is_asked_tells_nothing_of_the_answer(drawn):
    task, batch = drawn
    first, count = (PERSON, PEOPLE) if task.task == 'qa1' else (OBJECT, OBJECTS)
    asked = batch.inputs[:, -1] - first
    assert set(asked) == set(range(count)) and set(batch.inputs[:, -2]) == {BEFORE if task.task == 'qa3' else WHERE}
    for thing in range(count):
        answers = batch.targets[asked == thing, -1]
        assert within(asked == thing, 1 / count) and all(within(answers == PLACE + n, 1 / 6) for n in range(PLACES))


def test_the_asked_one_is_uniform_over_those_that_have_an_answer():
    task, places = TASKS['qa1'], []
    for row in draw(task, jax.random.key(1), ROWS).inputs:
        facts, (_, asked) = facts_of(np.asarray(row))
        known = list(dict.fromkeys(person for _, person, _, _ in facts))
        if len(known) == 3:
            places.append(known.index(asked))
    assert len(places) > 300 and all(within(np.array(places) == n, 1 / 3) for n in range(3))


def test_the_law_of_the_facts_is_verb_then_who_then_what():
    task = Babi(task='qa2', tokens=14, most_facts=4, noise=1)
    third = {}
    for row in np.asarray(draw(task, jax.random.key(2), 6000).inputs):
        facts, _ = facts_of(row)
        if len(facts) > 2:
            (_, mover, first, _), (_, taker, second, _), (_, *fact) = facts[:3]
            assert (first, second, mover) == ('moved', 'took', taker)
            kind = (fact[1], fact[0] == taker)
            third[kind] = third.get(kind, 0) + 1
    total = sum(third.values())
    # After a move and a take one person has something to drop, the same one alone can take, and all may move.
    law = {('moved', True): 1 / 8, ('moved', False): 3 / 8, ('took', True): 1 / 4, ('dropped', True): 1 / 4}
    assert third.keys() == law.keys() and total > 3500
    for kind, chance in law.items():
        assert abs(third[kind] / total - chance) <= 4.5 * np.sqrt(chance * (1 - chance) / total)


def test_facts_stand_behind_sorted_uniform_numbers_of_noise_tokens():
    task = Babi(tokens=24, most_facts=2, noise=3)
    row_noise = 24 - 2 - 6
    pairs = np.array(
        [[at - 3 * n for n, (at, *_) in enumerate(facts_of(row)[0])]
         for row in np.asarray(draw(task, jax.random.key(3), 4000).inputs)]
    )  # fmt: skip
    assert np.all(pairs[:, 0] <= pairs[:, 1]) and pairs.min() == 0 and pairs.max() == row_noise
    values = np.arange(row_noise + 1)
    assert within(pairs.mean(axis=1), row_noise / 2)
    larger = np.maximum(values[:, None], values[None, :])
    assert within(pairs[:, 1], larger.mean()) and within(pairs[:, 0] == pairs[:, 1], 1 / len(values))


def test_noise_is_uniform():
    task = TASKS['qa2']
    inputs = np.asarray(draw(task, jax.random.key(0), ROWS).inputs)
    noise = inputs[inputs >= NOISE]
    assert all(within(noise == NOISE + n, 1 / task.noise) for n in range(task.noise))


def test_the_depth_is_that_of_the_last_fact_that_changed_the_answer(drawn):
    task, batch = drawn
    for row, depth in zip(batch.inputs[:500], batch.meta['depth']):
        facts, (_, asked) = facts_of(row)
        told, answer, deciding = Told(), None, None
        for at, *fact in facts:
            told.hear(*fact)
            if told.answers(task.task).get(asked) != answer:
                answer, deciding = told.answers(task.task)[asked], at
        assert depth == pytest.approx(deciding / (task.tokens - 2), abs=1e-6)


def test_accuracy_is_told_by_that_depth(drawn):
    task, batch = drawn
    said = solve(task, batch)['last_place']
    curve = measure(task, said, batch)['accuracy_by_depth']
    right = np.argmax(said[:, -1], axis=-1) == batch.targets[:, -1]
    tenth = np.floor(np.float32(10) * batch.meta['depth']).astype(int)
    assert curve.count.tolist() == np.bincount(tenth, minlength=10).tolist() and curve.count.sum() == ROWS
    np.testing.assert_allclose(curve.total, np.bincount(tenth, right, minlength=10), rtol=1e-6)


def test_a_held_object_moves_along_and_a_dropped_one_stays():
    facts = [
        (0, MOVE, 1),
        (0, TAKE, 2),
        (1, MOVE, 3),
        (0, MOVE, 4),
        (0, DROP, 2),
        (0, MOVE, 5),
        (1, MOVE, 4),
        (1, TAKE, 2),
    ]
    facts = jnp.array([*facts, (1, MOVE, 0)], jnp.int32)
    run = jax.jit(tell)
    there = [int(run(facts, n).there[2]) for n in range(10)]
    before = [int(run(facts, n).before[2]) for n in range(10)]
    assert there == [-1, -1, 1, 1, 4, 4, 4, 4, 4, 0] and before == [-1, -1, -1, -1, 1, 1, 1, 1, 1, 4]
    assert [int(run(facts, n).carried[2]) for n in range(10)] == [-1, -1, 1, 1, 3, 3, 3, 3, 3, 8]


def test_the_words_are_a_vocabulary_and_noise_has_its_own():
    assert len(WORDS) == len(set(WORDS)) == NOISE == 18 and Babi(noise=7).input_size == 25
    assert (PEOPLE, PLACES, OBJECTS) == (4, 6, 3) and (VERB, PERSON, PLACE, OBJECT) == (2, 5, 9, 15)
    assert say(jnp.array([NOISE, 5, 2, 13, 20])) == '. anna moved kitchen .'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['qa1', 'qa3'])
def test_the_same_key_gives_the_same_batch_under_jit_vmap_and_sharding(name):
    assert_one_key_is_one_batch(TASKS[name], rows=8)


BAD = {
    'task': (dict(task='qa4'), "task='qa4' is unknown; did you mean 'qa"),
    'facts': (dict(most_facts=1), 'most_facts=1 must be at least 2 for qa1'),
    'more_facts': (dict(task='qa3', most_facts=2), 'most_facts=2 must be at least 3 for qa3'),
    'noise': (dict(noise=0), 'noise=0 must be at least 1'),
    'tokens': (dict(tokens=31), 'tokens=31 must be at least 32, the room of most_facts=10 and the question'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_sizes_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Babi(**fields)


def test_the_table_entry_is_hashable_and_shrinks():
    task = TESTBEDS['babi']
    assert hash(task) == hash(Babi()) and task.tiny().tokens < task.tokens and TASKS['qa3'].tiny().task == 'qa3'
