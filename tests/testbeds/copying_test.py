"""Copying and look-up: the written forms, exact answers, chances, strings without a place to ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.copying import TASKS as KINDS
from jattn.testbeds.copying import Copying
from tests.testbeds.draws import draw

TASKS = {kind: Copying(task=kind, letters=10, min_length=4, max_length=9, gram=2) for kind in KINDS} | {
    'copy_two': Copying(letters=10, min_length=4, max_length=9, answer=2),
    'prefix_two': Copying(task='prefix_lookup', letters=10, min_length=4, max_length=9, gram=2, answer=2),
    'suffix_two': Copying(task='suffix_lookup', letters=10, min_length=4, max_length=9, gram=1, answer=2),
}
ROWS = 2000


def _score(task, batch):
    said = task.baselines(batch)
    return task.metrics(said['look_up'], batch), task.metrics(said['chance'], batch)['loss']


score = jax.jit(_score, static_argnums=0)


def text(tokens, letters=10):
    """The tokens as they are written in the docstring of the task."""
    return ''.join('abcdefghij'[t] if t < letters else '$|.*'[t - letters] for t in tokens)


@pytest.fixture(scope='module', params=TASKS)
def drawn(request):
    task = TASKS[request.param]
    return task, jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))


def test_rows_are_written_as_the_task_says(drawn):
    task, batch = drawn
    assert batch.inputs.shape == (ROWS, task.tokens) and batch.inputs.dtype == batch.targets.dtype == np.int32
    scored = batch.mask.any(axis=1)
    lengths, places = set(), set()
    for inputs, targets, mask in zip(batch.inputs[scored], batch.targets[scored], batch.mask[scored]):
        row = text(inputs) + ('.' if inputs[-1] < 10 else '')
        said = text(targets[mask > 0])
        body = row[: row.index('.') + 1]
        assert set(row[len(body) :]) <= {'*'} and body.endswith(said)
        if task.task == 'prefix_lookup':
            given, string, _ = body[1:].split('|')
        else:
            string, rest = body[1:].split('|')
            given = '' if task.task == 'copy' else rest[: task.gram]
        starts = [i for i in range(len(string)) if string[i:].startswith(given)] if given else [0]
        assert len(starts) == 1 and len(given) == (0 if task.task == 'copy' else task.gram)
        follows = string[starts[0] + len(given) :]
        assert said == follows[: task.answer] + '.' and len(follows) >= (task.answer or 1)
        prompts = {'copy': f'${string}|', 'prefix_lookup': f'${given}|{string}|', 'suffix_lookup': f'${string}|{given}'}
        assert body == prompts[task.task] + said
        assert np.flatnonzero(mask).tolist() == list(range(len(prompts[task.task]) - 1, len(body) - 1))
        lengths.add(len(string))
        places.add(starts[0])
    assert lengths == set(range(4, 10)) and np.all(batch.targets[batch.mask == 0] == 0)
    last = 9 - task.gram - (task.answer or 1)
    assert places == (set(range(last + 1)) if task.task != 'copy' else {0})


def test_look_up_is_right_and_guessing_is_chance(drawn):
    task, batch = drawn
    (look_up, chance), facts = score(task, batch), task.facts()
    assert float(look_up['loss'].value()) == facts['look_up'] == 0
    assert float(look_up['accuracy'].value()) == float(look_up['sequence_accuracy'].value()) == 1
    assert float(chance.value()) == pytest.approx(facts['chance'], rel=1e-5)
    guess = np.random.default_rng(0).integers(0, 11, batch.targets.shape)
    right = (np.where(guess == 10, 12, guess) == batch.targets) * batch.mask
    residual = right.sum(axis=1) - facts['chance_accuracy'] * batch.mask.sum(axis=1)
    assert abs(residual.mean()) < 4.5 * residual.std() / ROWS**0.5


def test_lengths_are_uniform():
    batch = draw(TASKS['copy'], jax.random.key(1), ROWS)
    lengths = np.argmax(np.asarray(batch.inputs) == 11, axis=1) - 1
    for length in range(4, 10):
        assert abs((lengths == length).mean() - 1 / 6) < 4.5 * (5 / 36 / ROWS) ** 0.5


def test_strings_without_a_place_to_ask_for_are_not_scored():
    task = Copying(task='suffix_lookup', letters=2, min_length=4, max_length=4, gram=1)
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(0), ROWS))
    strings = batch.inputs[:, 1:5]
    counts = (strings[:, :, None] == strings[:, None, :]).sum(axis=2)
    np.testing.assert_array_equal(batch.mask.any(axis=1), (counts[:, :3] == 1).any(axis=1))
    assert 0.2 < batch.mask.any(axis=1).mean() < 0.8


@pytest.mark.slow
@pytest.mark.parametrize('name', ['copy', 'suffix_two'])
def test_same_key_same_batch_under_jit_and_vmap(name):
    task, keys = TASKS[name], jax.random.split(jax.random.key(4), 2)
    rows = jax.jit(jax.vmap(lambda key: task.sample(key, ROWS)))(keys)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), rows, draw(task, keys[1], ROWS))
    assert not jnp.array_equal(rows.inputs[0], rows.inputs[1])


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(task='copying'), "task='copying' is unknown; did you mean 'copy'"),
        (dict(letters=1), 'letters=1 must be at least 2'),
        (dict(answer=0), 'answer=0 must be at least 1'),
        (dict(task='suffix_lookup', min_length=3), r'min_length=3 must lie in 4\.\.max_length = 20: 3 given letters'),
        (dict(min_length=21), r'min_length=21 must lie in 1\.\.max_length = 20'),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Copying(**fields)
