"""Selective S4: keeping all or nothing, exactly so many tokens in order, gaps, what the generator learns from."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.flops import count_flops
from jattn.mixers.s4d import S4DConfig
from jattn.models import MODELS
from jattn.models.selective_s4 import Kept, S4Layer, SelectiveS4Config, counted
from jattn.nn.side_channels import LOSSES, METRICS
from jattn.nn.token_selection import MaskGeneratorConfig
from jattn.understanding import capture

CFG = SelectiveS4Config(
    width=8, s4=S4DConfig(state_size=4), grid=(2, 2), keep=0.4, generator=MaskGeneratorConfig(channels=4),
    read_in='linear', input_size=3, output_size=5,
)  # fmt: skip
MASKED = dataclasses.replace(CFG, evaluation='mask')
X = jax.random.normal(jax.random.key(1), (2, 24, 3))
GUIDE = jax.random.normal(jax.random.key(2), (2, 24, 8))


@functools.cache
def parameters():
    params = nn.unbox(jax.jit(CFG.make().init)(jax.random.key(0), X))['params']
    random = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * random.normal(size=p.shape).astype(np.float32), params)


@functools.cache
def run(cfg):
    """The compiled call `(params, inputs, context) -> outputs`."""
    return jax.jit(lambda params, x, context=Context(): cfg.make().apply({'params': params}, x, context)[0])


@functools.cache
def training():
    """The compiled `(params, inputs, guide, key) -> outputs, kept, auxiliary loss` of a training step."""

    def apply(params, x, guide, key):
        context = Context(source=guide, train=True)
        (y, _), found = CFG.make().apply(
            {'params': params}, x, context, mutable=[LOSSES, METRICS], rngs={'dropout': key}
        )
        return y, found[METRICS]['kept'], found[LOSSES]['keep_ratio']

    return jax.jit(apply)


def biased(by):
    """The generator says: keep (by > 0) or drop everything."""
    params = parameters()
    logits = params['generator']['logits_proj']
    logits = logits | {'bias': logits['bias'] + jnp.array([by, -by])}
    return params | {'generator': params['generator'] | {'logits_proj': logits}}


def plain():
    return {name: leaf for name, leaf in parameters().items() if name != 'generator'}


def test_keeping_all_is_the_plain_classifier():
    y = run(dataclasses.replace(CFG, selection='none'))(plain(), X)
    np.testing.assert_allclose(run(dataclasses.replace(CFG, keep=1.0))(parameters(), X), y, atol=1e-6)
    trained, kept, _ = training()(biased(1000.0), X, GUIDE, jax.random.key(3))
    np.testing.assert_allclose(trained, y, atol=1e-6)
    assert kept == 1


def test_dropping_all_leaves_the_bias_of_the_read_out():
    bias = np.broadcast_to(parameters()['output']['bias'], (2, 5))
    y, kept, loss = training()(biased(-1000.0), X, GUIDE, jax.random.key(3))
    np.testing.assert_array_equal(y, bias)
    assert kept == 0 and abs(loss - 0.4**2) < 1e-6
    np.testing.assert_array_equal(run(CFG)(parameters(), X, Context(segments=jnp.zeros((2, 24), jnp.int32))), bias)


def test_the_ratio_is_missed_by_its_square():
    _, kept, loss = training()(parameters(), X, GUIDE, jax.random.key(3))
    assert 0 < kept < 1 and abs(loss - (kept - 0.4) ** 2) < 1e-6


@pytest.mark.parametrize('keep, count', [(0.4, 10), (0.5, 12), (0.01, 1)])
def test_evaluation_keeps_exactly_the_share(keep, count):
    cfg = dataclasses.replace(MASKED, keep=keep)
    assert cfg.kept(24) == count
    if keep == 0.4:
        captured = capture.run(cfg.make(), parameters(), X, sites=['kept'])
        assert np.all(np.sum(captured.at('kept'), axis=1) == count)


@pytest.mark.parametrize('cfg', [CFG, MASKED], ids=['gather', 'mask'])
def test_what_is_dropped_has_no_say(cfg):
    captured = capture.run(cfg.make(), parameters(), X, sites=['kept'], context=Context(source=GUIDE))
    kept = np.asarray(captured.at('kept')) > 0
    moved = jnp.where(kept[:, :, None], X, 9.0)
    y, z = (run(cfg)(parameters(), x, Context(source=GUIDE)) for x in (X, moved))
    np.testing.assert_array_equal(y, z)
    assert np.max(np.abs(run(cfg)(parameters(), X + 1.0, Context(source=GUIDE)) - y)) > 1e-3


def test_a_gathered_sequence_with_gaps_is_the_masked_one():
    """At the kept tokens of a layer; without gaps the state of the gathered one fades less."""
    places = jnp.array([[1, 2, 5, 11, 12, 20], [0, 3, 4, 5, 6, 23]])
    x, row = GUIDE, jnp.arange(2)[:, None]
    mask = jnp.zeros((2, 24)).at[row, places].set(1.0)
    found = {}
    for gaps in (False, True):
        layer = S4Layer(dataclasses.replace(CFG, s4=dataclasses.replace(CFG.s4, use_gaps=gaps)), 8)
        params = jax.tree.map(lambda p: p[0], parameters()['blocks_0']['layer'])
        masked, _ = layer.apply({'params': params}, x, Kept(mask, mask), False)
        ones = jnp.ones(places.shape)
        kept = Kept(ones, ones, places if gaps else None)
        found[gaps] = masked[row, places], layer.apply({'params': params}, x[row, places], kept, False)[0]
    np.testing.assert_allclose(*found[True], atol=1e-5)
    assert np.max(np.abs(found[False][0] - found[False][1])) > 1e-3


def test_pools_weigh_tokens_by_the_mask():
    x = jnp.array([[[1.0], [3.0], [50.0], [7.0], [60.0]]])
    kept = counted(jnp.array([[True, True, False, True, False]]))
    pooled, after = kept.pooled(x)
    assert pooled.ravel().tolist() == [2.0, 7.0, 0.0]
    assert after.mask.tolist() == [[1.0, 1.0, 0.0]] and after.weight.tolist() == [[2.0, 1.0, 0.0]]
    assert abs(float(after.mean(pooled)[0, 0]) - 11 / 3) < 1e-6


def test_the_generator_learns_and_its_guide_does_not():
    def loss(params, guide):
        return jnp.sum(jnp.sin(training()(params, X, guide, jax.random.key(3))[0]))

    of_params, of_guide = jax.jit(jax.grad(loss, argnums=(0, 1)))(parameters(), GUIDE)
    assert np.all(np.asarray(of_guide) == 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_params):
        assert np.all(np.isfinite(leaf)) and np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


def test_features_are_those_of_every_token_and_can_guide():
    features = jax.jit(lambda x: CFG.make().apply({'params': parameters()}, x, method='features'))(X)
    assert features.shape == (2, 24, 8)
    guided = run(CFG)(parameters(), X, Context(source=features))
    assert guided.shape == (2, 5) and np.max(np.abs(guided - run(CFG)(parameters(), X))) > 1e-4


def test_random_tokens_are_as_many_and_the_same_for_every_row():
    cfg = dataclasses.replace(MASKED, selection='random')
    kept = np.asarray(capture.run(cfg.make(), plain(), X, sites=['kept']).at('kept'))
    assert np.all(kept.sum(axis=1) == 10) and np.all(kept == kept[:1])


def test_operations_are_counted():
    for cfg in (CFG, dataclasses.replace(CFG, selection='none')):
        cfg = dataclasses.replace(cfg, s4=dataclasses.replace(cfg.s4, implementation='fft'))
        counted_flops = count_flops(lambda p, x, cfg=cfg: cfg.make().apply({'params': p}, x)[0], parameters(), X[:1])
        assert abs(cfg.flops(24) / counted_flops - 1) < 0.05


def test_the_table_has_it():
    assert MODELS['selective_s4'] == SelectiveS4Config()
    assert MODELS['selective_s4'].tiny().for_data('linear', 3, 5).layer_sites() == [
        (('blocks_0', 'layer'), 0),
        (('blocks_1', 'layer'), 0),
    ]


WRONG = {
    'grid': (lambda: run(CFG)(parameters(), X[:, :22]), 'tokens of a row=22 must be a multiple of rows * columns'),
    'width': (lambda: dataclasses.replace(CFG, width=6), 'width=6 must be a multiple of 2^layers=4'),
    'keep': (lambda: dataclasses.replace(CFG, keep=0.0), 'keep=0.0 must lie in (0, 1]'),
    'selection': (lambda: dataclasses.replace(CFG, selection='top'), "selection='top' must be one of none, generator"),
    'guide': (lambda: run(CFG)(parameters(), X, Context(source=X)), 'context.source has shape (2, 24, 3)'),
    'state': (lambda: CFG.init_state(1, 8), 'reads whole rows and has no state'),
    'channels': (lambda: MaskGeneratorConfig(channels=3), 'generator.channels=3 must be even'),
}


@pytest.mark.parametrize('name', WRONG)
def test_what_cannot_be_is_named(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
