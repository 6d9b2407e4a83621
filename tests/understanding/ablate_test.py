"""Ablation: every kind is what it says, sweeps equal loops, padding and prefixes have no say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers import SoftmaxConfig
from jattn.models import DecoderConfig, EncoderConfig
from jattn.models.encoder_decoder import EncoderDecoderConfig
from jattn.nn.cross_attention import CrossAttentionConfig
from jattn.taps import Edit
from jattn.understanding import ablate, capture, interventions
from tests.understanding.opened import OTHER, RECURRENT, THREE, TOKENS, metric, metric_at_five, opened, padded


@functools.partial(jax.jit, static_argnums=(0, 1))
def edited(name, measure, tokens, edits):
    """The metric of a run whose edits are data."""
    model, params = opened(name)
    return measure(capture.run(model, params, tokens, edits=edits).outputs)


def counts(name):
    model, params = opened(name)
    return {layer: z.shape[2] for layer, z in capture.run(model, params, TOKENS, sites=['z']).values['z'].items()}


@pytest.mark.parametrize('name', [*THREE, *RECURRENT])
def test_a_sweep_is_a_loop_over_heads(name):
    model, params = opened(name)
    found = ablate.ablate_heads(model, params, TOKENS, metric, kind='zero', batch_size=3)
    assert found.layers == (0, 1)
    heads = counts(name)
    scales = {('z', layer): Edit(scale=jnp.ones((1, 1, n, 1))) for layer, n in heads.items()}
    before = edited(name, metric, TOKENS, scales)
    np.testing.assert_allclose(found.before, before, atol=1e-5)
    for layer, count in heads.items():
        for head in range(count):
            silent = {('z', layer): Edit(scale=scales['z', layer].scale.at[:, :, head].set(0))}
            after = edited(name, metric, TOKENS, scales | silent)
            np.testing.assert_allclose(found.at(layer, head), after - before, atol=1e-4)
        assert np.all(np.isnan(found.values[layer, count:]))


@pytest.mark.parametrize('name', ['scanned', 'mamba'])
def test_mean_ablation_leaves_padding_out_and_is_the_mean_of_real_tokens(name):
    model, params = opened(name)
    z = capture.run(model, params, TOKENS, sites=['z']).values['z']
    fill = ablate.prepare(model, params, TOKENS).fill
    for layer, value in z.items():
        np.testing.assert_allclose(fill[layer][0, 0], value.mean((0, 1)), atol=1e-5)
    rows, context = padded(TOKENS)
    behind = ablate.prepare(model, params, rows.at[:, 0].set(3), context=context).fill
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), behind, fill)


@pytest.mark.slow
def test_the_mean_of_an_encoder_is_over_the_real_tokens_of_the_source():
    sizes = dict(layers=1, read_in='tokens', input_size=11, mixer=(SoftmaxConfig(),), remat='none')
    encoder = EncoderConfig(**sizes | dict(mixer=(SoftmaxConfig(causal=False),)), pooler=None, read_out=False)
    decoder = DecoderConfig(**sizes, output_size=11, cross=CrossAttentionConfig())
    cfg = EncoderDecoderConfig(width=32, encoder=encoder, decoder=decoder)
    model = cfg.make()
    source, given = padded(OTHER)
    rows, own = padded(TOKENS, left=0, right=3)  # as many tokens: which side a layer is of must be known
    context = Context(segments=own.segments, source=source, source_segments=given.segments)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), rows, context))['params']
    fill = ablate.prepare(model, params, rows, context=context).fill
    z = capture.run(model, params, rows, sites=['z'], context=context).values['z']
    np.testing.assert_allclose(fill[0][0, 0], z[0][:, 2:9].mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(fill[1][0, 0], z[1][:, :7].mean((0, 1)), atol=1e-5)


def test_resampled_values_occur_at_real_tokens_and_nowhere_else():
    model, params = opened('scanned')
    rows, context = padded(TOKENS)
    fill = ablate.prepare(model, params, rows, kind='resample', key=jax.random.key(0), context=context).fill
    z = capture.run(model, params, TOKENS, sites=['z']).values['z']
    for layer, value in z.items():
        real, drawn = (np.asarray(x).reshape(-1, x.shape[2] * x.shape[3]) for x in (value, fill[layer]))
        nearest = np.abs(drawn[:, None] - real[None]).max(-1)
        assert nearest.min(1).max() < 1e-5 and len(set(nearest.argmin(1).tolist())) > 5
    other = ablate.prepare(model, params, rows, kind='resample', key=jax.random.key(1), context=context).fill
    assert np.abs(other[0] - fill[0]).max() > 1e-3


@pytest.mark.parametrize('name', ['hybrid', pytest.param('scanned', marks=pytest.mark.slow)])
def test_uniform_is_a_head_without_queries(name):
    model, params = opened(name)
    found = ablate.ablate_heads(model, params, TOKENS, metric, kind='uniform')
    assert found.layers == ((1,) if name == 'hybrid' else (0, 1))
    apply = jax.jit(lambda params: metric(model.apply({'params': params}, TOKENS)[0]))
    for layer in found.layers:
        (group, slot), repeat = model.cfg.layer_sites()[layer]
        for head in range(4):
            blind = jax.tree.map(lambda leaf: leaf, params)
            kernel = blind[group][slot]['mixer']['q_proj']['kernel']
            blind[group][slot]['mixer']['q_proj']['kernel'] = kernel.at[repeat, :, head].set(0)
            np.testing.assert_allclose(found.at(layer, head), apply(blind) - apply(params), atol=1e-4)
    edits = ablate.head_edits(model, params, TOKENS, [(1, 2)], kind='uniform')
    pattern = capture.run(model, params, TOKENS, sites=['pattern'], edits=edits).at('pattern', 1)
    uniform = jnp.tril(jnp.ones((7, 7))) / jnp.arange(1, 8)[:, None]
    np.testing.assert_allclose(pattern[:, 2], jnp.broadcast_to(uniform, (2, 7, 7)), atol=1e-6)
    assert np.abs(pattern[0, 1] - uniform).max() > 1e-2


@pytest.mark.parametrize('kind', ['uniform', pytest.param('zero', marks=pytest.mark.slow)])
def test_padding_changes_no_effect(kind):
    model, params = opened('scanned')
    rows, context = padded(TOKENS, left=0)
    found = ablate.ablate_heads(model, params, rows, lambda y: metric(y[:, :7]), kind=kind, context=context)
    plain = ablate.ablate_heads(model, params, TOKENS, metric, kind=kind)
    np.testing.assert_allclose(found.values, plain.values, atol=1e-4)


@pytest.mark.parametrize('name', ['scanned', pytest.param('mamba', marks=pytest.mark.slow)])
def test_behind_a_prefix_the_tokens_of_the_call_are_silenced(name):
    model, params = opened(name)
    prefix = capture.run(model, params, TOKENS[:, :4], state=model.cfg.init_state(2, 8)).state
    found = ablate.ablate_heads(model, params, TOKENS[:, 4:], metric, kind='zero', state=prefix)
    late = (jnp.arange(7) >= 4)[None, :, None, None]
    one = lambda layer, head: {
        ('z', n): Edit(value=jnp.zeros(()), mask=late & (jnp.arange(count) == head)[None, None, :, None] & (n == layer))
        for n, count in counts(name).items()
    }
    for layer, count in counts(name).items():
        for head in {0, count - 1}:
            change = edited(name, metric, TOKENS, one(layer, head)) - edited(name, metric, TOKENS, one(9, 0))
            np.testing.assert_allclose(found.at(layer, head), change, atol=1e-4)


@pytest.mark.slow
def test_behind_a_prefix_uniform_heads_look_at_it_too():
    model, params = opened('scanned')
    prefix = capture.run(model, params, TOKENS[:, :4], state=model.cfg.init_state(2, 8)).state
    found = ablate.ablate_heads(model, params, TOKENS[:, 4:], metric, kind='uniform', state=prefix)
    late = (jnp.arange(7) >= 4)[None, None, :, None]
    for layer, head in ((0, 0), (1, 3)):
        flat = late & (jnp.arange(4) == head)[None, :, None, None]
        edits = {('scores', layer): Edit(value=jnp.zeros(()), mask=flat)}
        np.testing.assert_allclose(
            found.before + found.at(layer, head), edited('scanned', metric, TOKENS, edits), atol=1e-4
        )


def test_a_second_sweep_compiles_nothing():
    model, params = opened('scanned')
    sweep = lambda tokens: ablate.ablate(
        model, params, tokens, metric_at_five, kind='zero', site='mlp_out', axis='layer'
    )
    first = sweep(TOKENS)
    programs = interventions._measured._cache_size()
    assert np.abs(sweep(OTHER).values - first.values).max() > 1e-4 and interventions._measured._cache_size() == programs


def test_layers_and_neurons_are_parts_too():
    model, params = opened('scanned')
    found = ablate.ablate(model, params, TOKENS, metric, kind='zero', site='mlp_act', axis='unit', layers=[1])
    assert found.layers == (1,) and found.values.shape == (1, 128)
    kernel = params['body']['block_0']['feed_forward']['out_proj']['kernel']
    cut = jax.tree.map(lambda leaf: leaf, params)
    cut['body']['block_0']['feed_forward']['out_proj']['kernel'] = kernel.at[1, 77].set(0)
    after = metric(model.apply({'params': cut}, TOKENS)[0])
    np.testing.assert_allclose(found.at(1, 77), after - found.before, atol=1e-5)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (dict(kind='men'), "kind='men' must be one of zero, mean, resample, uniform"),
        (dict(kind='resample'), "kind='resample' needs a key"),
        (dict(kind='uniform', site='mlp_out', axis='layer'), "kind='uniform' is of heads"),
        (dict(site='pattern'), "kind='mean' is over tokens, but site 'pattern' has pairs"),
        (dict(site='embed', axis='layer'), "site 'embed' is in no layer"),
        (dict(heads=[(1, 4)]), r'head \(1, 4\): no such head, layer 1 has 4 \(0 .. 3\)'),
        (dict(heads=[(2, 0)]), r"head \(2, 0\): site 'z' exists at layers \[0, 1\]"),
    ],
)
def test_wrong_parts_are_named(call, message):
    model, params = opened('scanned')
    with pytest.raises(ValueError, match=message):
        ablate.head_edits(model, params, TOKENS, **{'heads': [(0, 0)]} | call)


def test_a_model_without_patterns_has_no_uniform_heads():
    model, params = opened('mamba')
    with pytest.raises(ValueError, match="no site 'scores' in this model"):
        ablate.ablate_heads(model, params, TOKENS, metric, kind='uniform')
