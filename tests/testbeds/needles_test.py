"""Needles: sentences in noise, in letters and in files; where they stand, what is scored, what is known exactly."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from experiments import run
from jattn.testbeds import TESTBEDS, Needles
from jattn.testbeds.haystack import NOISE, noise
from jattn.testbeds.needles import DEPTHS, KEYS, VALUES
from tests.programs import call
from tests.testbeds.draws import assert_one_key_is_one_batch, draw, solve, within

ROWS = 100
TEXT = 'A crow sat on a fence and looked at\nthe road.  Two carts went by,\none of them empty. '
TASKS = {
    'S-NIAH-1': Needles(tokens=220),
    'S-NIAH-2': Needles(tokens=220, haystack='text'),
    'S-NIAH-3': Needles(tokens=260, haystack='text', value='uuid'),
    'several': Needles(tokens=400, haystack='text', keys=4, depth=None),
    'several_in_noise': Needles(tokens=300, keys=3, depth=0.5),
}
measure = jax.jit(lambda task, outputs, batch: task.metrics(outputs, batch), static_argnums=0)


@pytest.fixture(scope='module', params=TASKS)
def drawn(request):
    task = TASKS[request.param]
    return task, jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('text') / 'text.txt'
    path.write_text(TEXT)
    return str(path)


def text_of(tokens):
    return bytes(np.asarray(tokens, np.uint8).tolist()).decode()


def parts_of(task, row):
    """The needles as (key, value, text that stands before them), the haystack alone, and the asked key."""
    text, question = text_of(row).split(f'What is the {task.value} of ')
    end = '\n' if task.haystack == 'noise' else ' '
    pattern = rf'The {task.value} of (\w+-\w+) is ([0-9a-f-]+)\.{end}'
    found, around, at = [], '', 0
    for match in re.finditer(pattern, text):
        around += text[at : match.start()]
        found.append((*match.groups(), around))
        at = match.end()
    asked, said = question.split('? It is ')
    return found, around + text[at:], asked, said


def test_a_row_is_needles_in_a_haystack_the_question_and_all_of_the_value_but_its_end(drawn):
    task, batch = drawn
    assert batch.inputs.shape == (ROWS, task.tokens) and batch.inputs.dtype == batch.targets.dtype == np.int32
    form = r'[1-9]\d{6}' if task.value == 'number' else r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'
    for row, targets in zip(batch.inputs, batch.targets):
        found, around, asked, said = parts_of(task, row)
        names = [name for name, _, _ in found]
        assert len(set(names)) == len(names) == task.keys and set(names) <= set(KEYS)
        assert all(re.fullmatch(form, value) for _, value, _ in found)
        assert len(around) == task.tokens - task.room
        answer = text_of(targets[-task.characters :])
        assert {name: value for name, value, _ in found}[asked] == answer and said == answer[:-1]


def test_the_value_stands_nowhere_but_in_its_needle(drawn):
    task, batch = drawn
    for row, targets in zip(batch.inputs, batch.targets):
        assert text_of(row).count(text_of(targets[-task.characters :])) == 1


def test_every_character_of_the_value_is_scored_and_nothing_else(drawn):
    task, batch = drawn
    expected = np.arange(task.tokens) >= task.tokens - task.characters
    assert np.all(batch.mask == expected[None, :]) and np.all(batch.targets[:, ~expected] == 0)
    assert task.characters == {'number': 7, 'uuid': 36}[task.value]


def test_the_look_up_is_right_and_guesses_score_what_the_facts_say(drawn):
    task, batch = drawn
    facts, said = task.facts(), solve(task, batch)
    metrics = measure(task, said['look_up'], batch)
    assert float(metrics['loss'].value()) == facts['look_up'] == 0
    assert float(metrics['accuracy'].value()) == float(metrics['sequence_accuracy'].value()) == 1
    assert float(task.loss(said['chance'], batch).value()) == pytest.approx(facts['chance'], rel=1e-5)
    rng, width = np.random.default_rng(0), task.characters
    answers = batch.targets[:, -width:]
    places = [np.frombuffer(place.encode(), np.uint8) for place in VALUES[task.value]]
    guess = np.stack([rng.choice(place, ROWS) for place in places], axis=1)
    assert within((guess == answers).mean(axis=1), facts['chance_accuracy'])
    if task.keys > 1:
        values = [parts_of(task, row)[0][rng.integers(task.keys)][1] for row in batch.inputs]
        right = np.array([list(value.encode()) for value in values]) == answers
        assert within(right.mean(axis=1), facts['any_needle_accuracy'])
        assert within(right.all(axis=1), facts['any_needle_sequence_accuracy'])


def test_a_number_is_guessed_once_in_nine_million_and_a_uuid_once_in_sixteen_to_the_32():
    number, uuid = Needles().facts(), Needles(tokens=512, value='uuid').facts()
    assert number['chance_sequence_accuracy'] == pytest.approx(1 / (9 * 10**6), rel=1e-12)
    assert number['value_entropy'] == pytest.approx(math.log(9 * 10**6))
    assert number['chance'] == pytest.approx(number['value_entropy'] / 7)
    assert number['chance_accuracy'] == pytest.approx((1 / 9 + 6 / 10) / 7)
    assert uuid['chance_sequence_accuracy'] == pytest.approx(16.0**-32, rel=1e-12)
    assert uuid['value_entropy'] == pytest.approx(32 * math.log(16))
    assert uuid['chance'] == pytest.approx(uuid['value_entropy'] / 36) and uuid['chance_accuracy'] == pytest.approx(
        1 / 6
    )


@pytest.mark.parametrize('value', VALUES)
def test_characters_of_a_value_are_uniform(value):
    task, rows = Needles(tokens=200, value=value), 4000
    answers = np.asarray(draw(task, jax.random.key(7), rows).targets)[:, -task.characters :]
    for place, legal in enumerate(VALUES[value]):
        shares = np.array([(answers[:, place] == ord(character)).mean() for character in legal])
        chance = 1 / len(legal)
        assert np.all(np.abs(shares - chance) <= 4.5 * np.sqrt(chance * (1 - chance) / rows))


@pytest.mark.parametrize(
    'fields', [dict(), dict(haystack='text'), dict(keys=3), dict(haystack='text', keys=3)], ids=str
)
def test_the_asked_needle_stands_at_the_end_of_a_line_or_word_nearest_its_depth(fields):
    for depth in (0.0, 0.3, 1.0):
        task = Needles(tokens=400, depth=depth, **fields)
        for row in draw(task, jax.random.key(1), 8).inputs:
            found, around, asked, _ = parts_of(task, row)
            (before,) = [before for name, _, before in found if name == asked]
            breaks = '\n' if task.haystack == 'noise' else ' \n'
            cuts = [0, *(at + 1 for at, letter in enumerate(around) if letter in breaks)]
            assert len(before) in cuts and around[-1] in breaks
            nearest = min(abs(at - depth * len(around)) for at in cuts)
            assert abs(abs(len(before) - depth * len(around)) - nearest) <= 1  # the depth is rounded to a byte
            assert len(before) == {0.0: 0, 1.0: len(around)}.get(depth, len(before))


def test_depths_are_uniform_or_forty_or_given_and_told():
    depths = lambda **fields: np.asarray(draw(Needles(tokens=400, **fields), jax.random.key(2), 2000).meta['depth'])
    uniform, forty, fixed = depths(), depths(depth=None), depths(depth=0.25)
    assert within(uniform, 1 / 2) and within(np.square(uniform), 1 / 3) and np.all(fixed == 0.25)
    places = np.round(forty * (DEPTHS - 1)).astype(int)
    np.testing.assert_allclose(forty, places / (DEPTHS - 1), atol=1e-6)
    assert DEPTHS == 40 and set(places) == set(range(40)) and within(places, 39 / 2)
    task = Needles(tokens=4000, keys=40, depth=None)
    assert task.facts()['any_needle_sequence_accuracy'] == pytest.approx(1 / 40, rel=1e-4)


def test_needles_of_forty_depths_stand_at_different_ones():
    task = Needles(tokens=8000, haystack='text', keys=40, depth=None)
    found, around, _, _ = parts_of(task, draw(task, jax.random.key(3), 1).inputs[0])
    places = np.array([len(before) for _, _, before in found]) / len(around)
    np.testing.assert_allclose(places, np.arange(40) / 39, atol=12 / len(around))


def test_every_needle_is_asked_for_equally_often():
    task, order = TASKS['several'], []
    for row in draw(task, jax.random.key(4), 1000).inputs:
        found, _, asked, _ = parts_of(task, row)
        order.append([name for name, _, _ in found].index(asked))
    assert all(within(np.array(order) == place, 1 / 4) for place in range(4))


def test_noise_is_four_sentences_again_and_again(drawn):
    task, batch = drawn
    if task.haystack == 'noise':
        for row in batch.inputs[:20]:
            around = parts_of(task, row)[1]
            assert around == (NOISE * 9)[-len(around) :] and NOISE.count('\n') == NOISE.count('.') == 4
    assert text_of(noise(2, 500)[1]) == (NOISE * 9)[-500:]


def test_a_files_windows_end_behind_words_and_go_round(file):
    task = Needles(tokens=60 + Needles(haystack='text').room, haystack='text', path=file)
    ends = set()
    for row in draw(task, jax.random.key(6), 200).inputs:
        around = parts_of(task, row)[1]
        assert len(around) == 60 and around in TEXT * 2 and around[-1] in ' \n'
        ends.add((TEXT * 2).index(around) + 60)
    words = [at + 1 for at, letter in enumerate(TEXT) if letter in ' \n']
    assert {end % len(TEXT) for end in ends} == {end % len(TEXT) for end in words}
    longer = dataclasses.replace(task, tokens=3 * len(TEXT) + task.room)
    assert parts_of(longer, draw(longer, jax.random.key(6), 1).inputs[0])[1] in TEXT * 5


def test_text_without_words_is_cut_anywhere(tmp_path):
    (tmp_path / 'text').write_bytes(b'abcdefghij' * 100)
    task = Needles(tokens=400, haystack='text', path=str(tmp_path / 'text'), depth=0.5)
    found, around, _, _ = parts_of(task, draw(task, jax.random.key(0), 1).inputs[0])
    assert len(found[0][2]) == round(0.5 * len(around))


def test_one_wrong_character_spoils_the_value_in_the_tenth_of_its_depth():
    task = Needles(tokens=220, depth=0.75)
    batch = draw(task, jax.random.key(0), 10)
    said = solve(task, batch)['look_up']
    wrong = said.at[:4, -1].set(jax.nn.one_hot(0, 256))
    metrics = measure(task, wrong, batch)
    assert float(metrics['sequence_accuracy'].value()) == pytest.approx(0.6)
    assert float(metrics['accuracy'].value()) == pytest.approx(66 / 70)
    np.testing.assert_allclose(metrics['accuracy_by_depth'].value(), 0.6 * (np.arange(10) == 7), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['S-NIAH-2', 'several_in_noise'])
def test_the_same_key_gives_the_same_batch_under_jit_vmap_and_sharding(name):
    assert_one_key_is_one_batch(TASKS[name], rows=8)


def test_sampling_calls_nothing_on_the_host(file):
    for task in (*TASKS.values(), Needles(haystack='text', path=file)):
        program = str(jax.make_jaxpr(lambda key, task=task: task.sample(key, 2))(jax.random.key(0)))
        assert 'callback' not in program


BAD = {
    'haystack': (dict(haystack='essay'), "haystack='essay' is unknown; there are: noise, text"),
    'value': (dict(value='numbr'), "value='numbr' is unknown; did you mean 'number'"),
    'path': (dict(path='a.txt'), "path=a.txt is read with haystack='text' alone, not 'noise'"),
    'depth_name': (dict(depth='middle'), "depth='middle' must be 'uniform', a number in 0..1 or None"),
    'depth': (dict(depth=1.5), r'depth=1.5 must lie in 0..1'),
    'keys': (dict(keys=0), 'keys=0 must lie in 1..1024, the keys there are'),
    'many_keys': (dict(keys=41, depth=None), 'keys=41 must lie in 1..40, the places that depth=None draws from'),
    'tokens': (dict(tokens=85), 'tokens=85 must be more than 85, the room of keys=1 needles'),
    'many': (dict(keys=9), 'tokens=256 must be more than 389, the room of keys=9 needles'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_sizes_are_refused_by_name(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Needles(**fields)


@pytest.mark.parametrize('content', [None, ''], ids=['missing', 'empty'])
def test_a_file_that_has_no_text_is_one_line_and_nothing_is_written(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / 'a.txt').write_text(content)
    settings = ['--set=data.haystack=text', f'--set=data.path={tmp_path / "a.txt"}']
    assert call(run, '--config=needles', '--size=tiny', *settings, f'--workdir={tmp_path / "run"}') == 2
    error = capsys.readouterr().err
    assert f'data.path={tmp_path / "a.txt"}' in error and error.count('\n') == 1 and not (tmp_path / 'run').exists()


def test_the_table_entry_is_hashable_and_shrinks_with_its_choices(file):
    task = TESTBEDS['needles']
    assert hash(task) == hash(Needles()) and task.tiny().tokens < task.tokens
    assert hash(Needles(haystack='text', path=file)) != hash(task)
    tiny = TASKS['several'].tiny()
    assert (tiny.haystack, tiny.depth, tiny.keys, tiny.tokens) == ('text', None, 2, tiny.room + 40)
    assert len(KEYS) == len(set(KEYS)) == 1024 and {len(key) for key in KEYS} == {11}
