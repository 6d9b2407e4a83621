"""FIT: its limits, who sees whom, any split of a sequence, images in tiles, denoising with what came before."""

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
from jattn.mixers import SoftmaxConfig
from jattn.mixers.mixture_of_heads import MixtureOfHeadsConfig
from jattn.models import MODELS, DecoderConfig, generate
from jattn.models.fit import FITConfig
from jattn.models.fit_decoder import FITDecoderConfig
from jattn.models.fit_denoiser import FITDenoiserConfig
from jattn.models.fit_layout import parse_layers
from jattn.models.image_tiles import tiled_patches, untiled_patches
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.nn.time_features import time_features
from jattn.poolers import POOLERS
from jattn.understanding import capture

HEADS = dict(
    local=SoftmaxConfig(heads=2, rotary_base=None, causal=False),
    latent=SoftmaxConfig(heads=2, rotary_base=None, causal=False),
)
CAUSAL = {name: dataclasses.replace(mixer, causal=True) for name, mixer in HEADS.items()}
SIZES = dict(width=16, group=4, latents=2, groups=4, feed_forward=FeedForwardConfig(expansion=2.0))
ENCODER = FITConfig(**SIZES, **HEADS, layers='(1)1(1)', pooler=None, read_in='linear', input_size=3, output_size=5)
DECODER = FITDecoderConfig(
    **SIZES, **CAUSAL, latent_width=8, layers='(1)1(1)1(1)', read_in='tokens', input_size=8, output_size=8
)
VECTORS = dataclasses.replace(DECODER, read_in='linear', input_size=3, output_size=5)
TOKENS = jax.random.randint(jax.random.key(1), (2, 16), 0, 8)
X = jax.random.normal(jax.random.key(2), (2, 16, 3))


@functools.cache
def moved(cfg, images=False):
    """Parameters of init moved at random, so that no published zero is an excuse."""
    inputs = TOKENS if cfg.read_in == 'tokens' else jnp.ones((2, 8, 8, 3)) if images else X
    context = Context(source=jnp.ones((2, 1, 4))) if isinstance(cfg, FITDenoiserConfig) else Context()
    params = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(0), inputs, context))['params']
    random = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.2 * random.normal(size=p.shape).astype(np.float32), params)


@functools.cache
def run(cfg):
    """The compiled call `(params, inputs, context, state) -> outputs, state`."""
    return jax.jit(lambda params, *args: cfg.make().apply({'params': params}, *args))


@functools.cache
def derivatives(cfg):
    """The compiled [T, S], how strongly output t depends on input s of the first row."""

    def outputs(x, params):
        return jnp.sum(jnp.sin(cfg.make().apply({'params': params}, x[None])[0][0]), axis=-1)

    return jax.jit(lambda params: jnp.sum(jnp.abs(jax.jacrev(outputs)(X[0], params)), axis=-1))


def without(params, *names):
    """The parameters with these exchanges' outputs at 0."""
    copied = jax.tree.map(lambda p: p, params)
    for block in copied:
        for name in names:
            if block.startswith('blocks_') and name in copied[block]:
                copied[block][name]['o_proj']['kernel'] = jnp.zeros_like(copied[block][name]['o_proj']['kernel'])
    return copied


def test_one_group_of_local_layers_is_a_plain_decoder():
    cfg = dataclasses.replace(DECODER, layers='(2)', group=16, groups=1)
    plain = DecoderConfig(
        width=16, layers=2, mixer=(CAUSAL['local'],), feed_forward=cfg.feed_forward, norm='layer', tied=True,
        max_positions=16, read_in='tokens', input_size=8, output_size=8,
    )  # fmt: skip
    params = moved(cfg)
    same = {name: params[name] for name in ('embedding', 'positions', 'final_norm')}
    y, _ = run(plain)(same | {'body': params['blocks_0']['local']['body']}, TOKENS)
    np.testing.assert_allclose(run(cfg)(params, TOKENS)[0], y + params['bias'][None, None], atol=2e-5)


def test_an_encoder_does_not_know_the_order_of_its_groups_but_by_their_latents():
    params, order = moved(ENCODER), np.array([2, 0, 3, 1])
    shuffle = lambda x: x.reshape(2, 4, 4, -1)[:, order].reshape(2, 16, -1)
    y, _ = run(ENCODER)(params, X)
    z, _ = run(ENCODER)(params | {'latents': params['latents'][order]}, shuffle(X))
    np.testing.assert_allclose(z, shuffle(y), atol=1e-5)
    z, _ = run(ENCODER)(params, shuffle(X))
    assert np.max(np.abs(z - shuffle(y))) > 1e-2


