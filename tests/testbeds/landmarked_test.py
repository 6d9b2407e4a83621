"""Rows with landmarks: where they stand, what is scored, and that nothing else changes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import AssociativeRecall, Batch, ICLLinear, Passkey
from jattn.testbeds.landmarked import Landmarked, insert, remove, with_landmarks, without_landmarks

TASK = Passkey(tokens=24, digits=3, keys=4, noise=8)
MARKED = Landmarked(task=TASK, block=5)


def test_every_block_th_token_is_a_landmark_and_the_others_are_the_row():
    batch, plain = MARKED.sample(jax.random.key(1), 3), TASK.sample(jax.random.key(1), 3)
    landmarks = np.zeros(29, bool)
    landmarks[4::5] = True
    assert batch.inputs.shape == (3, 29)
    np.testing.assert_array_equal(batch.inputs == TASK.input_size, np.broadcast_to(landmarks, (3, 29)))
    assert np.all(batch.mask[:, landmarks] == 0) and MARKED.input_size == TASK.input_size + 1
    for name in ('inputs', 'targets', 'mask'):
        np.testing.assert_array_equal(getattr(batch, name)[:, ~landmarks], getattr(plain, name))
        np.testing.assert_array_equal(getattr(without_landmarks(batch, 5), name), getattr(plain, name))
    np.testing.assert_array_equal(batch.meta['depth'], plain.meta['depth'])


@pytest.mark.parametrize('tokens, block', [*itertools.product((1, 4, 5, 6, 15, 16, 17), (2, 5, 6))])
def test_no_landmark_ends_a_row_and_removing_them_gives_it_back(tokens, block):
    x = jnp.arange(1, 2 * tokens + 1).reshape(2, tokens)
    marked = insert(x, block, 0)
    assert np.all(marked[:, -1] > 0) and np.sum(marked[0] == 0) == (tokens - 1) // (block - 1)
    np.testing.assert_array_equal(remove(marked, block), x)
    np.testing.assert_array_equal(insert(jnp.stack([x, -x], axis=-1), block, 0)[..., 1], -marked)


def test_it_is_scored_as_the_task_without_its_landmarks():
    batch, plain = MARKED.sample(jax.random.key(2), 4), TASK.sample(jax.random.key(2), 4)
    outputs = jax.random.normal(jax.random.key(3), (4, 24, TASK.output_size))
    noise = jax.random.normal(jax.random.key(4), (4, 29, 1))
    marked = insert(outputs, 5, 0) + noise * (batch.inputs == TASK.input_size)[..., None]
    assert MARKED.loss(marked, batch).value() == TASK.loss(outputs, plain).value()
    expected = {name: float(mean.value()) for name, mean in TASK.metrics(outputs, plain).items()}
    assert {name: float(mean.value()) for name, mean in MARKED.metrics(marked, batch).items()} == expected
    look_up = MARKED.metrics(MARKED.baselines(batch)['look_up'], batch)
    assert look_up['sequence_accuracy'].value() == 1 and MARKED.facts() == TASK.facts()
    assert MARKED.tiny() == dataclasses.replace(MARKED, task=TASK.tiny(), block=4)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match='task=ICLLinear is continuous, but a landmark is a token'):
        Landmarked(task=ICLLinear())
    with pytest.raises(ValueError, match='block=1 must be at least 2'):
        Landmarked(task=AssociativeRecall(), block=1)
    rows = jnp.ones((1, 6), jnp.int32)
    with pytest.raises(ValueError, match='blocks are counted in rows of one document'):
        with_landmarks(Batch(rows, rows, rows, segments=rows), 3, 9)
