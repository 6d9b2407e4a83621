"""Encoders: pooled and token-wise outputs, padding, images; the encoder-decoder reads its source once."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.models import DecoderConfig, EncoderConfig, EncoderDecoderConfig, VisionConfig
from jattn.models.vision import patches, resize, resize_matrix
from jattn.nn.cross_attention import CrossAttentionConfig
from jattn.poolers import POOLERS
from jattn.taps import Edit
from jattn.understanding import capture

SIZES = dict(width=32, layers=2, read_in='linear', input_size=3, output_size=5)
ENCODER = EncoderConfig(**SIZES)
VISION = VisionConfig(width=32, layers=1, patch=4, registers=2, read_in='linear', input_size=1, output_size=5)
BOTH = EncoderDecoderConfig(
    width=32,
    encoder=EncoderConfig(layers=1, pooler=None, read_out=False),
    decoder=DecoderConfig(layers=2, cross=CrossAttentionConfig(heads=2, capacity=8)),
).for_data('tokens', 16, 16)
TARGETS = jax.random.randint(jax.random.key(1), (2, 9), 0, 16)
SOURCE = Context(
    source=jax.random.randint(jax.random.key(2), (2, 7), 0, 16),
    source_segments=jnp.array([[1] * 7, [1] * 4 + [0] * 3], jnp.int32),
)


def start(cfg, x, context=Context()):
    params = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(0), x, context))['params']
    return jax.jit(cfg.make().apply), {'params': params}


@pytest.mark.parametrize('pooler', ['mean', 'efficient_probing', 'last'])
def test_a_pooled_encoder_gives_an_output_a_row_and_does_not_see_padding(pooler):
    cfg = dataclasses.replace(ENCODER, pooler=POOLERS[pooler].tiny())
    x = jax.random.normal(jax.random.key(1), (2, 7, 3))
    run, variables = start(cfg, x)
    y, state = run(variables, x)
    assert y.shape == (2, 5) and state is None
    padded = jnp.concatenate([x, jnp.full((2, 2, 3), 9.0)], axis=1)
    segments = jnp.broadcast_to(jnp.array([1] * 7 + [0] * 2, jnp.int32)[None], (2, 9))
    np.testing.assert_allclose(run(variables, padded, Context(segments=segments))[0], y, atol=1e-5)


def test_an_encoder_sees_both_sides_and_can_give_tokens_or_features():
    x = jax.random.normal(jax.random.key(1), (1, 7, 3))
    for read_out, size in ((True, 5), (False, 32)):
        cfg = dataclasses.replace(ENCODER, pooler=None, read_out=read_out)
        run, variables = start(cfg, x)
        assert run(variables, x)[0].shape == (1, 7, size)
        gradient = jax.grad(lambda x, run=run, variables=variables: jnp.sum(run(variables, x)[0][0, 0]))(x)
        assert np.all(np.any(np.asarray(gradient) != 0, axis=-1))
        assert ('read_out' in variables['params']) == read_out


def test_a_pooled_trunk_of_a_causal_mixer_classifies_a_stream():
    cfg = dataclasses.replace(ENCODER, mixer=(MIXERS['rg_lru'].tiny(),), pooler=POOLERS['last'])
    x = jax.random.normal(jax.random.key(1), (2, 7, 3))
    run, variables = start(cfg, x)
    assert run(variables, x)[0].shape == (2, 5)
    with pytest.raises(ValueError, match='reads whole rows'):
        cfg.init_state(1, 8)


def test_patches_are_tiles_in_raster_order():
    images = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
    tiles = patches(images, 4)
    for n in range(6):
        row, column = divmod(n, 3)
        tile = images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(tiles[:, n], tile.reshape(2, -1))
    with pytest.raises(ValueError, match='image width=12 must be a multiple of patch=8'):
        patches(images, 8)


def test_registers_and_the_class_token_stand_before_the_patches_and_poolers_see_no_register():
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    model, params = VISION.make(), start(VISION, images)[1]['params']
    captured = capture.run(model, params, images, sites=['embed', 'z'])
    assert captured.at('embed').shape == (2, 2 + 1 + 4, 32)
    np.testing.assert_array_equal(captured.at('embed')[0, :3], params['prefix'])
    # Without layers that mix, what the registers hold changes nothing.
    idle = jax.tree.map(lambda p: p, params)
    idle['body']['block_0']['mixer']['o_proj']['kernel'] = jnp.zeros_like(
        params['body']['block_0']['mixer']['o_proj']['kernel']
    )
    moved = idle | {'prefix': params['prefix'].at[:2].add(1.0)}
    np.testing.assert_array_equal(*(model.apply({'params': p}, images)[0] for p in (idle, moved)))


def test_a_resized_row_is_keys_cubic_at_centres_of_places_with_the_ends_repeated():
    def keys(x):
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0

    for old, new in ((7, 3), (5, 12), (4, 4), (1, 3)):
        row = np.random.RandomState(0).randn(old)
        at = lambda n, old=old, new=new: (n + 0.5) * old / new - 0.5
        expected = [sum(keys(at(n) - k) * row[min(max(k, 0), old - 1)] for k in range(-4, old + 4)) for n in range(new)]
        np.testing.assert_allclose(resize_matrix(old, new) @ row, expected, atol=1e-12)


def test_a_table_of_positions_is_resized_to_the_image():
    plain, images = dataclasses.replace(VISION, registers=0), jax.random.normal(jax.random.key(1), (2, 8, 12, 1))
    run, variables = start(plain, images)
    table = jax.random.normal(jax.random.key(2), (9, 32))
    own = np.einsum('yi,ixd->yxd', resize_matrix(3, 2), table.reshape(3, 3, 32)).reshape(6, 32)
    expected = run({'params': variables['params'] | {'positions': jnp.float32(own)}}, images)[0]
    resized = jax.jit(dataclasses.replace(plain, grid=3).make().apply)
    found = resized({'params': variables['params'] | {'positions': table}}, images)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match='grid=0 must be at least 1'):
        dataclasses.replace(plain, grid=0)


def test_a_table_turned_and_resized_is_the_table_resized_and_turned():
    table = jax.random.normal(jax.random.key(1), (25, 2))
    turned = table.reshape(5, 5, 2).swapaxes(0, 1).reshape(25, 2)
    ours = resize(turned, 5, (4, 3)).reshape(4, 3, 2).swapaxes(0, 1)
    np.testing.assert_allclose(ours, resize(table, 5, (3, 4)).reshape(3, 4, 2), atol=1e-6)


def test_the_source_is_read_once_and_calls_equal_the_whole():
    run, variables = start(BOTH, TARGETS, SOURCE)
    whole, none = run(variables, TARGETS, SOURCE)
    assert whole.shape == (2, 9, 16) and none is None
    state, outputs = BOTH.init_state(2, 9), []
    for start_at, end in ((0, 4), (4, 5), (5, 9)):
        context = SOURCE if start_at == 0 else Context()
        y, state = run(variables, TARGETS[:, start_at:end], context, state)
        outputs.append(y)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, atol=2e-5)


def test_source_padding_has_no_say_and_real_source_tokens_have():
    run, variables = start(BOTH, TARGETS, SOURCE)
    whole, _ = run(variables, TARGETS, SOURCE)
    for place, changes in ((5, False), (2, True)):
        other = SOURCE.replace(source=SOURCE.source.at[1, place].add(1) % 16)
        y, _ = run(variables, TARGETS, other)
        assert np.any(np.asarray(y[1] != whole[1])) == changes
        np.testing.assert_array_equal(y[0], whole[0])


def test_packed_documents_read_their_own_source():
    run, variables = start(BOTH, TARGETS, SOURCE)
    source, targets = SOURCE.source[:, :3], TARGETS[:, :4]
    packed = Context(
        segments=jnp.array([[1] * 4 + [2] * 4], jnp.int32),
        source=source.reshape(1, 6),
        source_segments=jnp.array([[1] * 3 + [2] * 3], jnp.int32),
    )
    together, _ = run(variables, targets.reshape(1, 8), packed)
    for row in range(2):
        alone, _ = run(variables, targets[row : row + 1], Context(source=source[row : row + 1]))
        np.testing.assert_allclose(together[0, 4 * row : 4 * row + 4], alone[0], atol=2e-5)


def test_layers_of_both_sides_have_sites():
    _, variables = start(BOTH, TARGETS, SOURCE)
    sites, model = ['cross_z', 'resid_post', 'encoder.embed', 'decoder.logits'], BOTH.make()
    captured = capture.run(model, variables['params'], TARGETS, sites=sites, context=SOURCE)
    assert captured.at('encoder.embed').shape == (2, 7, 32) and captured.at('decoder.logits').shape == (2, 9, 16)
    assert sorted(captured.values['resid_post']) == [0, 1, 2] and sorted(captured.values['cross_z']) == [1, 2]
    edits = {'encoder.embed': Edit(scale=jnp.zeros(()))}
    silent = capture.run(model, variables['params'], TARGETS, edits=edits, context=SOURCE)
    assert np.any(np.asarray(silent.outputs != captured.outputs))


WRONG = {
    'pooled': (lambda: dataclasses.replace(BOTH, encoder=EncoderConfig()), 'encoder.pooler must be None'),
    'no cross': (lambda: dataclasses.replace(BOTH, decoder=DecoderConfig()), 'decoder.cross=None'),
    'long source': (
        lambda: BOTH.make().apply(
            start(BOTH, TARGETS, SOURCE)[1],
            TARGETS,
            Context(source=jnp.ones((2, 9), jnp.int32)),
            BOTH.init_state(2, 9),
        ),
        'a source of 9 tokens does not fit in cross.capacity=8',
    ),
    'no source': (lambda: start(BOTH, TARGETS), 'cross-attention needs context.source'),
    'image of tokens': (lambda: dataclasses.replace(VISION, read_in='tokens'), 'a vision encoder reads images'),
    'state of images': (
        lambda: VISION.make().apply(start(VISION, jnp.ones((1, 8, 8, 1)))[1], jnp.ones((1, 8, 8, 1)), Context(), {}),
        'reads whole images',
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_what_cannot_be_is_named(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_mixers_of_an_encoder_must_not_be_asked_for_a_state():
    cfg = dataclasses.replace(ENCODER, pooler=None, mixer=(SoftmaxConfig(causal=False),))
    with pytest.raises(ValueError, match='causal=False has no state'):
        cfg.init_state(1, 8)
