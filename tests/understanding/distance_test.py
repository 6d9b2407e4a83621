"""Distances to reference predictors: definitions by place, their means are the testbeds', batches add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import Regression
from jattn.understanding.distance import distances

TASK = Regression(noise=0.5, dim=3, points=6)
BATCH = jax.jit(TASK.sample, static_argnums=1)(jax.random.key(0), 40)
REFERENCES = jax.jit(TASK.baselines)(BATCH)
OUTPUTS = jax.random.normal(jax.random.key(1), BATCH.targets.shape)


def test_a_distance_is_the_mean_square_at_each_scored_place():
    found = distances(OUTPUTS, REFERENCES, BATCH.mask)
    assert set(found) == {'zero', 'averaging', 'three_nearest', 'least_squares', 'ridge'}
    for name, said in REFERENCES.items():
        expected = np.square(np.asarray(OUTPUTS - said))[:, ::2, 0].mean(axis=0)
        np.testing.assert_allclose(found[name].value()[::2], expected, rtol=1e-5)
        assert not np.any(found[name].value()[1::2]) and found[name].count.tolist() == [40, 0] * 6


def test_over_all_places_it_is_what_the_testbed_reports():
    metrics = jax.jit(TASK.metrics)(OUTPUTS, BATCH)
    for name, curve in distances(OUTPUTS, REFERENCES, BATCH.mask).items():
        whole = float(jnp.sum(curve.total) / jnp.sum(curve.count)) / TASK.normaliser
        assert whole == pytest.approx(float(metrics[f'distance/{name}'].value()), rel=1e-5)


def test_a_predictor_is_at_no_distance_from_itself_and_ridge_is_nearer_to_least_squares_the_more_it_has_seen():
    curve = distances(REFERENCES['ridge'], REFERENCES, BATCH.mask)
    assert not np.any(curve['ridge'].value())
    after = np.asarray(curve['least_squares'].value())[::2]
    assert after[0] == 0 and after[5] < after[3]


def test_sums_of_two_batches_are_those_of_both():
    parts = (np.s_[:15], np.s_[15:])
    halves = [distances(OUTPUTS[n], {'zero': jnp.zeros_like(OUTPUTS[n])}, BATCH.mask[n]) for n in parts]
    whole = distances(OUTPUTS, {'zero': REFERENCES['zero']}, BATCH.mask)['zero'].value()
    np.testing.assert_allclose((halves[0]['zero'] + halves[1]['zero']).value(), whole, rtol=1e-5)


def test_predictions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"distances: ridge has shape \(40, 5, 1\), but 'B T F' with T=12"):
        distances(OUTPUTS, {'ridge': OUTPUTS[:, :5]}, BATCH.mask)