def test_a_decoder_sees_all_of_the_past_and_nothing_else():
    found = np.asarray(derivatives(VECTORS)(moved(VECTORS)))
    t, s = np.indices(found.shape)
    assert np.all(found[s > t] == 0)
    # Of its own group a token sees the tokens up to itself; of every earlier group, all.
    assert np.all(found[s <= t] > 0)


def test_without_the_way_down_groups_do_not_interact():
    found = np.asarray(derivatives(VECTORS)(without(moved(VECTORS), 'down')))
    t, s = np.indices(found.shape)
    assert np.all((found > 0) == ((s <= t) & (t // 4 == s // 4)))


def test_equal_groups_are_equal_until_latents_are_read():
    tokens = jnp.tile(TOKENS[:, :4], (1, 4))
    captured = capture.run(DECODER.make(), moved(DECODER), tokens, sites=['resid_post', 'pattern'])
    first, last = (captured.at('resid_post', layer).reshape(2, 4, 4, 16) for layer in (0, 4))
    np.testing.assert_array_equal(first, jnp.broadcast_to(first[:, :1], first.shape))
    assert np.max(np.abs(last - last[:, :1])) > 1e-2
    # Layers 1 and 3 are those of the latents: a latent sees all of its own group and of the earlier ones.
    group = np.arange(8) // 2
    for layer in (1, 3):
        seen = np.asarray(captured.at('pattern', layer)) > 0
        np.testing.assert_array_equal(seen, np.broadcast_to(group[None] <= group[:, None], seen.shape))


@pytest.mark.parametrize('size', [1, 7])
def test_any_split_gives_the_same_outputs(size):
    """Also at the first and last token of a group; padding leads, and documents end inside a group."""
    segments = np.array([[0] * 3 + [3] * 6 + [0] * 2 + [4] * 5, [1] * 8 + [2] * 8], np.int32)
    params = moved(DECODER)
    whole, _ = run(DECODER)(params, TOKENS, Context(segments=jnp.array(segments)))
    state, outputs = DECODER.init_state(2, 16), []
    for start in range(0, 16, size):
        part = slice(start, start + size)
        y, state = run(DECODER)(params, TOKENS[:, part], Context(segments=jnp.array(segments[:, part])), state)
        outputs.append(y)
    real = segments > 0
    np.testing.assert_allclose(np.concatenate(outputs, 1)[real], np.asarray(whole)[real], atol=2e-5)
    alone, _ = run(DECODER)(params, TOKENS)
    assert np.all(np.isfinite(alone)) and np.max(np.abs(alone[1, 8:] - whole[1, 8:])) > 1e-3
    np.testing.assert_allclose(alone[1, :8], whole[1, :8], atol=2e-5)


def test_generation_goes_on_from_prompts_of_different_lengths():
    params, lengths = moved(DECODER), jnp.array([3, 6])
    found = generate(DECODER.make(), params, TOKENS[:, :6], lengths, 5)
    for row, length in enumerate(lengths.tolist()):
        text = TOKENS[row, :length]
        for token in found[row].tolist():
            padded = jnp.pad(text, (0, 16 - len(text)))[None].repeat(2, axis=0)
            assert token == int(jnp.argmax(run(DECODER)(params, padded)[0][0, len(text) - 1]))
            text = jnp.append(text, token)


def test_padding_has_no_say_and_pools_leave_it_out():
    segments = jnp.array([[1] * 6 + [0] * 10, [1] * 16], jnp.int32)
    params, other = moved(ENCODER), X.at[0, 6:].set(9.0)
    y, z = (run(ENCODER)(params, x, Context(segments=segments))[0] for x in (X, other))
    np.testing.assert_array_equal(y[0, :6], z[0, :6])
    shorter, _ = run(ENCODER)(params, X[:, :8], Context(segments=segments[:, :8]))
    np.testing.assert_allclose(y[0, :6], shorter[0, :6], atol=1e-5)
    inside = jnp.array([[1] * 6 + [2] * 10, [1] * 16], jnp.int32)
    broken, _ = run(ENCODER)(params, X, Context(segments=inside))
    assert np.all(np.isnan(broken[0])) and np.all(np.isfinite(broken[1]))


def test_chunks_of_groups_change_nothing():
    """In a training step too: values, and gradients of every parameter."""
    found = []
    for chunk in (None, 2):
        model = dataclasses.replace(ENCODER, chunk=chunk).make()
        loss = lambda p, model=model: jnp.sum(jnp.sin(model.apply({'params': p}, X)[0]))
        found.append(jax.jit(jax.value_and_grad(loss))(moved(ENCODER)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *found)


@pytest.mark.parametrize('reads', ['tokens', 'latents'])
def test_a_classifier_pools_tokens_or_latents(reads):
    layers = '(1)1(1)' if reads == 'tokens' else '(1)1(1)1'
    cfg = dataclasses.replace(ENCODER, layers=layers, reads=reads, pooler=POOLERS['mean'])
    segments = jnp.array([[1] * 6 + [0] * 10, [1] * 16], jnp.int32)
    y, _ = run(cfg)(moved(cfg), X, Context(segments=segments))
    z, _ = run(cfg)(moved(cfg), X.at[0, 6:].set(9.0), Context(segments=segments))
    assert y.shape == (2, 5)
    np.testing.assert_array_equal(y, z)
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(run(cfg)(p, X)[0])))(moved(cfg))
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))


