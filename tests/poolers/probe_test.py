"""BatchNorm and the probe: Flax's numbers, those of real tokens alone, on any layout, and left alone by evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.poolers import POOLERS
from jattn.poolers.probe import BatchNorm, ProbeConfig
from jattn.poolers.simple import MeanConfig

B, T, D = 4, 8, 32
X = 3 + 2 * np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
SEGMENTS = np.array([[1] * 8, [0] * 4 + [2] * 4, [1] * 4 + [0] * 4, [0] * 4 + [1] * 4], np.int32)
REAL = SEGMENTS > 0
STATS = {'mean': np.linspace(-1, 1, D, dtype=np.float32), 'variance': np.linspace(0.5, 2, D, dtype=np.float32)}
TRAIN = Context(segments=jnp.array(SEGMENTS), train=True)


def normalized(context, x=X, affine=None):
    variables = {'batch_stats': STATS} | ({} if affine is None else {'params': affine})
    y, updated = BatchNorm(affine=affine is not None).apply(variables, x, context, mutable=['batch_stats'])
    return y, updated['batch_stats']


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm_is_that_of_flax(train):
    affine = {'scale': np.linspace(1, 2, D, dtype=np.float32), 'bias': np.linspace(0, 1, D, dtype=np.float32)}
    flax = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-6)
    stats = {'mean': STATS['mean'], 'var': STATS['variance']}
    variables = {'params': affine, 'batch_stats': stats}
    expected, updated = flax.apply(variables, X, mask=REAL[:, :, None], mutable=['batch_stats'])
    y, ours = normalized(dataclasses.replace(TRAIN, train=train), affine=affine)
    np.testing.assert_allclose(y[REAL], expected[REAL], atol=1e-5)
    for name, other in (('mean', 'mean'), ('variance', 'var')):
        np.testing.assert_allclose(ours[name], updated['batch_stats'][other], rtol=1e-5)
        assert np.all(ours[name] == STATS[name]) != train


def test_statistics_are_those_of_the_whole_batch_on_any_layout():
    whole, stats = normalized(TRAIN)
    halves = lambda x: x.reshape(2, 2, *x.shape[1:])  # 12 real tokens and 8: a mean of means is another number

    def device(x, segments):
        return normalized(Context(segments=segments, train=True, axis='devices'), x)

    y, each = jax.vmap(device, axis_name='devices')(halves(X), halves(SEGMENTS))
    np.testing.assert_allclose(y.reshape(X.shape)[REAL], whole[REAL], atol=1e-5)
    for name in stats:
        np.testing.assert_allclose(each[name], np.stack([stats[name]] * 2), rtol=1e-5)


@pytest.mark.parametrize('name', ['aim', 'cbam', 'dolg'])
def test_padding_changes_no_statistics_of_a_pooler_in_training(name):
    pooler = POOLERS[name].tiny().make()
    variables = nn.unbox(jax.jit(pooler.init)(jax.random.key(0), X))
    run = jax.jit(lambda x: pooler.apply(variables, x, TRAIN, mutable=['batch_stats']))
    (vec, _), updated = run(X)
    (other, _), same = run(np.where(REAL[:, :, None], X, np.nan))
    np.testing.assert_array_equal(vec, other)
    for before, own, again in zip(*map(jax.tree.leaves, (variables['batch_stats'], updated, same))):
        np.testing.assert_array_equal(own, again)
        assert np.all(np.isfinite(own)) and np.all(own != before)
    if name == 'aim':
        mean = updated['batch_stats']['norm']['mean']
        np.testing.assert_allclose(mean, 0.1 * X[REAL].mean(axis=0), rtol=1e-4)


def test_a_probe_normalises_over_the_batch_in_training_and_by_running_means_in_evaluation():
    probe = ProbeConfig(width=D, pooler=MeanConfig(), classes=3).make()
    variables = nn.unbox(jax.jit(probe.init)(jax.random.key(0), X))
    kernel = variables['params']['read_out']['kernel']
    (logits, maps), updated = probe.apply(variables, X, TRAIN, mutable=['batch_stats'])
    vec = np.stack([row[real].mean(axis=0) for row, real in zip(X, REAL)])
    normed = (vec - vec.mean(axis=0)) / np.sqrt(vec.var(axis=0) + 1e-6)
    np.testing.assert_allclose(logits, normed @ kernel, atol=1e-4)
    assert maps is None
    np.testing.assert_allclose(updated['batch_stats']['norm']['mean'], 0.1 * vec.mean(axis=0), rtol=1e-4)
    evaluation = dataclasses.replace(TRAIN, train=False)
    (logits, _), same = probe.apply(variables, X, evaluation, mutable=['batch_stats'])
    np.testing.assert_allclose(logits, vec @ kernel, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, same['batch_stats'], variables['batch_stats'])


def test_lama_is_probed_without_batch_norm():
    cfg = ProbeConfig(width=D, pooler=POOLERS['lama'], classes=3, normalize=False)
    variables = jax.eval_shape(cfg.make().init, jax.random.key(0), X)
    assert variables.keys() == {'params'}
