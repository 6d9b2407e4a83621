"""Linear probes: closed forms and optima, penalties, controls that find nothing, and features captured from models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.mixers import MIXERS
from jattn.models import DecoderConfig
from jattn.understanding import capture, probes

ROWS, WIDTH, LAYERS = 300, 6, 3
PARTS = probes.split_rows(jax.random.key(0), ROWS)
KEY = jax.random.key(1)
fit_ridge, fit_logistic = jax.jit(probes.fit_ridge), jax.jit(probes.fit_logistic)


def features_of(seed=0, rows=ROWS, layers=LAYERS, width=WIDTH):
    """[L, B, D] of unequal scales and means, with a constant among them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(layers, rows, width)) * 10.0 ** rng.integers(-2, 3, (layers, 1, width)) + 3
    x[:, :, 0] = 0.1
    return jnp.asarray(x, jnp.float32)


def standardised(x):
    """In float64."""
    x = np.asarray(x, np.float64)
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 1e-6 * np.abs(x.mean(axis=0)), spread, 1)


def test_without_a_penalty_it_is_least_squares():
    x, y = features_of()[0], jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, 2)), jnp.float32)
    joined = np.concatenate([np.asarray(x, np.float64), np.ones((ROWS, 1))], axis=1)
    expected = joined @ np.linalg.lstsq(joined, np.asarray(y, np.float64))[0]
    np.testing.assert_allclose(fit_ridge(x, y, 0.0)(x), expected, atol=1e-4)


def test_with_fewer_rows_than_features_and_no_penalty_it_has_the_least_norm():
    x, y = jax.random.normal(jax.random.key(2), (5, 8)), jax.random.normal(jax.random.key(3), (5, 1))
    probe, h = fit_ridge(x, y, 0.0), standardised(x)
    np.testing.assert_allclose(probe.weights, np.linalg.pinv(h, rcond=1e-6) @ (np.asarray(y) - np.mean(y)), atol=1e-4)
    np.testing.assert_allclose(probe(x), y, atol=1e-4)


@pytest.mark.parametrize('penalty', [0.5, 40.0])
def test_ridge_solves_its_normal_equations_and_leaves_the_bias_alone(penalty):
    x, y = features_of()[1], jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, 2)) + 7, jnp.float32)
    h, probe = standardised(x), fit_ridge(x, y, penalty)
    expected = np.linalg.solve(h.T @ h + penalty * np.eye(WIDTH), h.T @ np.asarray(y, np.float64))
    np.testing.assert_allclose(probe.weights, expected, atol=1e-4)
    np.testing.assert_allclose(probe.bias, np.mean(y, axis=0), rtol=1e-5)


@pytest.mark.parametrize('penalty', [0.1, 20.0])
def test_logistic_regression_is_the_minimum_that_newton_finds_in_float64(penalty):
    """Two classes: the softmax's columns are opposite, W = (-w/2, w/2), so |W|^2 is |w|^2 / 2."""
    rng, x = np.random.default_rng(2), features_of()[0]
    h = standardised(x)
    y = (h @ rng.normal(size=WIDTH) + rng.normal(size=ROWS) > 0.5).astype(int)
    joined = np.concatenate([h, np.ones((ROWS, 1))], axis=1)
    ridge = penalty / 2 * np.diag([1.0] * WIDTH + [0.0])
    w = np.zeros(WIDTH + 1)
    for _ in range(30):
        p = 1 / (1 + np.exp(-joined @ w))
        hessian = joined.T @ (joined * (p * (1 - p))[:, None]) + ridge
        w -= np.linalg.solve(hessian, joined.T @ (p - y) + ridge @ w)
    probe = fit_logistic(x, jax.nn.one_hot(y, 2), penalty)
    found = jax.nn.softmax(probe(x), axis=-1)[:, 1]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-joined @ w)), atol=5e-3)
    np.testing.assert_allclose(probe.weights[:, 0], -probe.weights[:, 1], atol=1e-4)


def test_at_the_minimum_of_three_classes_the_gradient_is_zero():
    x = features_of()[2]
    one_hot = jax.nn.one_hot(jnp.argmax(jax.random.normal(KEY, (ROWS, 3)) + x[:, 1:4] / 30, axis=-1), 3)
    probe, h = fit_logistic(x, one_hot, 2.0), standardised(x)
    error = np.asarray(jax.nn.softmax(probe(x), axis=-1) - one_hot, np.float64)
    np.testing.assert_allclose((h.T @ error + 2.0 * np.asarray(probe.weights)) / ROWS, 0, atol=2e-4)
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=2e-4)


def test_r_squared_and_accuracy_are_the_definitions():
    rng = np.random.default_rng(3)
    said, targets = rng.normal(size=(2, 50, 4)).astype(np.float32)
    spread = np.square(targets - targets.mean(axis=0)).sum()
    expected = 1 - np.square(said - targets).sum() / spread
    assert float(probes.r_squared(said, targets)) == pytest.approx(expected, rel=1e-5)
    labels = rng.integers(0, 4, 50)
    expected = np.mean(np.argmax(said, axis=1) == labels)
    assert float(probes.accuracy(said, jax.nn.one_hot(labels, 4))) == pytest.approx(expected)


