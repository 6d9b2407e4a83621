"""Passkey: needles in streams of any length, piece by piece; exact look-up and facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import TESTBEDS, Passkey
from jattn.testbeds.passkey import BLOCK, FIRST_DIGIT, FIRST_KEY, MARK, draw_needles, stream_chunk
from tests.testbeds.draws import draw, within

TASKS = {
    'one': Passkey(tokens=48, digits=3, keys=5, noise=7),
    'several': Passkey(tokens=48, digits=2, keys=5, needles=4, noise=7),
    'repeat': Passkey(tokens=40, digits=1, keys=3, needles=2, noise=7, haystack='repeat'),
}
ROWS = 2000


piece = jax.jit(stream_chunk, static_argnums=(0, 3))


@pytest.fixture(scope='module', params=TASKS)
def drawn(request):
    task = TASKS[request.param]
    return task, jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))


def needles_of(task, row):
    """(place, key, digits) of every needle of a row."""
    haystack = row[: len(row) - task.digits - 1]
    places = np.flatnonzero(haystack == MARK)
    return [(at, row[at + 1], row[at + 2 : at + 2 + task.digits].tolist()) for at in places]


def test_a_row_is_needles_in_noise_and_the_question_at_its_end(drawn):
    task, batch = drawn
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    for row, targets in zip(batch.inputs[:200], batch.targets):
        needles = needles_of(task, row)
        assert len(needles) == task.needles == len({key for _, key, _ in needles})
        is_noise = np.ones(len(row), bool)
        is_noise[-task.digits - 1 :] = False
        for at, key, digits in needles:
            assert FIRST_KEY <= key < FIRST_KEY + task.keys
            assert all(FIRST_DIGIT <= digit < FIRST_KEY for digit in digits)
            is_noise[at : at + task.digits + 2] = False
        assert np.sum(~is_noise) == task.room
        assert np.all(row[is_noise] >= FIRST_KEY + task.keys) and np.all(row < task.input_size)
        asked = row[-task.digits]
        (answer,) = [digits for _, key, digits in needles if key == asked]
        assert row[-task.digits - 1] == MARK and targets[-task.digits :].tolist() == answer
        assert row[len(row) - task.digits + 1 :].tolist() == answer[:-1]


def test_only_the_value_is_scored(drawn):
    task, batch = drawn
    expected = np.arange(task.tokens) >= task.tokens - task.digits
    assert np.all(batch.mask == expected[None, :]) and np.all(batch.targets[:, ~expected] == 0)


def test_the_look_up_is_right_and_guesses_score_what_the_facts_say(drawn):
    task, batch = drawn
    facts = task.facts()
    metrics = jax.jit(lambda b: task.metrics(task.baselines(b)['look_up'], b))(batch)
    assert float(metrics['loss'].value()) == facts['look_up'] == 0
    assert float(metrics['accuracy'].value()) == float(metrics['sequence_accuracy'].value()) == 1
    is_digit = (jnp.arange(task.input_size) >= FIRST_DIGIT) & (jnp.arange(task.input_size) < FIRST_KEY)
    logits = jnp.broadcast_to(jnp.where(is_digit, 0.0, -100.0)[None, None], (*batch.inputs.shape, task.input_size))
    assert float(task.loss(logits, batch).value()) == pytest.approx(facts['chance_loss'], rel=1e-5)
    rng, answers = np.random.default_rng(0), batch.targets[:, -task.digits :]
    right = rng.integers(FIRST_DIGIT, FIRST_KEY, answers.shape) == answers
    assert within(right, facts['chance_accuracy'])
    assert within(right.all(axis=1), facts['chance_sequence_accuracy'])
    if task.needles > 1:
        guesses = np.array([needles_of(task, row)[rng.integers(task.needles)][2] for row in batch.inputs])
        assert within((guesses == answers).mean(axis=1), facts['any_needle_accuracy'])
        assert within((guesses == answers).all(axis=1), facts['any_needle_sequence_accuracy'])


def test_uniform_noise_and_digits_are_uniform_and_the_repeated_sentence_repeats():
    task = TASKS['one']
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(2), ROWS))
    first = FIRST_KEY + task.keys
    noise = batch.inputs[batch.inputs >= first]
    assert all(within(noise == first + n, 1 / task.noise) for n in range(task.noise))
    digits = batch.targets[:, -task.digits :].reshape(-1)
    assert all(within(digits == FIRST_DIGIT + n, 0.1) for n in range(10))
    task = TASKS['repeat']
    row = np.asarray(draw(task, jax.random.key(2), 1).inputs[0])
    noise = np.flatnonzero(row >= FIRST_KEY + task.keys)
    np.testing.assert_array_equal(row[noise], FIRST_KEY + task.keys + noise % task.noise)


@pytest.mark.parametrize('name', ['one', 'several'])
def test_the_needle_stands_at_its_depth(name):
    task = TASKS[name]
    rows = jax.jit(lambda depth: task.rows_at(jax.random.key(1), 5, depth, 100).inputs)
    for depth in (0.0, 0.25, 1.0):
        for row in np.asarray(rows(depth)):
            asked = row[-task.digits]
            before = next(at for at, key, _ in needles_of(task, row) if key == asked)
            noise_before = np.sum(row[:before] >= FIRST_KEY + task.keys)
            assert noise_before == round(depth * (100 - task.room))


def test_depths_are_uniform_and_told(drawn):
    task, batch = drawn
    assert within(batch.meta['depth'], 0.5) and within(np.square(batch.meta['depth']), 1 / 3)
    for row, depth in zip(batch.inputs[:100], batch.meta['depth']):
        before = next(at for at, key, _ in needles_of(task, row) if key == row[-task.digits])
        assert np.sum(row[:before] >= FIRST_KEY + task.keys) == np.round(depth * np.float32(task.tokens - task.room))


@pytest.mark.parametrize('name', TASKS)
def test_pieces_of_a_stream_are_the_row(name):
    task, total = TASKS[name], 2 * BLOCK + 100
    row = np.asarray(jax.jit(lambda key: task.rows_at(key, 2, depth=0.6, tokens=total))(jax.random.key(7)).inputs[1])
    key = jax.random.split(jax.random.key(7), 2)[1]
    pieces = np.concatenate([piece(task, key, start, 51, 0.6, total) for start in range(0, total, 51)])
    assert len(pieces) == total == 12 * 51
    np.testing.assert_array_equal(pieces, row)
    np.testing.assert_array_equal(piece(task, key, 100, 400, 0.6, total), row[100:500])


def test_a_piece_of_a_stream_of_millions_costs_no_more_than_itself():
    task, key, total = TASKS['one'], jax.random.key(3), 2**21
    cost = piece.lower(task, key, 0, 51, 0.5, total).compile().memory_analysis()
    assert cost.temp_size_in_bytes + cost.output_size_in_bytes < 100_000
    at = round(0.5 * (total - task.room))
    needles = jax.jit(draw_needles, static_argnums=0)(task, key)
    found = np.asarray(piece(task, key, at - 3, 51, 0.5, total))
    expected = [MARK, int(needles.names[0]), *needles.values[0].tolist()]
    assert found[3:8].tolist() == expected and np.all(found[:3] >= FIRST_KEY + task.keys)
    end = np.asarray(piece(task, key, total - 51, 51, 0.5, total))
    assert end[-4:].tolist() == expected[:-1] and np.all(end[:-4] >= FIRST_KEY + task.keys)


def test_the_haystack_does_not_depend_on_the_streams_length():
    task, key = TASKS['one'], jax.random.key(3)
    short, long = (np.asarray(piece(task, key, 10, 51, 1.0, total)) for total in (1000, 2000))
    np.testing.assert_array_equal(short, long)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['one', 'several'])
def test_the_same_key_gives_the_same_batch_under_jit_and_sharding(name):
    task, key = TASKS[name], jax.random.key(0)
    mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    sharded = jax.jit(task.sample, static_argnums=1, out_shardings=rows)(key, ROWS)
    assert len(sharded.inputs.sharding.device_set) == 2
    jax.tree.map(np.testing.assert_array_equal, sharded, draw(task, key, ROWS))
    assert not np.array_equal(draw(task, jax.random.key(6), ROWS).inputs, sharded.inputs)


BAD = {
    'digits': (dict(digits=0), 'digits=0 must be at least 1'),
    'needles': (dict(needles=22), 'needles=22 need as many different keys, but keys=21'),
    'haystack': (dict(haystack='essay'), "haystack='essay' must be one of uniform, repeat"),
    'tokens': (dict(tokens=10), 'tokens=10 must be at least 11, the room of needles=1 and the question with digits=4'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_sizes_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Passkey(**fields)


def test_lengths_that_hold_no_needle_are_refused_by_name():
    with pytest.raises(ValueError, match='tokens=9 must be at least 11'):
        Passkey().rows_at(jax.random.key(0), 1, tokens=9)
    with pytest.raises(ValueError, match='total=9 must be at least 11'):
        stream_chunk(Passkey(), jax.random.key(0), 0, 5, None, 9)


def test_the_table_entry_is_hashable_and_shrinks():
    task = TESTBEDS['passkey']
    assert hash(task) == hash(Passkey()) and task.tiny().tokens < task.tokens
    assert Passkey(needles=3, haystack='repeat').tiny().haystack == 'repeat'