def test_images_are_cut_into_tiles_of_patches():
    images = jax.random.normal(jax.random.key(3), (2, 8, 12, 2))
    tokens = np.asarray(tiled_patches(images, 2, 2)).reshape(2, 6, 4, 8)
    for n in range(6):
        row, column = divmod(n, 3)
        tile = np.asarray(images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4])
        np.testing.assert_array_equal(tokens[:, n, 0], tile[:, :2, :2].reshape(2, -1))
        np.testing.assert_array_equal(tokens[:, n, 1], tile[:, :2, 2:].reshape(2, -1))
        np.testing.assert_array_equal(tokens[:, n, 2], tile[:, 2:, :2].reshape(2, -1))
    np.testing.assert_array_equal(untiled_patches(tiled_patches(images, 2, 2), 2, 2, (8, 12)), images)


DENOISER = FITDenoiserConfig(
    **SIZES, **HEADS, layers='(1)1(1)', patch=2, read_in='linear', input_size=3, output_size=3, self_condition=True,
    cross_feed_forward=FeedForwardConfig(expansion=1.0),
)  # fmt: skip
IMAGES = jax.random.normal(jax.random.key(4), (2, 8, 8, 3))


def test_a_denoiser_depends_on_its_condition_and_on_the_latents_before():
    params = moved(DENOISER, images=True)
    at = lambda t, size=4: Context(source=time_features(jnp.full(2, t), size))
    y, none = run(DENOISER)(params, IMAGES, at(0.5))
    assert y.shape == IMAGES.shape and none is None
    assert np.max(np.abs(run(DENOISER)(params, IMAGES, at(0.1))[0] - y)) > 1e-3
    fresh = DENOISER.init_state(2, 16)
    z, latents = run(DENOISER)(params, IMAGES, at(0.5), fresh)
    np.testing.assert_allclose(z, y, atol=1e-5)
    assert latents.shape == fresh.shape
    w, _ = run(DENOISER)(params, IMAGES, at(0.5), latents)
    assert np.max(np.abs(w - y)) > 1e-3
    silent = params | {'before_norm': jax.tree.map(jnp.zeros_like, params['before_norm'])}
    both = [run(DENOISER)(silent, IMAGES, at(0.5), state)[0] for state in (fresh, latents)]
    np.testing.assert_array_equal(*both)


def test_half_of_the_rows_train_on_their_own_first_pass():
    params, context = moved(DENOISER, images=True), Context(source=time_features(jnp.full(64, 0.5), 4), train=True)
    images = jnp.tile(IMAGES[:1], (64, 1, 1, 1))
    apply = jax.jit(lambda p, key: DENOISER.make().apply({'params': p}, images, context, rngs={'dropout': key})[0])
    rows = np.asarray(apply(params, jax.random.key(0))).reshape(64, -1)
    kinds = np.unique(np.round(rows, 3), axis=0, return_counts=True)[1]
    assert len(kinds) == 2 and 16 < kinds[0] < 48


