"""Event forecasting: the process is the one that is stated, and its exact answers are the best."""

import functools

import jax
import numpy as np
import pytest

from jattn.testbeds import Events
from tests.testbeds import draws

TASK = Events(events=24, kinds=3, excitation=0.8, fading=2.0)
ROWS = 4000


@jax.jit
def drawn_and_scored(key):
    batch = TASK.sample(key, ROWS)
    return batch, TASK.baselines(batch), {n: TASK.metrics(y, batch) for n, y in TASK.baselines(batch).items()}


@pytest.fixture(scope='module')
def drawn():
    return jax.tree.map(np.asarray, drawn_and_scored(jax.random.key(0)))


within = functools.partial(draws.within, known_to=1e-4)


def test_targets_are_the_next_inputs(drawn):
    batch, *_ = drawn
    np.testing.assert_array_equal(batch.targets[:, :-1, 0], batch.inputs[:, 1:, 0])
    np.testing.assert_array_equal(batch.targets[:, :-1, 1], np.argmax(batch.inputs[:, 1:, 1:], axis=-1))


def test_the_excess_is_what_the_past_events_raise(drawn):
    batch, *_ = drawn
    for inputs, excess in zip(batch.inputs[:5].astype(np.float64), batch.meta['excess']):
        times, kinds = np.cumsum(np.exp(inputs[:, 0])), np.argmax(inputs[:, 1:], axis=-1)
        for t in range(TASK.events):
            past = 0.8 * 2.0 * np.exp(-2.0 * (times[t] - times[: t + 1]))
            expected = [np.sum(past[(kinds[: t + 1] + 1) % 3 == kind]) for kind in range(3)]
            np.testing.assert_allclose(excess[t], expected, rtol=1e-3, atol=1e-4)


def test_the_compensator_of_every_wait_is_exponential(drawn):
    """The integral of the rate from one event to the next, whatever the past (the time-change theorem)."""
    batch, *_ = drawn
    wait, excess = np.exp(batch.targets[..., 0].astype(np.float64)), batch.meta['excess'].sum(axis=-1)
    integral = wait + excess * (1 - np.exp(-2.0 * wait)) / 2.0
    for t in (0, 5, 23):
        assert within(integral[:, t], 1) and within(np.exp(-integral[:, t]), 0.5)


def test_the_exact_answers_have_the_moments_of_what_was_drawn(drawn):
    batch, answers, _ = drawn
    for t in (0, 10, 23):
        mean, log_std, *kinds = np.moveaxis(answers['rates'][:, t].astype(np.float64), -1, 0)
        error = batch.targets[:, t, 0] - mean
        assert within(error, 0) and within(error**2 * np.exp(-2 * log_std), 1)
        for kind, logit in enumerate(kinds):
            assert within((batch.targets[:, t, 1] == kind) - np.exp(logit), 0)
    np.testing.assert_allclose(np.exp(answers['rates'][..., 2:]).sum(axis=-1), 1, atol=1e-3)


def test_who_knows_the_rates_is_better_and_without_history_kinds_are_chance(drawn):
    _, _, metrics = drawn
    mean = lambda name, of: float(metrics[name][of].total / metrics[name][of].count)
    for of in ('loss', 'wait_error', 'kind_loss'):
        assert mean('rates', of) < mean('no_history', of)
    assert mean('rates', 'accuracy') > 0.5
    assert abs(mean('no_history', 'kind_loss') - np.log(3)) < 1e-3


@pytest.mark.parametrize('changes', [{'events': 0}, {'kinds': 1}, {'excitation': 1.0}, {'fading': 0.0}])
def test_bad_sizes_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Events(**changes)
