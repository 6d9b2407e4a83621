"""Re-reading: copies, controls, the same targets for any number of reads, what the second copy can depend on."""

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


def test_only_the_second_copy_depends_on_later_tokens():
    cfg = DecoderConfig(
        width=16, layers=1, mixer=(SoftmaxConfig(heads=2),), read_in='linear', input_size=3, output_size=2
    )
    model, x = cfg.make(), jax.random.normal(jax.random.key(4), (1, 4, 3))
    twice = lambda x: jnp.concatenate([x, jnp.zeros((1, 1, 3)), x], axis=1)
    params = jax.jit(model.init)(jax.random.key(5), twice(x))

    def dependence(at):
        gradient = jax.grad(lambda x: jnp.sum(model.apply(params, twice(x))[0][0, at]))(x)
        return np.abs(np.asarray(gradient))[0].sum(axis=1) > 0

    assert dependence(1).tolist() == [True, True, False, False]
    assert dependence(5 + 1).tolist() == [True] * 4


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