def test_operations_are_counted_and_grow_with_the_power_four_thirds():
    for cfg, x in ((ENCODER, X[:1]), (DECODER, TOKENS[:1])):
        # all pairs of the reference, as cfg.flops counts them
        reference = {name: dataclasses.replace(getattr(cfg, name), implementation='reference') for name in HEADS}
        model, params = dataclasses.replace(cfg, remat='none', **reference).make(), moved(cfg)
        counted = count_flops(lambda p, x, model=model: model.apply({'params': p}, x)[0], params, x)
        assert abs(cfg.flops(16) / counted - 1) < 0.05
    cost = lambda n: dataclasses.replace(ENCODER, group=n, groups=n * n).flops(n**3)
    assert abs(np.log(cost(2**14) / cost(2**12)) / np.log(2**6) - 4 / 3) < 0.02


def test_layers_are_read_from_the_papers_notation():
    assert parse_layers('(4)4(4)4(4)4(4)') == ((4, 4), (4, 4), (4, 4), (4, 0))
    assert len(DECODER.layer_sites()) == len(set(DECODER.layer_sites())) == 5


@pytest.mark.parametrize('name', ['fit', 'fit_decoder', 'fit_denoiser'])
def test_every_parameter_is_named_and_learns(name):
    cfg = MODELS[name].tiny()
    cfg = cfg.for_data('tokens' if name == 'fit_decoder' else 'linear', 8 if name == 'fit_decoder' else 3, 8)
    inputs, context = (TOKENS, Context()) if name == 'fit_decoder' else (X, Context(source=X[:, :2]))
    boxed = jax.eval_shape(cfg.make().init, jax.random.key(0), inputs, context)['params']
    is_box = lambda leaf: isinstance(leaf, nn.Partitioned)
    boxes = jax.tree.leaves(boxed, is_leaf=is_box)
    assert all(is_box(box) and len(box.names) == box.value.ndim for box in boxes)
    params = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(0), inputs, context)['params'])
    loss = lambda p: jnp.sum(jnp.sin(cfg.make().apply({'params': p}, inputs, context)[0]))
    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)) and np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


WRONG = {
    'group': (lambda: run(ENCODER)(moved(ENCODER), X[:, :14]), 'tokens of a row=14 must be a multiple of group=4'),
    'image': (lambda: tiled_patches(IMAGES, 4, 4), 'image height=8 must be a multiple of patch * sqrt(group)=16'),
    'square': (lambda: dataclasses.replace(ENCODER, patch=2, group=6), 'group=6 a square of patches'),
    'long': (
        lambda: run(DECODER)(moved(DECODER), jnp.zeros((2, 17), jnp.int32)),
        'a row of 5 groups does not fit in groups=4',
    ),
    'layers': (lambda: dataclasses.replace(ENCODER, layers='1(2)'), "must read '(a)b(a)b...'"),
    'wasted': (lambda: dataclasses.replace(ENCODER, layers='(1)1'), "end in global layers, but reads='tokens'"),
    'unread': (lambda: dataclasses.replace(ENCODER, reads='latents'), "end in local layers, but reads='latents'"),
    'chunk': (lambda: run(dataclasses.replace(ENCODER, chunk=3))(moved(ENCODER), X), 'rows * groups=8 must be a'),
    'chunked': (
        lambda: dataclasses.replace(ENCODER, chunk=2, local=MixtureOfHeadsConfig(heads=4, shared=1, active=1)),
        'chunk=2 must be at least 1, with plain softmax attention',
    ),
    'window': (
        lambda: dataclasses.replace(ENCODER, latent=SoftmaxConfig(window=4)),
        'the latents of a group share a position',
    ),
    'both sides': (lambda: dataclasses.replace(DECODER, **HEADS), 'must be True in a FIT decoder'),
    'reads': (lambda: dataclasses.replace(DECODER, reads='latents', layers='(1)1'), "must be 'tokens' in a FIT"),
    'state': (lambda: run(ENCODER)(moved(ENCODER), X, Context(), {}), 'reads whole rows and has no state'),
    'heads': (
        lambda: dataclasses.replace(ENCODER, latent_width=15).layout.heads,
        'min(width, latent_width)=15 must be a multiple of cross heads=2',
    ),
    'no time': (
        lambda: DENOISER.make().apply({'params': moved(DENOISER, images=True)}, IMAGES),
        'a FIT denoiser needs context.source',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_what_cannot_be_is_named(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
