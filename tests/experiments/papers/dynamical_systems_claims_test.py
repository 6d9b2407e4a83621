"""The rerun of paper 58: the parts that measure do what they say."""

import math

import jax
import numpy as np
import pytest

from experiments.papers.contract import ClaimContext
from experiments.papers.dynamical_systems import recall, settings, systems

SMALL = settings.SIZES['small']


def test_all_are_of_the_common_form(tmp_path):
    context = ClaimContext('tiny', tmp_path)
    lines = systems.lines(systems.operators(context.key(0)), systems.taylor_errors(context.key(1)))
    assert all(line.holds for line in lines if 'common form' in line.line)


def test_a_system_of_two_numbers_has_rank_two():
    """Phi from its definition, and one that lacks a channel."""
    decay = np.array([0.9, 0.5])
    age = np.subtract.outer(np.arange(8), np.arange(8))
    phi = np.where(age >= 0, np.sum(decay ** np.maximum(age, 0)[..., None], axis=-1), 0)
    system = systems.Operator(phi, np.ones(8), phi @ np.ones(8))
    assert system.rank == 2 and system.is_causal and system.error == 0
    assert systems.Operator(np.where(age >= 0, 0.9 ** np.maximum(age, 0), 0), np.ones(8), np.ones(8)).rank == 1
    assert not systems.Operator(phi.T, np.ones(8), np.ones(8)).is_causal


def test_taylor_features_stay_below_their_bound_and_fall_with_the_degree():
    errors = systems.taylor_errors(jax.random.key(0), 4)
    assert all(error <= bound for error, bound in errors.values())
    assert all(errors[p + 1][0] < errors[p][0] for p in range(1, 4))
    assert errors[4][1] == pytest.approx(math.e / 120)


@pytest.mark.parametrize('size', settings.SIZES.values(), ids=settings.SIZES)
def test_a_size_names_its_trainings_and_makes_their_models(size):
    assert size.expansion in size.expansions and size.normalisers[0] == 'exp'
    for one in (settings.members(size) | settings.lstms(size)).values():
        assert one.module is not None and one.steps % one.steps_per_call == 0


def found_members(accuracy):
    """Runs of every member at two rates, the second hopeless."""
    names = {key[0] for key in settings.members(SMALL)}
    runs = {(name, 3e-3): [dict(accuracy=accuracy.get(name, 0.9))] for name in names}
    return runs | {(name, 1e-2): [None] for name in names}


def test_the_best_rate_counts_and_lines_compare_it():
    rising = {settings.linear(n): 0.2 + n / 100 for n in SMALL.expansions} | {'softmax': 1.0}
    found = found_members(rising)
    assert recall.best(found, 'softmax') == 1.0
    assert all(line.holds for line in recall.lines(found, SMALL))
    found = found_members(rising | {'exp': 0.95, 'S6': 0.9, settings.linear(8): 0.1})
    assert [line.holds for line in recall.lines(found, SMALL)][:2] == [False, True]
    assert [line.line.split(' of ')[2] for line in recall.lines(found, SMALL) if not line.holds][1:] == [
        f'S6 minus normalised attention, n = {SMALL.expansion}',
        f'SSD minus normalised attention, n = {SMALL.expansion}',
    ]


def test_the_gain_of_the_reversed_gate_must_grow_with_the_length():
    accuracy = lambda name, tokens: 0.5 if name == settings.SIGMOID else 0.5 + tokens / 640
    found = {key: [dict(accuracy=accuracy(key[0], key[2]))] for key in settings.lstms(SMALL)}
    lines = recall.lstm_lines(found, SMALL)
    assert len(lines) == 5 and all(line.holds for line in lines)
    assert lines[-1].measured == pytest.approx(32 / 640)
