"""The rerun of paper 44: rows that differ in their reads alone, what its lines compare, the forward mass it reads."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.papers.contract import ClaimContext
from experiments.papers.re_reading import recall
from experiments.papers.re_reading.recall import Found
from experiments.papers.re_reading.settings import FILLER, SIZES, SOFTMAX, memory_of, rows_of
from experiments.papers.small_models import score, train

SIZE = SIZES['small']
SMALL, LARGE = memory_of(SIZE.states[0]), memory_of(SIZE.states[-1])


def runs_of(changed=None, forward=(0.3, 0.4), at_start=(0.2, 0.2)):
    """What the sheet expects, but for what is changed; two seeds a cell."""
    accuracies = {
        **{(name, reads): 0.6 for name in (SMALL, LARGE) for reads in SIZE.reads(name)},
        **{(SOFTMAX, reads): 0.97 for reads in (1, 2)},
        (SMALL, 1): 0.35,
        (SMALL, 3): 0.59,
        (SMALL, 4): 0.55,
        (SMALL, FILLER): 0.36,
    } | (changed or {})
    looks = {'forward': np.array(forward), 'at_start': np.array(at_start)}
    return {
        cell: [Found(value + noise, **(looks if cell == (SOFTMAX, 2) else {})) for noise in (-0.01, 0.01)]
        for cell, value in accuracies.items()
    }


@pytest.mark.parametrize(
    'changed, fails',
    [
        ({}, []),
        ({(SMALL, 2): 0.53}, [0, 1, 3]),
        ({(SMALL, FILLER): 0.45}, [2]),
        ({(SMALL, 3): 0.65}, [3]),
        ({(LARGE, 1): 0.3}, [4]),
        ({(SOFTMAX, 1): 0.85, (SOFTMAX, 2): 0.85}, [5]),
        ({(SOFTMAX, 1): 0.91}, [6]),
    ],
)
def test_each_line_falls_with_what_it_compares(changed, fails):
    lines = recall.lines(runs_of(changed), SIZE)
    assert [n for n, line in enumerate(lines) if not line.holds] == fails
    assert len({line.line for line in lines}) == len(lines) == 7 + SIZE.layers


def test_forward_mass_must_grow_in_every_layer():
    lines = recall.lines(runs_of(forward=(0.3, 0.19)), SIZE)
    assert [line.holds for line in lines[-2:]] == [True, False]
    assert lines[-1].measured == pytest.approx(-0.01)


def test_a_failed_training_holds_nowhere():
    failed = {cell: [found[0], None] for cell, found in runs_of().items()}
    lines = recall.lines(failed, SIZE)
    assert len(lines) == 7 + SIZE.layers and not any(line.holds for line in lines)
    assert 'failed' in recall.table(failed, SIZE)[0]


def test_every_reading_asks_the_same_question_of_the_same_pairs():
    size, tokens = SIZES['tiny'], SIZES['tiny'].task.tokens
    batches = {reads: rows_of(size.task, reads).sample(jax.random.key(0), 4) for reads in (1, 2, FILLER)}
    for reads, batch in batches.items():
        np.testing.assert_array_equal(batch.inputs[:, :tokens], batches[1].inputs)
        np.testing.assert_array_equal(batch.inputs[:, -2:], batches[1].inputs[:, -2:])
        np.testing.assert_array_equal(batch.targets[:, -tokens:], batches[1].targets)
        assert float(batch.mask.sum()) == 4 and batch.inputs.shape[1] == (tokens if reads == 1 else 2 * tokens + 1)


@pytest.mark.parametrize('name', SIZES)
def test_both_stages_have_the_same_tokens_and_reads_and_the_first_has_fewer_pairs(name):
    size = SIZES[name]
    assert {reads for mixer in size.mixers for reads in size.reads(mixer)} == {*size.sweep, FILLER}
    for mixer in size.mixers:
        for reads in size.reads(mixer):
            last = size.setting(mixer, reads)
            first = last.after
            assert first.data.input_size == last.data.input_size and first.model == last.model
            assert first.data.task.pairs < last.data.task.pairs and first.after is None
            assert dataclasses.replace(first.data, task=last.data.task) == last.data
            assert last.steps % last.steps_per_call == first.steps % first.steps_per_call == 0


@pytest.mark.slow
def test_two_reads_help_a_small_state_by_twenty_points(tmp_path):
    context, accuracy = ClaimContext('small', tmp_path), {}
    for reads in (1, 2):
        setting = SIZE.setting(SMALL, reads)
        variables, _ = train(setting, jax.random.fold_in(context.key(0), 0))
        accuracy[reads] = score(setting, variables, setting.data, SIZE.rows, 1, context.key(900))['accuracy']
    assert accuracy[2] > accuracy[1] + 0.2


def test_a_new_models_forward_mass_is_near_that_of_a_uniform_head():
    size = SIZES['tiny']
    setting = size.setting(SOFTMAX, 2)
    read = recall._forward(setting, size, recall._fresh(setting, jax.random.key(0)), jax.random.key(1))
    tokens = size.task.tokens
    uniform = np.mean([(tokens - 1 - i) / (i + 1 + tokens + 1) for i in range(tokens)])
    assert read.shape == (size.layers,)
    np.testing.assert_allclose(read, uniform, atol=0.1)