def known_from(layer):
    """Labels that can be parted by a plane, and features that contain them from a layer on."""
    x = np.array(jax.random.normal(jax.random.key(4), (LAYERS, ROWS, WIDTH)))
    hidden = np.random.default_rng(5).normal(size=(ROWS, WIDTH))
    hidden[:, 0] += np.sign(hidden[:, 0])  # a gap between the classes
    x[layer:] = hidden @ np.linalg.qr(np.random.default_rng(6).normal(size=(WIDTH, WIDTH)))[0]
    return jnp.asarray(x, jnp.float32), jnp.asarray(hidden[:, 0] > 0, jnp.int32)


@pytest.mark.parametrize('layer', [0, 2])
def test_classes_that_a_plane_parts_are_read_from_the_layer_on_that_knows_them(layer):
    x, labels = known_from(layer)
    probed = probes.probe_classes(x, labels, PARTS, KEY, classes=2, penalties=[1.0], inputs=x[-1])
    assert np.all(probed.score[layer:] == 1) and probed.baseline == 1
    deviation = 0.5 / np.sqrt(len(PARTS.test))
    assert np.all(np.abs(probed.score[:layer] - 0.5) < 3.5 * deviation)
    assert np.all(np.abs(probed.control - 0.5) < 3.5 * deviation)
    np.testing.assert_allclose(probed.selectivity, probed.score - probed.control)


def test_values_are_read_where_they_are_and_shuffled_ones_nowhere():
    x = jax.random.normal(jax.random.key(7), (2, ROWS, WIDTH))
    targets = x[1] @ jax.random.normal(jax.random.key(8), (WIDTH, 2)) + 0.1
    probed = probes.probe_values(x, targets, PARTS, KEY, inputs=x[0])
    assert probed.score[1] > 0.99 and probed.score[0] < 0.15 and np.all(probed.control < 0.15)
    assert probed.baseline == pytest.approx(float(probed.score[0]), abs=1e-4)
    assert probed.penalty[1] == 1.0 and probed.said.shape == (2, len(PARTS.test), 2)


def test_a_controls_targets_that_go_by_type_can_be_learnt_by_heart_and_shuffled_ones_cannot():
    types = jax.random.randint(jax.random.key(9), (ROWS,), 0, 10, jnp.int32)
    x = jax.nn.one_hot(types, 10)[None]
    labels = (types % 2).astype(jnp.int32)
    by_type, shuffled = (
        probes.probe_classes(x, labels, PARTS, KEY, classes=2, penalties=[0.1], types=given) for given in (types, None)
    )
    assert by_type.score[0] == by_type.control[0] == 1 and by_type.selectivity[0] == 0
    assert shuffled.score[0] == 1 and shuffled.control[0] < 0.75


def test_a_controls_targets_have_the_distribution_of_the_targets():
    targets = jnp.repeat(jnp.array([0.0, 1.0]), jnp.array([3000, 1000]), total_repeat_length=4000)[:, None]
    shuffled = probes.control_targets(KEY, targets, None)
    assert float(shuffled.mean()) == 0.25 and not np.array_equal(shuffled, targets)
    given = probes.control_targets(KEY, targets, jnp.arange(4000, dtype=jnp.int32))
    assert abs(float(given.mean()) - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / 4000)


def test_scores_do_not_depend_on_scale_and_mean_of_features_nor_on_the_order_of_layers():
    x = features_of()
    targets = jax.random.normal(KEY, (ROWS, 1)) + x[1, :, 1:2] / jnp.std(x[1, :, 1])
    labels = (targets[:, 0] > jnp.median(targets)).astype(jnp.int32)
    ridge = lambda x: probes.probe_values(x, targets, PARTS, KEY)
    logistic = lambda x: probes.probe_classes(x, labels, PARTS, KEY, classes=2)
    scale = 10.0 ** jnp.array([1.0, -2.0, 0.0, 3.0, 1.0, 1.0])
    for probe in (ridge, logistic):
        plain, scaled, turned = probe(x), probe(x * scale[None, None] - 1), probe(x[::-1])
        np.testing.assert_allclose(scaled.score, plain.score, atol=0.02)
        np.testing.assert_allclose(turned.score[::-1], plain.score, atol=1e-3)
        np.testing.assert_array_equal(turned.penalty[::-1], plain.penalty)


