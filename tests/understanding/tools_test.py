"""The tools: captured values are the model's own, edits do what they say, scanned or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.models import DecoderConfig
from jattn.taps import Edit
from jattn.understanding import capture, heads, patch
from jattn.understanding.pictures import draw_head_scores
from tests.understanding.opened import RECURRENT, opened

SOFTMAX, RG_LRU = MIXERS['softmax'].tiny(), MIXERS['rg_lru'].tiny()
MODELS = {
    'scanned': dict(mixer=(SOFTMAX,), layers=3),
    'unrolled': dict(mixer=(SOFTMAX,), layers=3, scan=False),
    'grouped': dict(mixer=(SoftmaxConfig(key_heads=2).tiny(),), layers=2),
    'hybrid': dict(mixer=(RG_LRU, SOFTMAX), layers=3),
    'remat': dict(mixer=(SOFTMAX,), layers=2, remat='block'),
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 10), 0, 16)
models = pytest.mark.parametrize('name', MODELS)
two_models = pytest.mark.parametrize('name', ['scanned', 'hybrid'])  # where every form of a model adds little


@functools.cache
def build(name):
    fields = dict(width=32, read_in='tokens', input_size=16, output_size=16, remat='none') | MODELS[name]
    model = DecoderConfig(**fields).make()
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))['params']


def run(name, **kwargs):
    model, params = build(name)
    return capture.run(model, params, TOKENS, **kwargs)


@models
def test_captured_values_are_those_of_the_forward_pass(name):
    model, params = build(name)
    captured = run(name, sites=['embed', 'resid_pre', 'attn_out', 'mlp_out', 'resid_post', 'z', 'logits'])
    plain, _ = model.apply({'params': params}, TOKENS)
    np.testing.assert_allclose(captured.outputs, plain, atol=1e-5)
    np.testing.assert_allclose(captured.at('logits'), plain, atol=1e-5)
    pre, post = captured.stack('resid_pre'), captured.stack('resid_post')
    np.testing.assert_allclose(pre[0], captured.at('embed'), atol=1e-5)
    np.testing.assert_allclose(pre[1:], post[:-1], atol=1e-5)
    np.testing.assert_allclose(pre + captured.stack('attn_out') + captured.stack('mlp_out'), post, atol=1e-4)
    assert captured.stack('z').shape == (model.cfg.layers, 2, 10, 4, 8)


@models
def test_patterns_are_distributions_over_the_past(name):
    captured = run(name, sites=['pattern', 'scores'])
    pattern = captured.stack('pattern')
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-5)
    assert float(jnp.max(jnp.abs(jnp.triu(pattern, 1)))) == 0
    assert list(captured.values['pattern']) == ([1] if name == 'hybrid' else list(range(build(name)[0].cfg.layers)))


@models
def test_an_edit_at_one_layer_is_that_of_the_hand(name):
    """Silencing a head equals zeroing its rows of the output projection."""
    model, params = build(name)
    layer, head = 1, 2
    (group, slot), repeat = model.cfg.layer_sites()[layer]
    mask = jnp.ones(4).at[head].set(0)[None, None, :, None]
    edited = run(name, edits={('z', layer): Edit(scale=mask)}).outputs
    kernel = params[group][slot]['mixer']['o_proj']['kernel']
    assert kernel.ndim == 4
    changed = jax.tree.map(lambda x: x, params)
    changed[group][slot]['mixer']['o_proj']['kernel'] = kernel.at[repeat, head].set(0)
    np.testing.assert_allclose(edited, model.apply({'params': changed}, TOKENS)[0], atol=1e-5)
    assert float(jnp.max(jnp.abs(edited - run(name).outputs))) > 1e-3


@two_models
def test_edits_with_the_layer_axis_first_equal_one_edit_a_layer(name):
    layers = build(name)[0].cfg.layers
    scale = jax.random.uniform(jax.random.key(3), (layers, 1, 1, 4, 1))
    whole = run(name, edits={'z': Edit(scale=scale)}).outputs
    single = run(name, edits={('z', layer): Edit(scale=scale[layer]) for layer in range(layers)}).outputs
    np.testing.assert_allclose(whole, single, atol=1e-6)
    one = run(name, edits={'z': Edit(scale=jnp.full((1, 1, 1, 1, 1), 0.5))}).outputs
    all_ = run(name, edits={'z': Edit(scale=jnp.full((layers, 1, 1, 1, 1), 0.5))}).outputs
    np.testing.assert_allclose(one, all_, atol=1e-6)


@two_models
def test_a_neutral_edit_changes_nothing(name):
    neutral = Edit(
        scale=jnp.ones((1,) * 5), add=jnp.zeros((1,) * 5), value=jnp.zeros((1,) * 5), mask=jnp.zeros((1,) * 5, bool)
    )
    np.testing.assert_allclose(run(name, edits={'z': neutral}).outputs, run(name).outputs, atol=1e-5)


@models
def test_an_edited_pattern_is_used(name):
    layer = 1
    uniform = jnp.tril(jnp.ones((10, 10))) / jnp.arange(1, 11)[:, None]
    captured = run(name, sites=['z', 'v'], edits={('pattern', layer): Edit(value=uniform)})
    v = captured.at('v', layer)
    v = jnp.repeat(v, 4 // v.shape[2], axis=2)
    np.testing.assert_allclose(captured.at('z', layer), jnp.einsum('ts,bshk->bthk', uniform, v), atol=1e-5)


@pytest.mark.parametrize('name', ['scanned', pytest.param('hybrid', marks=pytest.mark.slow), *RECURRENT])
def test_a_suffix_behind_a_state_has_the_rows_of_the_whole_run(name):
    model, params = opened(name)
    sites, tokens, slots = ['z', 'resid_post', 'mlp_act'], jnp.tile(TOKENS[:, :7] % 11, (1, 2)), 16
    sites += ['pattern'] if name in ('scanned', 'hybrid') else []
    edits = {('mlp_out', 1): Edit(scale=jnp.zeros(()))}
    whole = capture.run(model, params, tokens, sites=sites, edits=edits)
    prefix = capture.run(model, params, tokens[:, :8], edits=edits, state=model.cfg.init_state(2, slots))
    suffix = capture.run(model, params, tokens[:, 8:], sites=sites, edits=edits, state=prefix.state)
    np.testing.assert_allclose(suffix.outputs, whole.outputs[:, 8:], atol=1e-4)
    for site in sites:
        assert list(suffix.values[site]) == list(whole.values[site])
        for layer, value in whole.values[site].items():
            own = suffix.at(site, layer)
            if site == 'pattern':  # 8 of 16 slots are filled
                own, value = jnp.delete(own, jnp.arange(8, 16), axis=-1), value[:, :, 8:]
            else:
                value = value[:, 8:]
            np.testing.assert_allclose(own, value, atol=1e-4)
    assert whole.state is None and jax.tree.structure(suffix.state) == jax.tree.structure(prefix.state)


@two_models
def test_the_gradient_of_an_added_zero_is_that_of_the_site(name):
    model, params = build(name)
    metric = lambda logits: jnp.sum(jnp.sin(logits[:, -1]))

    def effect(add):
        return metric(capture.run(model, params, TOKENS, edits={('resid_post', 1): Edit(add=add)}).outputs)

    zero = jnp.zeros((2, 10, 32))
    gradient = jax.grad(effect)(zero)
    step = 1e-2 * jax.random.normal(jax.random.key(5), zero.shape)
    np.testing.assert_allclose(effect(step) - effect(-step), 2 * jnp.sum(gradient * step), rtol=2e-2, atol=1e-4)


@two_models
def test_patching_everything_at_the_last_layer_restores_the_clean_run(name):
    model, params = build(name)
    corrupted = TOKENS.at[:, 4].set((TOKENS[:, 4] + 1) % 16)
    metric = lambda logits: jnp.sum(logits[:, -1] * jnp.arange(16.0)[None])
    clean, dirty = metric(run(name).outputs), metric(capture.run(model, params, corrupted).outputs)
    effects = patch.patch(model, params, TOKENS, corrupted, metric)
    layers = tuple(range(model.cfg.layers))
    assert effects.layers == layers and effects.values.shape == (len(layers), 10)
    np.testing.assert_allclose(effects.before, dirty, rtol=1e-5)
    # The read-out sees the last position alone, and nothing differs before the change.
    np.testing.assert_allclose(effects.values[-1, -1], clean - dirty, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(effects.values[:, :4], 0, atol=1e-3)
    by_head = patch.patch(model, params, TOKENS, corrupted, metric, site='z', axis='head')
    assert by_head.values.shape == (len(layers), 4) and by_head.ranked()[0][0] in layers


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(axis='heads'), "axis='heads' must be one of layer, position, head, unit"),
        (dict(axis='head'), r"site 'resid_post' has no head axis: its shape is \(2, 10, 32\) at layer 0"),
        (dict(site='embed'), "site 'embed' is in no layer"),
        (dict(site='pattern'), "site 'pattern' has no position axis"),
    ],
)
def test_what_cannot_be_patched_is_named(arguments, message):
    model, params = build('scanned')
    with pytest.raises(ValueError, match=message):
        patch.patch(model, params, TOKENS, TOKENS, jnp.sum, **arguments)


def test_planted_heads_are_found():
    """A head whose pattern is set to the previous token, one to the duplicate, one to induction."""
    model, params = build('scanned')
    half = 6
    tokens = jnp.arange(16)
    inputs = heads.repeated_tokens(jax.random.key(2), 3, half, tokens)
    assert all(len(set(row[:half].tolist())) == half for row in inputs)
    np.testing.assert_array_equal(inputs[:, :half], inputs[:, half:])
    scores = heads.score_heads(model, params, jax.random.key(2), tokens, batch=3, half=half)
    pattern = capture.run(model, params, inputs, sites=['pattern']).stack('pattern')
    for name, offset in (('previous_token', 1), ('duplicate_token', half), ('induction', half - 1)):
        expected = np.mean([pattern[:, :, :, t, t - offset] for t in range(half, 2 * half)], axis=(0, 2))
        np.testing.assert_allclose(getattr(scores, name), expected, atol=1e-6)
    assert scores.best('induction')[2] == float(jnp.max(scores.induction))


def test_head_scores_are_drawn(tmp_path):
    model, params = build('hybrid')
    scores = heads.score_heads(model, params, jax.random.key(2), jnp.arange(16), batch=2, half=6)
    assert scores.layers == (1,)
    draw_head_scores(scores, tmp_path / 'heads.png', uniform=0.1)
    assert (tmp_path / 'heads.png').stat().st_size > 5000


def test_a_model_without_patterns_is_named():
    model = DecoderConfig(width=32, layers=1, mixer=(RG_LRU,), read_in='tokens', input_size=16, output_size=16).make()
    params = model.init(jax.random.key(0), TOKENS)['params']
    with pytest.raises(ValueError, match='no layer of this model has attention patterns'):
        heads.score_heads(model, params, jax.random.key(0), jnp.arange(16), half=4)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(sites=['patern']), "no site 'patern' in this model; did you mean 'pattern'"),
        (dict(edits={('z', 9): Edit(scale=jnp.zeros(()))}), r"site 'z' exists at layers \[0, 1, 2\], not at 9"),
        (dict(edits={'z': Edit(scale=jnp.zeros(()))}), r'scale has shape \(\), but its first axis must be the layers'),
        (dict(edits={'zz': Edit()}), "no site 'zz'"),
    ],
)
def test_wrong_names_are_errors_not_silence(arguments, message):
    with pytest.raises(ValueError, match=message):
        run('scanned', **arguments)


def test_an_unread_tap_costs_nothing():
    model, params = build('scanned')
    flops = lambda **kw: (
        jax.jit(
            lambda p: model.apply({'params': p}, TOKENS, **kw)[0][0] if kw else model.apply({'params': p}, TOKENS)[0]
        )
        .lower(params)
        .compile()
        .cost_analysis()['flops']
    )
    assert flops(mutable=['taps']) == flops()
