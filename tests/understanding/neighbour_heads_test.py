"""Heads that look up the nearest point's label: known patterns have known scores, scanned or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.mixers import MIXERS
from jattn.models import DecoderConfig
from jattn.taps import Edit
from jattn.testbeds import Boolean
from jattn.testbeds.points import split_points
from jattn.understanding import capture
from jattn.understanding.neighbour_heads import NeighbourHeads, nearest, neighbour_scores, score_neighbour_heads

ROWS, POINTS, INPUTS = 6, 9, 5
TASK = Boolean(function='nearest_neighbours', inputs=INPUTS, points=POINTS, seed_points=3)
BATCH = TASK.sample(jax.random.key(0), ROWS)
X = split_points(BATCH.inputs)[0]
SOFTMAX, RG_LRU = MIXERS['softmax'].tiny(), MIXERS['rg_lru'].tiny()
MODELS = {
    'scanned': dict(mixer=(SOFTMAX,), layers=2),
    'unrolled': dict(mixer=(SOFTMAX,), layers=2, scan=False),
    'hybrid': dict(mixer=(RG_LRU, SOFTMAX), layers=2),
}


def by_hand(x, neighbours):
    """near[b, i, j], from sorted cosines; sorting keeps the order of equals."""
    x, near = np.asarray(x, np.float64), np.zeros((*x.shape[:2], x.shape[1]), bool)
    for b, i in np.ndindex(*x.shape[:2]):
        cosines = [round(x[b, i] @ x[b, j] / np.linalg.norm(x[b, i]) / np.linalg.norm(x[b, j]), 9) for j in range(i)]
        near[b, i, sorted(range(i), key=lambda j: -cosines[j])[:neighbours]] = True
    return near


def pattern_of(near):
    """A head that spreads its attention over the labels of these points, and over itself where there is none."""
    near = np.asarray(near)
    pattern = np.zeros((len(near), 2 * near.shape[1], 2 * near.shape[1]), np.float32)
    pattern[:, ::2, 1::2] = near / np.maximum(near.sum(axis=-1, keepdims=True), 1)
    return pattern


@pytest.mark.parametrize('neighbours', [1, 2, 3, 20])
def test_the_nearest_are_those_of_the_highest_cosine_and_the_earliest_of_equals(neighbours):
    found = np.asarray(nearest(X, neighbours))
    np.testing.assert_array_equal(found, by_hand(X, neighbours))
    counts = np.broadcast_to(np.minimum(np.arange(POINTS), neighbours), (ROWS, POINTS))
    np.testing.assert_array_equal(found.sum(axis=-1), counts)
    dots = np.einsum('bsf,btf->bst', X, X)[:, 5, :5]
    assert np.any((dots == dots.max(axis=-1, keepdims=True)).sum(axis=-1) > 1)  # there are equals among them


def test_neighbours_of_unequal_length_are_ordered_by_cosine():
    x = np.random.default_rng(0).normal(size=(4, 7, 3)).astype(np.float32)
    np.testing.assert_array_equal(nearest(jnp.asarray(x), 2), by_hand(x, 2))
    long = jnp.array([[[1.0, 0.1], [9.0, 9.0], [1.0, 0.0]]])
    assert np.asarray(nearest(long))[0, 2].tolist() == [True, False, False]


def test_equal_cosines_of_signs_are_equal_though_their_root_is_irrational():
    """Twelve inputs: rounded cosines part equals there."""
    x = split_points(Boolean(inputs=12, points=40).sample(jax.random.key(1), 20).inputs)[0]
    whole = np.einsum('bsf,btf->bst', np.asarray(x, int), np.asarray(x, int))
    first = np.argmax(np.where(np.tri(40, k=-1, dtype=bool), whole, -13), axis=-1)
    np.testing.assert_array_equal(np.argmax(nearest(x), axis=-1)[:, 1:], first[:, 1:])


@pytest.mark.parametrize('neighbours', [1, 3])
def test_a_head_that_reads_the_labels_of_its_neighbours_scores_one_and_others_zero(neighbours):
    near = by_hand(X, neighbours)
    to_points = np.zeros((ROWS, 2 * POINTS, 2 * POINTS), np.float32)
    to_points[:, ::2, ::2] = pattern_of(near)[:, ::2, 1::2]  # the neighbours themselves, not their labels
    earlier = np.broadcast_to(np.tri(POINTS, k=-1, dtype=bool), near.shape)
    others = pattern_of(earlier & ~near)
    from_labels = np.zeros_like(to_points)
    from_labels[:, 1::2, 1::2] = pattern_of(near)[:, ::2, 1::2]
    heads = np.stack([pattern_of(near), to_points, others, from_labels], axis=1)[None]
    scores = np.asarray(neighbour_scores(jnp.asarray(heads), X, neighbours))
    np.testing.assert_allclose(scores, [[1, 0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize('neighbours, first', [(1, 1), (2, 1), (3, 4)])
def test_uniform_attention_has_the_score_of_the_closed_form(neighbours, first):
    tokens = 2 * POINTS
    uniform = np.tri(tokens) / np.arange(1, tokens + 1)[:, None]
    heads = jnp.asarray(np.broadcast_to(uniform, (2, ROWS, 3, tokens, tokens)), jnp.float32)
    expected = np.mean([min(neighbours, i) / (2 * i + 1) for i in range(first, POINTS)])
    np.testing.assert_allclose(neighbour_scores(heads, X, neighbours, first), np.full((2, 3), expected), rtol=1e-5)


@functools.cache
def build(name):
    fields = dict(width=32, read_in='linear', input_size=INPUTS, output_size=1, remat='none') | MODELS[name]
    model = DecoderConfig(**fields).make()
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), BATCH.inputs))['params']


@pytest.mark.parametrize('name', MODELS)
def test_scores_are_those_of_the_models_own_patterns(name):
    model, params = build(name)
    found = score_neighbour_heads(model, params, BATCH.inputs, neighbours=2, first=3)
    assert found.layers == ((1,) if name == 'hybrid' else (0, 1)) and found.scores.shape == (len(found.layers), 4)
    near = by_hand(X, 2)
    captured = capture.run(model, params, BATCH.inputs, sites=['pattern'])
    for row, layer in enumerate(found.layers):
        pattern = np.asarray(captured.at('pattern', layer))[:, :, ::2, 1::2]
        expected = np.where(near[:, None], pattern, 0).sum(axis=-1)[:, :, 3:].mean(axis=(0, 2))
        np.testing.assert_allclose(found.scores[row], expected, atol=1e-5)


def test_patterns_read_from_a_model_that_was_made_to_look_up_are_found():
    model, params = build('scanned')
    looks_up = jnp.asarray(pattern_of(by_hand(X, 1)))[:, None]
    run = capture.run(
        model,
        params,
        BATCH.inputs,
        sites=['pattern'],
        edits={('pattern', 1): Edit(value=looks_up, mask=jnp.arange(4)[None, :, None, None] == 2)},
    )
    found = NeighbourHeads((0, 1), neighbour_scores(run.stack('pattern'), X))
    assert found.best() == (1, 2, pytest.approx(1)) and found.found() == [(1, 2)]
    assert len(found.found(least=0.0)) == 8


BAD = {
    'first': (dict(first=POINTS), r'first=9 must lie in 1\.\.8'),
    'none': (dict(first=0), r'first=0 must lie in 1\.\.8'),
    'neighbours': (dict(neighbours=0), 'neighbours=0 must be at least 1'),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_questions_are_refused(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        neighbour_scores(jnp.zeros((1, ROWS, 1, 2 * POINTS, 2 * POINTS)), X, **fields)


def test_patterns_of_other_lengths_and_models_without_patterns_are_refused():
    with pytest.raises(ValueError, match='has 9 keys, but 9 points and labels are 18 tokens'):
        neighbour_scores(jnp.zeros((1, ROWS, 1, POINTS, POINTS)), X)
    model = DecoderConfig(width=32, layers=1, mixer=(RG_LRU,), read_in='linear', input_size=5, output_size=1).make()
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), BATCH.inputs))['params']
    with pytest.raises(ValueError, match='no layer of this model has attention patterns'):
        score_neighbour_heads(model, params, BATCH.inputs)
