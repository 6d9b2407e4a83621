"""The forms of blocks, ends and positions that published models have, against their equations."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers import SoftmaxConfig
from jattn.models import DecoderConfig, EncoderConfig, VisionConfig
from jattn.models.decoder import BLOCKS
from jattn.models.generate import generate
from jattn.nn.convolution_stem import ConvolutionStemConfig
from jattn.nn.cross_attention import CrossAttentionConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.nn.norm import NORMS
from jattn.nn.rotary import RotaryScaling, rotate
from jattn.poolers.simple import MeanConfig
from jattn.understanding import capture
from tests.parameters import perturbed_params

MIXER = SoftmaxConfig(heads=2, bias='all', rotary_fraction=0.5)
SIZES = dict(width=16, layers=2, read_in='tokens', input_size=11, output_size=11, remat='none', mixer=(MIXER,))
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 11)


def start(cfg, x):
    return perturbed_params(cfg, x, 0.05)


def apply_part(module, params, name, repeat, x):
    own = jax.tree.map(lambda leaf: leaf[repeat], params['body']['block_0'][name])
    return module.apply({'params': own}, x)


@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize('norm', ['rms', 'layer'])
def test_a_block_adds_what_its_form_says(block, norm):
    cfg = DecoderConfig(**SIZES, block=block, norm=norm, norm_epsilon=1e-3, layer_scale=0.5)
    params = start(cfg, TOKENS)
    sites = ('resid_pre', 'attn_out', 'resid_mid', 'mlp_out', 'resid_post')
    found = capture.run(cfg.make(), params, TOKENS, sites=sites)
    mixer = dataclasses.replace(MIXER, width=16).make()
    for layer in range(2):
        norm_of = lambda name, x, n=layer: apply_part(NORMS[norm](epsilon=1e-3), params, name, n, x)
        scale_of = lambda name, n=layer: params['body']['block_0'][f'{name}_scale'][n][None, None]
        mix = lambda x, n=layer: apply_part(mixer, params, 'mixer', n, x)[0]
        feed = lambda x, n=layer: apply_part(FeedForwardConfig().make(), params, 'feed_forward', n, x)
        pre = found.at('resid_pre', layer)
        same = lambda name, x: x
        before, whole = (same, norm_of) if block == 'post' else (norm_of, same)
        after = norm_of if block == 'sandwich' else same
        mid = found.at('resid_mid', layer)
        attn = scale_of('mixer') * after('mixer_out_norm', mix(before('mixer_norm', pre)))
        read = pre if block == 'parallel' else mid
        mlp = scale_of('feed_forward') * after('feed_forward_out_norm', feed(before('feed_forward_norm', read)))
        for site, value in (
            ('attn_out', attn),
            ('resid_mid', whole('mixer_norm', pre + attn)),
            ('mlp_out', mlp),
            ('resid_post', whole('feed_forward_norm', mid + mlp)),
        ):
            np.testing.assert_allclose(found.at(site, layer), value, atol=2e-5, err_msg=f'{site} of layer {layer}')
    assert ('final_norm' in params) == (block != 'post')


@pytest.mark.parametrize('block', BLOCKS)
def test_every_form_of_a_block_decodes_what_it_reads_at_once(block):
    cfg = DecoderConfig(**SIZES, block=block, layer_scale=0.5, embed_norm=True, embed_scale=2.0, softcap=3.0)
    model, params = cfg.make(), start(cfg, TOKENS)
    whole = jax.jit(model.apply)({'params': params}, TOKENS)[0]
    state = cfg.init_state(2, 7)
    first, state = model.apply({'params': params}, TOKENS[:, :4], Context(), state)
    second, _ = model.apply({'params': params}, TOKENS[:, 4:], Context(), state)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=2e-5)
    assert float(jnp.max(jnp.abs(whole))) < 3


@pytest.mark.parametrize('chunk', [1, 3, 7, 16])
def test_a_prefill_in_chunks_generates_what_one_call_does(chunk):
    cfg = DecoderConfig(**SIZES)
    params, lengths = start(cfg, TOKENS), jnp.array([7, 4])
    whole = generate(cfg.make(), params, TOKENS, lengths, 5)
    np.testing.assert_array_equal(generate(cfg.make(), params, TOKENS, lengths, 5, chunk=chunk), whole)


def test_a_part_of_the_channels_is_rotated_as_if_it_were_alone():
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
    at = jnp.arange(5)[None]
    y = rotate(x, at, fraction=0.5)
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(y[..., :4], rotate(x[..., :4], at))


def test_scaling_keeps_fast_planes_divides_slow_ones_and_mixes_between():
    scaling = RotaryScaling(factor=8.0, low=1.0, high=4.0, original=64)
    turns = jnp.array([10.0, 4.0, 2.5, 1.0, 0.1])  # within the original length
    frequency = turns * 2 * math.pi / 64
    np.testing.assert_allclose(scaling(frequency) / frequency, [1, 1, (1 + 1 / 8) / 2, 1 / 8, 1 / 8], rtol=1e-5)


def test_cross_attention_has_biases_where_it_is_told_to():
    cfg = DecoderConfig(**SIZES, cross=CrossAttentionConfig(heads=2, use_bias=True))
    context = Context(source=jnp.ones((2, 3, 16)))
    params = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(0), TOKENS, context))['params']
    cross = params['body']['block_0']['cross']
    assert {name: cross[name]['bias'].shape for name in cross} == {
        'q_proj': (2, 2, 8),
        'k_proj': (2, 2, 8),
        'v_proj': (2, 2, 8),
        'o_proj': (2, 16),
    }


def test_a_stem_is_its_convolutions():
    cfg = EncoderConfig(
        width=16, layers=1, stem=ConvolutionStemConfig(), read_in='linear', input_size=3, output_size=5, pooler=None
    )
    x = jax.random.normal(jax.random.key(3), (2, 9, 3))
    params = start(cfg, x)
    y = x
    for number, stride in enumerate((1, 2)):
        own = params['read_in'][f'convolution_{number}']
        dims = ('NWC', 'WIO', 'NWC')
        y = jax.lax.conv_general_dilated(y, own['kernel'], (stride,), [(1, 1)], dimension_numbers=dims)
        y = jax.nn.gelu(y + own['bias'][None, None], approximate=False)
    embed = capture.run(cfg.make(), params, x, sites=['embed']).at('embed')
    assert embed.shape == (2, 5, 16) and cfg.stem.tokens(9) == 5
    np.testing.assert_allclose(embed, y, atol=1e-5)
    with pytest.raises(ValueError, match='no positions, no segments'):
        cfg.make().apply({'params': params}, x, Context(segments=jnp.ones((2, 9), jnp.int32)))


def test_a_unit_mean_has_length_one_and_the_direction_of_the_mean():
    x = jax.random.normal(jax.random.key(4), (2, 5, 8))
    unit, mean = (MeanConfig(width=8, unit=unit).make().apply({}, x)[0] for unit in (True, False))
    np.testing.assert_allclose(unit, mean / jnp.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-6)


def test_patches_are_read_with_a_bias_where_there_is_one():
    cfg = VisionConfig(width=16, layers=1, patch=4, patch_bias=True, read_in='linear', input_size=1, output_size=3)
    params = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(0), jnp.ones((1, 8, 8, 1))))['params']
    assert params['read_in']['bias'].shape == (16,)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: DecoderConfig(block='before'), "block='before' must be one of pre, post"),
        (lambda: DecoderConfig(block='parallel', feed_forward=None), 'beside a feed-forward'),
        (lambda: SoftmaxConfig(bias='q'), "bias='q' must be one of none, qkv, all"),
        (lambda: SoftmaxConfig(width=16, heads=2, rotary_fraction=0.2), 'rotary_fraction=0.2 of head_dim=8'),
        (lambda: RotaryScaling(low=4.0), 'below high=4.0'),
        (lambda: ConvolutionStemConfig(taps=2), 'stem.taps=2 must be odd'),
        (lambda: EncoderConfig(stem=ConvolutionStemConfig(), read_in='tokens'), 'convolutions read vectors'),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
