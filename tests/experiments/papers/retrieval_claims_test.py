"""What the reruns of papers 37 and 56 share: rows of text, where needles stand, what is read, what is said of costs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.papers import novels, reading_cost
from experiments.papers.contract import ClaimContext
from experiments.papers.cost import Cost
from experiments.papers.retrieval import needles, selection
from experiments.papers.retrieval.settings import SIZES
from jattn.contract import Context
from jattn.data import TextConfig
from jattn.mixers import SoftmaxConfig
from jattn.mixers.landmark import LandmarkConfig
from jattn.nn.landmark_cache import LandmarkCache

TINY = SIZES['tiny']


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES)
def test_a_size_is_trained_within_what_its_policies_read(size):
    assert size.stages[-1][0] == size.passkey.tokens == size.lengths[0] and size.lengths[1] > size.lengths[0]
    assert size.chunk * size.chunks <= size.passkey.tokens
    assert (size.retrieved + 2) * size.block < size.passkey.tokens
    context = ClaimContext('any', None)
    config = needles._experiment(context, size, LandmarkConfig(heads=size.heads, block=size.block), (64, 4, 50), None)
    assert config.make_model() is not None and config.data.block == size.block


def test_windows_hold_the_same_bytes_at_every_length_with_landmarks_between(tmp_path):
    (tmp_path / 'a.txt').write_bytes(bytes(range(200)))
    data = novels.Windows(
        text=TextConfig(path=str(tmp_path / 'a.txt'), validation_fraction=0.5), tokens=8, held_out_bytes=32
    )
    rows = [dataclasses.replace(data, tokens=tokens).rows('validation') for tokens in (8, 16)]
    assert [len(one) for one in rows] == [4, 2]
    for one in rows:
        np.testing.assert_array_equal(one.batch.inputs.reshape(-1), np.arange(100, 132))
        np.testing.assert_array_equal(one.batch.targets, one.batch.inputs + 1)
    marked = dataclasses.replace(data, block=4).rows('validation')
    np.testing.assert_array_equal(marked[0].inputs, [100, 101, 102, 256, 103, 104, 105, 256, 106, 107])
    np.testing.assert_array_equal(marked[0].mask, [1, 1, 1, 0, 1, 1, 1, 0, 1, 1])
    assert len(data.rows('train')) == 12


@pytest.mark.parametrize('landmarks', [False, True])
def test_the_needle_is_where_the_picture_says(landmarks):
    """The block that holds the needle's first digit."""
    task = needles.at_length(TINY, 64, landmarks)
    cache = LandmarkCache(block=TINY.block, retrieved=TINY.retrieved)
    mixer = LandmarkConfig(heads=2, block=TINY.block, cache=cache)
    context = ClaimContext('tiny', None)
    batch = task.sample(context.key(901), 4)
    trained = untrained(mixer, task)
    read = selection.chosen(trained, mixer, task, 4, context)
    answers = batch.targets[:, -1]
    for row, block in enumerate(read.needle):
        inside = batch.inputs[row, block * TINY.block : (block + 1) * TINY.block]
        assert answers[row] in inside
    assert read.blocks.shape[:4] == (2, 4, batch.inputs.shape[1], 2)
    ends = read.at_end()
    # The last block, and at most those retrieved.
    assert np.all(ends[..., -1]) and np.max(np.sum(ends, axis=-1)) == TINY.retrieved + 1
    shares = read.shares(0)
    assert shares.shape == (read.count, batch.inputs.shape[1]) and np.max(shares) == 1
    assert np.all(shares[np.arange(read.count)[:, None] > np.arange(shares.shape[1]) // TINY.block] == 0)


def untrained(mixer, task):
    context = ClaimContext('tiny', None)
    config = needles._experiment(context, TINY, mixer, (64, 4, 5), None)
    trained = needles.Trained(config, {})
    module = trained.setting(mixer, task).module
    params = module.init(context.key(0), task.sample(context.key(1), 1).inputs, Context())['params']
    return needles.Trained(config, nn.unbox(params))


def test_costs_compare_exponents_of_time_and_memory():
    lengths = np.array([1024.0, 2048, 4096])
    power = lambda n: Cost((1024, 2048, 4096), lengths**n, lengths)
    found = {'own, prefill': power(1), 'softmax, prefill': power(2), 'own, steps': power(0), 'softmax, steps': power(1)}
    for lines in (reading_cost.linear_lines, reading_cost.cheaper_lines):
        assert [line.holds for line in lines('37', 'own', found)] == [True] * 5
    found |= {'own, prefill': power(2), 'own, steps': power(1)}
    assert [line.holds for line in reading_cost.linear_lines('37', 'own', found)] == [False, True, False, True, True]
    assert [line.holds for line in reading_cost.cheaper_lines('37', 'own', found)] == [False] * 4 + [True]


def test_timed_steps_are_the_last_of_a_long_document():
    function, (variables, x, state) = reading_cost.steps(reading_cost._sized(SoftmaxConfig()))(128)
    assert state.length.tolist() == [64] and state.cursor.position.tolist() == [64]
    assert jnp.all(jnp.isfinite(function(variables, x, state)))
