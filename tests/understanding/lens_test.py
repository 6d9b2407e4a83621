"""The logit lens and direct effects: exact sums, on every form of a decoder that has them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.models import DecoderConfig, EncoderConfig
from jattn.understanding import lens
from tests.parameters import perturbed_params

BASE = DecoderConfig(
    width=32,
    layers=3,
    read_in='tokens',
    input_size=11,
    output_size=11,
    mixer=(SoftmaxConfig(heads=4, key_heads=2, bias='all'),),
)
MODELS = {
    'scanned': BASE,
    'unrolled': dataclasses.replace(BASE, scan=False),
    'hybrid': dataclasses.replace(BASE, mixer=(MIXERS['rg_lru'], SoftmaxConfig(heads=4))),
    'layer_norm': dataclasses.replace(BASE, norm='layer', max_positions=9, embed_norm=True),
    'parallel': dataclasses.replace(BASE, block='parallel', norm='layer'),
    'tied': dataclasses.replace(BASE, tied=True, softcap=4.0),
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 11)


def start(cfg):
    return perturbed_params(cfg, TOKENS, 0.1)


@pytest.mark.parametrize('name', MODELS)
def test_the_last_layer_through_the_lens_is_the_model(name):
    cfg = MODELS[name]
    params = start(cfg)
    logits = lens.logit_lens(cfg.make(), params, TOKENS, position=4)
    assert logits.shape == (4, 2, 11)
    own = jax.jit(cfg.make().apply)({'params': params}, TOKENS)[0][:, 4]
    np.testing.assert_allclose(logits[-1], own, atol=1e-5)
    assert np.all(np.abs(logits[0] - own).max(axis=-1) > 1e-3)


@pytest.mark.parametrize('name', MODELS)
def test_direct_effects_add_up_to_the_logits(name):
    cfg = MODELS[name]
    params, direction = start(cfg), jax.nn.one_hot(jnp.array([3, 5]), 11) - jax.nn.one_hot(jnp.array([1, 2]), 11)
    found = lens.direct_effects(cfg.make(), params, TOKENS, direction)
    bare = dataclasses.replace(cfg, softcap=None)
    logits = jax.jit(bare.make().apply)({'params': params}, TOKENS)[0][:, -1]
    np.testing.assert_allclose(found.outputs, jnp.sum(logits * direction, axis=-1), atol=1e-4)
    constant = jnp.sum(lens.read_out(bare.make(), params, jnp.zeros((2, 32))) * direction, axis=-1)
    parts = found.embed + jnp.sum(found.attention + found.feed_forward, axis=0) + constant
    np.testing.assert_allclose(parts, found.outputs, atol=1e-4)
    assert found.layers == ((1,) if name == 'hybrid' else (0, 1, 2)) and found.heads.shape[1:] == (2, 4)
    if name == 'scanned':  # the heads, and the projection's bias, are what the mixer adds
        silent = jax.tree.map(lambda leaf: leaf, params)
        silent['body']['block_0']['mixer']['o_proj']['bias'] = jnp.zeros((3, 32))
        bare_heads = lens.direct_effects(cfg.make(), silent, TOKENS, direction)
        np.testing.assert_allclose(jnp.sum(bare_heads.heads, axis=-1), bare_heads.attention, atol=1e-4)


def test_a_head_that_writes_nothing_has_no_effect():
    params = start(BASE)
    kernel = params['body']['block_0']['mixer']['o_proj']['kernel']
    params['body']['block_0']['mixer']['o_proj']['kernel'] = kernel.at[1, 2].set(0)
    found = lens.direct_effects(BASE.make(), params, TOKENS, jnp.ones((2, 11)).at[:, 5:].set(0))
    assert np.all(found.heads[1, :, 2] == 0) and np.all(found.heads[1, :, :2] != 0)


@pytest.mark.parametrize(
    ('cfg', 'call', 'message'),
    [
        (dataclasses.replace(BASE, block='sandwich'), 'effects', "block='sandwich'"),
        (EncoderConfig(width=32, layers=1, read_in='tokens', input_size=11, output_size=11), 'lens', 'EncoderConfig'),
    ],
)
def test_what_has_no_direct_effects_is_named(cfg, call, message):
    params = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(0), TOKENS))['params']
    with pytest.raises(ValueError, match=message):
        if call == 'lens':
            lens.logit_lens(cfg.make(), params, TOKENS)
        else:
            lens.direct_effects(cfg.make(), params, TOKENS, jnp.ones((2, 11)))
