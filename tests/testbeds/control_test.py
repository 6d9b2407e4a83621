"""Offline control: flights obey the stated motion, and the exact returns are those of the gains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds.control import MOVE, PUSH, Control, _gain
from tests.testbeds import draws

TASK = Control(tokens=20)
ROWS = 4000


@pytest.fixture(scope='module')
def batch():
    return jax.tree.map(np.asarray, jax.jit(TASK.sample, static_argnums=1)(jax.random.key(0), ROWS))


within = functools.partial(draws.within, known_to=0.0)


def test_states_move_by_the_actions_and_noise_of_the_stated_size(batch):
    place, action = batch.inputs[..., 1:3], batch.targets
    noise = place[:, 1:] - place[:, :-1] @ MOVE.T - action[:, :-1] * PUSH
    assert within(noise[:, 5], 0) and within(noise[:, 5] ** 2, TASK.noise**2)
    np.testing.assert_array_equal(batch.inputs[:, 1:, 3], action[:, :-1, 0])
    assert not np.any(batch.inputs[:, 0, 3])


def test_the_return_to_come_is_the_sum_of_the_rewards_that_follow(batch):
    rewards = np.asarray(TASK.rewards(batch.inputs[..., 1:3], batch.targets[..., 0]))
    np.testing.assert_allclose(batch.inputs[:, 3, 0], rewards[:, 3:].sum(axis=1), rtol=1e-4)


def test_better_pilots_reach_more_and_the_floor_is_that_of_who_knows_the_pilot(batch):
    skill, reached = batch.meta['skill'], batch.inputs[:, 0, 0]
    assert np.corrcoef(skill, reached)[0, 1] > 0.3
    answers = TASK.baselines(jax.tree.map(jnp.asarray, batch))
    error = np.square(np.asarray(answers['skill']) - batch.targets)[:, :, 0].mean(axis=1)
    assert within(error, TASK.facts()['skill'])


@pytest.mark.parametrize('name', ['nothing', 'best'])
def test_exact_returns_are_those_of_flights(name):
    gain = jnp.asarray(np.zeros(2) if name == 'nothing' else _gain(TASK.effort), jnp.float32)
    policy = lambda state, seen: (state, -seen[:, 1:3] @ gain)
    returns = TASK.fly(jax.random.key(1), policy, None, ROWS, 0.0)[2]
    assert within(returns, TASK.facts()[name])


def test_no_other_gain_is_better_over_a_long_flight():
    long = dataclasses.replace(TASK, tokens=400)
    best = long._mean_return(_gain(long.effort))
    for change in ([0.3, 0.0], [-0.3, 0.0], [0.0, 0.3], [0.0, -0.3]):
        assert long._mean_return(_gain(long.effort) + np.array(change)) < best


@pytest.mark.parametrize('changes', [{'tokens': 1}, {'noise': 0.0}, {'effort': -1.0}, {'jitter': 0.0}])
def test_bad_sizes_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Control(**changes)
