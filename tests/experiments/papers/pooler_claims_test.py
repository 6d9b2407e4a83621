"""The reruns of papers 02, 50 and 51: the parts that measure do what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.contract import ClaimContext
from experiments.papers.density_adaptive import model
from experiments.papers.density_adaptive import settings as density
from experiments.papers.efficient_probing import encoders, probes, published, timing
from experiments.papers.efficient_probing import settings as probing
from experiments.papers.lama import settings as lama
from experiments.papers.lama.cues import Cues
from experiments.papers.lama.encoder import SentenceConfig
from experiments.papers.ranks import spearman
from jattn.contract import Context
from jattn.poolers import LAMAConfig


def test_the_authors_sizes_build():
    assert len(lama.SIZES['paper'].models()) == len(lama.SIZES['small'].models()) == 8
    assert all(model.make() for model in lama.SIZES['paper'].models().values())
    size = probing.SIZES['paper']
    assert encoders.config(size, 49, size.width, size.layers).make() and len(size.probes()) == 10
    assert density.SIZES['paper'].setting(density.SIZES['paper'].bins, 'density').module


def test_absorbed_heads_give_the_numbers_of_naive_ones_and_of_the_published_order():
    size = dataclasses.replace(probing.SIZES['tiny'], timed_width=16, timed_heads=4, timed_queries=4, tokens=5)
    for one, other in ((timing.NAIVE, timing.ABSORBED), (timing.EP, timing.PUBLISHED)):
        params, x = timing._arguments(size, one)
        np.testing.assert_allclose(timing.HEADS[one](params, x), timing.HEADS[other](params, x), rtol=1e-4, atol=1e-5)


def test_maps_overlap_wholly_where_they_are_alike_and_not_where_they_are_apart():
    alike = np.full((2, 3, 4), 0.25)
    apart = np.eye(4)[None, :3]
    assert probes.overlap(alike) == pytest.approx(1) and probes.overlap(apart) == 0


def test_a_masked_encoder_does_not_see_what_is_hidden():
    size = probing.SIZES['tiny']
    encoder = encoders.config(size, 9, 16, 1, pooler=None, read_out=False)
    decoder = encoders.config(size, 9, 16, 1, pooler=None, output_size=4)
    masked, seen = encoders.Masked(encoder, decoder), jnp.array([[1, 4, 5]])
    patches = jax.random.normal(jax.random.key(0), (1, 9, 4))
    params = jax.jit(masked.init)(jax.random.key(1), patches, seen)
    run = jax.jit(masked.apply)
    first = run(params, patches, seen)
    assert first.shape == (1, 9, 4)
    np.testing.assert_array_equal(first, run(params, patches.at[:, 0].set(7.0), seen))
    assert not np.allclose(first, run(params, patches.at[:, 4].set(7.0), seen))


@pytest.mark.parametrize('pooler', ['mean', 'LAMA'])
def test_padding_is_no_word_of_a_sentence(pooler):
    poolers = {'mean': SentenceConfig().pooler, 'LAMA': LAMAConfig(heads=4)}
    cfg = SentenceConfig(width=8, pooler=poolers[pooler]).for_data('tokens', 11, 3)
    tokens = jnp.array([[3, 5, 7, 2, 0, 0]])
    sentence, params = cfg.make(), None
    params = jax.jit(sentence.init)(jax.random.key(0), tokens)
    run = jax.jit(lambda tokens, segments: sentence.apply(params, tokens, Context(segments=segments))[0])
    segments = jnp.array([[1, 1, 1, 1, 0, 0]])
    whole = sentence.apply(params, tokens[:, :4])[0]
    np.testing.assert_allclose(run(tokens, segments), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run(tokens, segments), run(tokens.at[:, 4:].set(9), segments))


def test_a_gru_reads_from_either_end():
    cfg = SentenceConfig(width=8).for_data('tokens', 11, 3)
    tokens = jnp.array([[3, 5, 7, 2]])
    params = jax.jit(cfg.make().init)(jax.random.key(0), tokens)['params']
    shared = dict(params) | {'gru_True': params['gru_False']}
    forward, backward = (jax.jit(cfg.make().apply)({'params': shared}, x)[0] for x in (tokens, tokens[:, ::-1]))
    kernel = params['read_out']['kernel'].value
    halves = jnp.concatenate([kernel[4:], kernel[:4]])
    swapped = dict(shared, read_out=dict(params['read_out'], kernel=params['read_out']['kernel'].replace_boxed(halves)))
    np.testing.assert_allclose(jax.jit(cfg.make().apply)({'params': swapped}, tokens[:, ::-1])[0], forward, atol=1e-5)
    assert not np.allclose(forward, backward)


def test_the_class_of_a_row_is_its_two_cues():
    task = Cues(tokens=12)
    batch = task.sample(jax.random.key(0), 64)
    for row, label in zip(np.asarray(batch.inputs), np.asarray(batch.targets)):
        cues = row[row < 4]
        assert len(cues) == 2 and cues[0] < 2 <= cues[1] and label == 2 * cues[0] + cues[1] - 2
        assert np.flatnonzero(row < 4)[0] < 6 <= np.flatnonzero(row < 4)[1]
    assert float(task.metrics(task.baselines(batch)['look_up'], batch)['accuracy'].value()) == 1


@pytest.mark.parametrize('gate', model.GATES)
def test_padding_is_no_frame_behind_any_gate(gate):
    cfg = model.CNNLSTMConfig(width=6, channels=4, gate=gate).for_data('linear', 12, 3)
    frames = jax.random.normal(jax.random.key(0), (1, 12, 12)).at[:, 7:].set(0)
    segments = (jnp.arange(12) < 7)[None].astype(jnp.int32)
    classifier = cfg.make()
    variables = jax.jit(classifier.init)(jax.random.key(1), frames, Context(segments=segments))
    longer = jnp.pad(frames, ((0, 0), (0, 6), (0, 0)))
    run = lambda x, segments: classifier.apply(variables, x, Context(segments=segments))[0]
    np.testing.assert_allclose(
        run(frames, segments), run(longer, jnp.pad(segments, ((0, 0), (0, 6)))), rtol=1e-5, atol=1e-6
    )


def test_gates_cost_few_parameters():
    def count(gate):
        cfg = model.CNNLSTMConfig(gate=gate).for_data('linear', 40, 10)
        shapes = jax.eval_shape(cfg.make().init, jax.random.key(0), jnp.zeros((1, 12, 40)))['params']
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    base = count('none')
    assert {gate: count(gate) - base for gate in model.GATES[1:]} == {'gain': 40, 'squeeze-excite': 800, 'density': 32}


def test_the_mean_weights_of_bins_sum_to_one_for_each_head():
    cfg = model.CNNLSTMConfig(gate='density').for_data('linear', 40, 10)
    frames = jax.random.normal(jax.random.key(0), (3, 12, 40))
    params = jax.jit(cfg.make().init)(jax.random.key(1), frames)['params']
    weights = jax.jit(lambda params: model.bin_weights(cfg, params, frames, jnp.ones((3, 12), bool)))(params)
    np.testing.assert_allclose(weights.reshape(4, 10).sum(axis=1), 1, atol=0.02)  # entries near 0 are left out


def test_noise_drowns_every_fourth_bin_and_no_padding():
    clean, noisy = density.FSDDConfig().rows('test'), density.NoisyFSDDConfig().rows('test')
    added = noisy.inputs - clean.inputs
    touched = np.any(added != 0, axis=(0, 1))
    assert np.flatnonzero(touched).tolist() == list(range(0, 40, 4))
    real = np.arange(48)[None] < clean.lengths[:, None]
    assert not np.any(added[~real]) and added[real][:, 0].std() == pytest.approx(3, rel=0.05)


def test_the_best_of_synthetic_bins_is_what_its_baseline_reaches():
    bins = density.Bins()
    assert np.sum(bins.signs != 0) == 6
    batch = bins.sample(jax.random.key(0), 2000)
    found = bins.metrics(bins.baselines(batch)['bayes'], batch)
    # Odds are normal: right where a normal number is above -shift sqrt(telling x frames).
    expected = 0.5 * (1 + jax.lax.erf(0.15 * (6 * 48) ** 0.5 / 2**0.5))
    assert float(found['accuracy'].value()) == pytest.approx(float(expected), abs=0.01)


def test_ranks_that_run_against_each_other_correlate_by_minus_one():
    assert spearman(np.array([1.0, 4.0, 2.0]), np.array([9.0, 1.0, 3.0])) == pytest.approx(-1)


def test_published_heads_see_characters_of_other_drawers_and_few_digits_are_as_many_of_each(tmp_path):
    context = ClaimContext('tiny', tmp_path)
    parts = published.characters(context, published.PUBLISHED['tiny'])
    assert [np.bincount(labels).tolist() for _, labels in parts] == [[12, 12], [8, 8], [10, 10]]  # of 30 made ones
    seen = [{image.tobytes() for image in images} for images, _ in parts]
    assert len(set.union(*seen)) == sum(len(own) for own in seen)
    labels = np.array([2, 0, 2, 2, 0, 1, 1, 1, 0])
    few = published.first_of_each(labels, 2)
    assert np.bincount(labels[few]).tolist() == [2, 2, 2] and few.tolist() == [0, 1, 2, 4, 5, 6]


def test_absorbed_multi_head_pooling_is_the_same_on_tokens():
    tokens = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    assert published.absorbed_error(tokens) < 1e-5
