"""Re-reading: copies, controls, the same targets for any number of reads, what the second copy can depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import AssociativeRecall, Boolean, ReReading, SelectiveCopying
from jattn.understanding.forward_mass import forward_mass

RECALL = AssociativeRecall(vocabulary=16, tokens=12, pairs=2, overwrites=1)


def test_one_read_is_the_task_itself():
    once, again = (task.sample(jax.random.key(0), 4) for task in (RECALL, ReReading(task=RECALL, reads=1)))
    np.testing.assert_array_equal(once.inputs, again.inputs)
    np.testing.assert_array_equal(once.targets, again.targets)


@pytest.mark.parametrize('reads', [2, 3])
@pytest.mark.parametrize('task', [RECALL, SelectiveCopying(vocabulary=8, tokens=10, copies=3)])
def test_copies_are_equal_and_the_questions_are_the_tasks_own(task, reads):
    batch, once = ReReading(task=task, reads=reads).sample(jax.random.key(1), 8), task.sample(jax.random.key(1), 8)
    size = task.context
    assert batch.inputs.shape[1] == reads * size + reads - 1 + once.inputs.shape[1] - size
    for n in range(reads):
        np.testing.assert_array_equal(batch.inputs[:, n * (size + 1) : n * (size + 1) + size], once.inputs[:, :size])
    np.testing.assert_array_equal(batch.inputs[:, size], task.input_size)
    questions = once.inputs.shape[1] - size
    for long, short in ((batch.inputs, once.inputs), (batch.targets, once.targets), (batch.mask, once.mask)):
        np.testing.assert_array_equal(long[:, -questions:], short[:, -questions:])
    assert float(batch.mask.sum()) == float(once.mask.sum())


@pytest.mark.parametrize('task', [RECALL, dataclasses.replace(RECALL, questions=1)], ids=['all', 'one'])
@pytest.mark.parametrize('filler', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['copies', 'filler'])
def test_questions_can_stand_behind_every_copy_and_only_the_last_are_scored(task, filler):
    reading = ReReading(task=task, reads=3, read_questions=True, filler=filler)
    batch, once = reading.sample(jax.random.key(6), 8), task.sample(jax.random.key(6), 8)
    size, tokens = task.context, once.inputs.shape[1]
    assert batch.inputs.shape == batch.targets.shape == batch.mask.shape == (8, 3 * tokens + 2)
    copies = np.asarray(jnp.pad(batch.inputs, ((0, 0), (0, 1)))).reshape(8, 3, tokens + 1)
    np.testing.assert_array_equal(
        copies[:, :, size:-1], np.broadcast_to(once.inputs[:, None, size:], (8, 3, tokens - size))
    )
    np.testing.assert_array_equal(copies[:, 0, :size], once.inputs[:, :size])
    again = np.broadcast_to(task.input_size if filler else once.inputs[:, None, :size], (8, 2, size))
    np.testing.assert_array_equal(copies[:, 1:, :size], again)
    assert np.all(copies[:, :2, -1] == task.input_size)
    np.testing.assert_array_equal(batch.mask[:, -tokens:], once.mask)
    np.testing.assert_array_equal(batch.targets[:, -tokens:], once.targets)
    assert not np.any(batch.mask[:, :-tokens]) and not np.any(batch.targets[:, :-tokens])
    right = reading.baselines(batch)['look_up']
    assert (
        float(reading.loss(right, batch).value()) == 0 and float(reading.metrics(right, batch)['accuracy'].value()) == 1
    )
    wrong = right.at[:, -tokens:].multiply(-1)
    assert float(reading.metrics(wrong, batch)['accuracy'].value()) == 0


def test_filler_has_the_length_of_a_copy_and_none_of_its_content():
    again, filled = (ReReading(task=RECALL, filler=filler).sample(jax.random.key(2), 4) for filler in (False, True))
    size = RECALL.context
    assert again.inputs.shape == filled.inputs.shape
    assert bool(jnp.all(filled.inputs[:, size : 2 * size + 1] == RECALL.input_size))
    np.testing.assert_array_equal(again.targets, filled.targets)


def test_solvers_and_scores_are_the_tasks_own():
    task = ReReading(task=RECALL, reads=3)
    batch = task.sample(jax.random.key(3), 64)
    scored = {name: task.metrics(said, batch) for name, said in task.baselines(batch).items()}
    assert (
        float(scored['look_up']['accuracy'].value()) == 1
        and float(task.loss(task.baselines(batch)['look_up'], batch).value()) == 0
    )
    assert float(scored['first_value']['updated_accuracy'].value()) == 0
    assert task.facts() == RECALL.facts() and task.input_size == 17 and task.output_size == 16


@pytest.fixture(scope='module')
def decoder():
    """A small causal decoder of vectors as a function, and four vectors to read."""
    cfg = DecoderConfig(
        width=16, layers=1, mixer=(SoftmaxConfig(heads=2),), read_in='linear', input_size=3, output_size=2
    )
    model, x = cfg.make(), jax.random.normal(jax.random.key(4), (1, 4, 3))
    params = jax.jit(model.init)(jax.random.key(5), x)
    return jax.jit(lambda x: model.apply(params, x)[0]), x


def twice(x, again=None):
    """A row of two copies, or of a copy and something else."""
    return jnp.concatenate([x, jnp.zeros((1, 1, 3)), x if again is None else again], axis=1)


def test_only_the_second_copy_depends_on_later_tokens(decoder):
    apply, x = decoder

    def dependence(at):
        gradient = jax.grad(lambda x: jnp.sum(apply(twice(x))[0, at]))(x)
        return np.abs(np.asarray(gradient))[0].sum(axis=1) > 0

    assert dependence(1).tolist() == [True, True, False, False]
    assert dependence(5 + 1).tolist() == [True] * 4


def test_outputs_of_the_first_copy_do_not_know_of_the_second(decoder):
    apply, x = decoder
    read, other = (apply(twice(x, again))[:, :4] for again in (None, 5 - x))
    np.testing.assert_array_equal(read, other)
    np.testing.assert_allclose(read, apply(x), atol=2e-6)  # another length is another program, which rounds its own way


def test_a_uniform_head_has_the_closed_form():
    size, tokens = 5, 14
    uniform = jnp.tril(jnp.ones((tokens, tokens))) / jnp.arange(1, tokens + 1)[:, None]
    pattern = jnp.broadcast_to(uniform[None, None], (2, 3, tokens, tokens))
    expected = [(size - 1 - i) / (i + 1 + size + 1) for i in range(size)]
    np.testing.assert_allclose(forward_mass(pattern, size), np.broadcast_to(expected, (2, 3, size)), rtol=1e-6)
    with pytest.raises(ValueError, match='do not hold two copies of size=7'):
        forward_mass(pattern, 7)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'task': Boolean()}, 'task=Boolean does not say where its context of tokens ends'),
        ({'reads': 0}, 'reads=0 must be at least 1'),
        ({'reads': 1, 'filler': True}, 'filler=True needs reads of at least 2'),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ReReading(**fields)
