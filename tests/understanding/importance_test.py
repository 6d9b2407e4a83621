"""Paper 47's exact checks: pruning and its measures, and attention by distance on the grid of patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.mixers import SoftmaxConfig
from jattn.models.vision import VisionConfig
from jattn.taps import Edit
from jattn.understanding import capture
from jattn.understanding.importance import MEASURES, head_importance, jensen_shannon, prune
from jattn.understanding.spatial import hops, spread
from tests.parameters import perturbed_params

MIXER = SoftmaxConfig(causal=False, rotary_base=None, heads=2)
CFG = VisionConfig(
    width=16, layers=2, mixer=(MIXER,), patch=4, read_in='linear', input_size=1, pooler=None, read_out=False
)
IMAGES = jax.random.normal(jax.random.key(2), (3, 12, 12, 1))
LABELS = jnp.array([0, 3, 1])
WEIGHTS = jax.random.normal(jax.random.key(3), (16, 4))
MODEL, PARAMS = CFG.make(), perturbed_params(CFG, IMAGES, 0.1)
LN2 = float(jnp.log(2.0))


def read(outputs):
    return outputs[:, 0], outputs[:, 0] @ WEIGHTS


def constant(outputs):
    return outputs[:, 0], jnp.zeros((len(outputs), 4))


@pytest.fixture(scope='module')
def found():
    return head_importance(MODEL, PARAMS, IMAGES, LABELS, read)


def test_gates_of_one_are_the_plain_model_bit_for_bit():
    gates = {'z': Edit(scale=jnp.ones((2, 1, 1, 2, 1)))}
    plain, gated = (capture.run(MODEL, PARAMS, IMAGES, edits=edits).outputs for edits in ({}, gates))
    np.testing.assert_array_equal(gated, plain)


def test_measures_are_those_of_the_model_with_z_at_zero(found):
    plain = read(capture.run(MODEL, PARAMS, IMAGES).outputs)
    edit = Edit(scale=jnp.array([1.0, 0.0])[None, None, :, None])
    pruned = read(capture.run(MODEL, PARAMS, IMAGES, edits={('z', 0): edit}).outputs)
    p, q = (np.asarray(jax.nn.softmax(logits)) for _, logits in (plain, pruned))
    rows = np.arange(3)
    np.testing.assert_allclose(found.prob_drop[0, 1], p[rows, LABELS] - q[rows, LABELS], atol=1e-5)
    np.testing.assert_allclose(found.loss_rise[0, 1], np.log(p[rows, LABELS] / q[rows, LABELS]), atol=1e-4)
    middle = (p + q) / 2
    expected = ((p * np.log(p / middle)).sum(-1) + (q * np.log(q / middle)).sum(-1)) / 2
    np.testing.assert_allclose(found.divergence[0, 1], expected, atol=1e-5)
    cosine = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(plain[0], pruned[0])]
    np.testing.assert_allclose(found.shift[0, 1], 1 - np.array(cosine), atol=1e-5)
    np.testing.assert_array_equal(found.is_right[0, 1], q.argmax(-1) == LABELS)
    assert found.layers == (0, 1) and float(found.divergence.min()) > 0


def test_a_head_whose_output_is_zero_has_importance_zero_in_every_measure():
    def mute(path, leaf):
        return leaf.at[0, 1].set(0) if 'o_proj' in jax.tree_util.keystr(path) and leaf.ndim == 4 else leaf

    muted = jax.tree_util.tree_map_with_path(mute, PARAMS)
    assert any(jnp.any(a != b) for a, b in zip(jax.tree.leaves(muted), jax.tree.leaves(PARAMS)))
    silent = head_importance(MODEL, muted, IMAGES, LABELS, read)
    for measure in MEASURES:
        np.testing.assert_array_equal(getattr(silent, measure)[0, 1], 0.0)
        assert float(jnp.abs(getattr(silent, measure)[0, 0]).max()) > 1e-5


def test_the_gate_is_the_slope_of_the_loss(found):
    step = 0.03

    def loss(gate):
        edit = {('z', 1): Edit(scale=jnp.array([1.0, 1.0]).at[0].set(gate)[None, None, :, None])}
        logits = read(capture.run(MODEL, PARAMS, IMAGES, edits=edit).outputs)[1]
        return -jax.nn.log_softmax(logits)[jnp.arange(3), LABELS]

    slope = (loss(1 + step) - loss(1 - step)) / (2 * step)
    np.testing.assert_allclose(found.gate[1, 0], np.abs(slope), rtol=0.02, atol=1e-4)


def test_a_constant_classifier_loses_nothing():
    still = head_importance(MODEL, PARAMS, IMAGES, LABELS, constant)
    for measure in ('prob_drop', 'loss_rise', 'divergence', 'gate'):
        assert jnp.all(getattr(still, measure) == 0)


def test_the_divergence_is_symmetric_within_its_bounds_and_zero_for_equals_alone():
    one, other = (5 * jax.random.normal(jax.random.key(n), (50, 6)) for n in (4, 5))
    found, back = jensen_shannon(one, other), jensen_shannon(other, one)
    np.testing.assert_allclose(found, back, atol=1e-6)
    assert found.min() > 0 and found.max() <= LN2 + 1e-6
    np.testing.assert_array_equal(jensen_shannon(one, one), 0.0)


def test_a_table_prunes_several_heads_at_once():
    none, both = jnp.zeros((2, 2), bool), jnp.array([[True, False], [False, True]])
    embedded, logits = prune(MODEL, PARAMS, IMAGES, read, jnp.stack([none, both]))
    edits = {('z', 0): Edit(scale=jnp.array([0.0, 1.0])[None, None, :, None]),
             ('z', 1): Edit(scale=jnp.array([1.0, 0.0])[None, None, :, None])}  # fmt: skip
    expected = read(capture.run(MODEL, PARAMS, IMAGES, edits=edits).outputs)
    np.testing.assert_allclose(embedded[1], expected[0], atol=1e-5)
    np.testing.assert_allclose(logits[1], expected[1], atol=1e-5)
    assert jnp.abs(embedded[0] - embedded[1]).max() > 1e-3


def test_rings_of_an_inner_patch_hold_1_8_16_24():
    rings = np.bincount(hops((9, 9))[40])
    assert rings.tolist() == [1, 8, 16, 24, 32]
    assert np.bincount(hops((9, 9))[0]).tolist() == [1, 3, 5, 7, 9, 11, 13, 15, 17]


def test_uniform_attention_has_mass_by_size_and_a_flat_density():
    grid, tokens = (5, 4), 21
    found = spread(jnp.full((1, tokens, tokens), 1 / tokens), grid)
    sizes = np.array([(hops(grid) == k).sum(axis=1).mean() for k in range(hops(grid).max() + 1)])
    np.testing.assert_allclose(found.mass[0], sizes / tokens, rtol=1e-5)
    np.testing.assert_allclose(found.density[0], 1 / tokens, rtol=1e-5)
    np.testing.assert_allclose(found.entropy, np.log(tokens), rtol=1e-5)
    places = np.stack(np.divmod(np.arange(20), 4), -1)
    far = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.testing.assert_allclose(found.distance, far.mean(), rtol=1e-5)


def test_attention_to_oneself_has_no_distance():
    found = spread(jnp.eye(21)[None], (5, 4))
    np.testing.assert_array_equal(found.mass[0], [1, 0, 0, 0, 0])
    assert float(found.distance[0]) == 0 and float(found.prefix_mass[0]) == 0


def test_masses_and_the_class_tokens_sum_to_one():
    pattern = jax.nn.softmax(jax.random.normal(jax.random.key(6), (2, 3, 22, 22)) * 3)
    found = spread(pattern, (4, 5))
    np.testing.assert_allclose(found.mass.sum(-1) + found.prefix_mass, 1.0, atol=1e-6)
    np.testing.assert_allclose(found.prefix_mass, pattern[:, :, 2:, :2].sum(-1).mean(-1), rtol=1e-5)


def test_wrong_requests_are_named():
    with pytest.raises(ValueError, match='labels have shape'):
        head_importance(MODEL, PARAMS, IMAGES, LABELS[:2], read)
    with pytest.raises(ValueError, match='has 25 patches, but the pattern 21 tokens'):
        spread(jnp.eye(21)[None], (5, 5))
