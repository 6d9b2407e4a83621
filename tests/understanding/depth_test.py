"""Concept depth: labels known from a layer on jump there, flat curves never do, ranks are what AUC counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.understanding import depth, probes

ROWS, WIDTH, LAYERS = 300, 6, 5
PARTS = probes.split_rows(jax.random.key(0), ROWS)


@pytest.mark.parametrize('layer', [1, 3])
def test_a_label_that_is_there_from_a_layer_on_jumps_at_this_layer(layer):
    x = np.array(jax.random.normal(jax.random.key(4), (LAYERS + 1, ROWS, WIDTH)))
    x[layer:, :, 2] += 3 * np.sign(x[layer:, :, 2])  # a gap between the classes
    x[layer:, :, 2] = x[layer, :, 2]
    labels = jnp.asarray(x[layer, :, 2] > 0, jnp.int32)
    probed = probes.probe_classes(jnp.asarray(x), labels, PARTS, jax.random.key(1), classes=2, penalties=[1.0])
    found = depth.find_depth(probed.score)
    assert found.jumps[-1] == found.flat == layer / LAYERS  # before it, the curve is rough
    assert found.best > 0.98 and found.peak >= layer / LAYERS


def test_features_that_know_nothing_jump_nowhere_but_for_noise():
    x = jax.random.normal(jax.random.key(5), (LAYERS + 1, 2000, WIDTH))
    labels = jax.random.bernoulli(jax.random.key(6), 0.5, (2000,)).astype(jnp.int32)
    parts = probes.split_rows(jax.random.key(7), 2000, 0.6, 0.0)
    probed = probes.probe_classes(x, labels, parts, jax.random.key(1), classes=2, penalties=[10.0])
    assert np.all(np.abs(probed.score - 0.5) < 3.5 * 0.5 / np.sqrt(800))
    assert depth.find_depth(probed.score).jump is None


def test_the_places_of_a_curve_are_their_definitions():
    assert depth.find_depth([0.7] * 5) == depth.Depth((), 0.0, 0.0, 0.7)
    steps = depth.find_depth([0.5, 0.66, 0.66, 0.73, 0.9, 0.9, 0.88])
    assert steps.jumps == (1 / 6, 3 / 6, 4 / 6) and steps.jump == 1 / 6
    assert steps.flat == 4 / 6 and steps.peak == 4 / 6
    assert depth.find_depth([0.5, 0.5, 0.6]).flat == 1.0  # it moves to the end
    scaled = depth.find_depth(0.5 * np.array([0.5, 0.66, 0.66, 0.73, 0.9, 0.9, 0.88]))
    assert (scaled.jumps, scaled.flat) == (steps.jumps, steps.flat)


def test_smoothing_keeps_lines_and_means():
    line = np.arange(7) / 10
    np.testing.assert_allclose(depth.smoothed(line)[1:-1], line[1:-1])
    assert depth.smoothed(line, 1) == line.tolist()
    with pytest.raises(ValueError, match='width=2 must be odd'):
        depth.smoothed(line, 2)


def test_auc_counts_pairs_ties_as_half_and_turns_with_the_scores():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 60) / 4, rng.random(60) < 0.4
    pairs = [(scores[n] > scores[m]) + (scores[n] == scores[m]) / 2 for n in range(60) for m in range(60)
             if labels[n] and not labels[m]]  # fmt: skip
    assert float(depth.auc(scores, labels)) == pytest.approx(np.mean(pairs))
    assert float(depth.auc(-scores, labels)) == pytest.approx(1 - np.mean(pairs))
    assert float(depth.auc(np.ones(60), labels)) == 0.5
    assert float(depth.auc(np.where(labels, 2.0, 1.0), labels)) == 1


@pytest.mark.parametrize('curve', [[0.5], [0.5, 0.0], [[0.5, 0.5]]])
def test_curves_without_changes_are_refused(curve):
    with pytest.raises(ValueError, match='must have two values at least, all positive'):
        depth.find_depth(curve)