def test_all_layers_at_once_are_each_layer_alone():
    x = features_of()
    labels = (x[2, :, 1] + x[2, :, 2] > jnp.median(x[2, :, 1] + x[2, :, 2])).astype(jnp.int32)
    together = probes.probe_classes(x, labels, PARTS, KEY, classes=2)
    for layer in range(LAYERS):
        alone = probes.probe_classes(x[layer : layer + 1], labels, PARTS, KEY, classes=2)
        np.testing.assert_allclose(alone.said[0], together.said[layer], atol=2e-2)
        np.testing.assert_allclose(alone.score[0], together.score[layer], atol=0.02)
        assert alone.penalty[0] == together.penalty[layer]
    np.testing.assert_allclose(together.probes(x)[:, PARTS.test], together.said, atol=1e-4)


def test_the_penalty_is_the_one_that_the_validation_rows_like_best():
    """Few rows, many features of noise: least squares learns by heart."""
    keys = jax.random.split(jax.random.key(10), 3)
    x = jax.random.normal(keys[0], (1, 120, 50))
    y = x[0, :, :1] + jax.random.normal(keys[1], (120, 1))
    parts, penalties = probes.split_rows(keys[2], 120, train=0.5, validation=0.25), [0.0, 1.0, 30.0, 300.0]
    fitted = [fit_ridge(x[0][parts.train], y[parts.train], penalty) for penalty in penalties]
    by_hand = [float(probes.r_squared(probe(x[0][parts.validation]), y[parts.validation])) for probe in fitted]
    probed = probes.probe_values(x, y, parts, KEY, penalties=penalties)
    best = int(np.argmax(by_hand))
    assert best in (2, 3) and probed.penalty[0] == penalties[best]
    assert probed.score[0] > probes.r_squared(fitted[0](x[0][parts.test]), y[parts.test]) + 0.1


def test_the_rows_of_a_split_are_apart_and_all_there():
    parts = probes.split_rows(jax.random.key(3), 50, train=0.6, validation=0.0)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [30, 0, 20]
    assert sorted(np.concatenate([parts.train, parts.validation, parts.test]).tolist()) == list(range(50))


SOFTMAX, RG_LRU = MIXERS['softmax'].tiny(), MIXERS['rg_lru'].tiny()
MODELS = {
    'scanned': dict(mixer=(SOFTMAX,)),
    'unrolled': dict(mixer=(SOFTMAX,), scan=False),
    'hybrid': dict(mixer=(RG_LRU, SOFTMAX)),
}
TOKENS = jax.random.randint(jax.random.key(1), (ROWS, 8), 0, 16, jnp.int32)


@functools.cache
def build(name):
    fields = dict(width=32, layers=3, read_in='tokens', input_size=16, output_size=16, remat='none') | MODELS[name]
    model = DecoderConfig(**fields).make()
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))['params']


@pytest.mark.parametrize('name', MODELS)
def test_the_own_token_is_read_from_every_layer_of_a_model_and_a_later_one_from_none(name):
    model, params = build(name)
    features = capture.run(model, params, TOKENS, sites=['resid_post']).stack('resid_post')[:, :, 5]
    own = probes.probe_classes(features, TOKENS[:, 5], PARTS, KEY, classes=16, penalties=[1.0], types=TOKENS[:, 5])
    later = probes.probe_classes(features, TOKENS[:, 6], PARTS, KEY, classes=16, penalties=[1.0])
    assert own.score.shape == (3,) and np.all(own.score > 0.95)
    assert np.all(own.control > 0.95)  # a label for each token can be learnt by heart: such a probe proves nothing
    assert np.all(later.score < 1 / 16 + 4.5 * np.sqrt(15 / 256 / len(PARTS.test)))


BAD = {
    'rows': (dict(targets=jnp.zeros((9, 1))), r"targets has shape \(9, 1\), but 'B F' with B=300"),
    'types': (dict(types=jnp.zeros(9, jnp.int32)), r"types has shape \(9,\), but 'B' with B=300"),
    'none': (dict(penalties=[]), r'penalties=\(\) must name at least one'),
    'negative': (dict(penalties=[-1.0]), r'penalties=\(-1.0,\) must name at least one, none below 0'),
    'validation': (
        dict(parts=probes.split_rows(jax.random.key(0), ROWS, 0.6, 0.0)),
        r'penalties=\(1.0, 10.0, 100.0, 1000.0\) are to be chosen from, but parts.validation has no rows',
    ),
}


@pytest.mark.parametrize('name', BAD)
def test_impossible_questions_are_refused(name):
    fields, message = BAD[name]
    arguments = dict(features=features_of(), targets=jnp.zeros((ROWS, 1)), parts=PARTS, key=KEY) | fields
    with pytest.raises(ValueError, match=message):
        probes.probe_values(**arguments)


def test_classes_without_a_penalty_and_splits_without_rows_are_refused():
    labels = jnp.zeros(ROWS, jnp.int32)
    with pytest.raises(ValueError, match=r'penalties=\(0.0, 1.0\) must all be positive'):
        probes.probe_classes(features_of(), labels, PARTS, KEY, classes=2, penalties=[0.0, 1.0])
    with pytest.raises(ValueError, match=r'train=0.9 and validation=0.1 of 30 rows must leave some'):
        probes.split_rows(KEY, 30, train=0.9, validation=0.1)
