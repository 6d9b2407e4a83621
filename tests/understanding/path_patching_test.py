"""Path patching: the identities that hold exactly, on every form of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.mixers import SoftmaxConfig
from jattn.models import DecoderConfig
from jattn.taps import Edit
from jattn.understanding import capture, lens, patch
from jattn.understanding.path_patching import LOGITS, patch_paths
from tests.parameters import perturbed_params
from tests.understanding.opened import OTHER, RECURRENT, THREE, TOKENS, metric, opened, padded

SLOW = pytest.mark.slow


@pytest.mark.parametrize('name', [*THREE, 'mamba'])
def test_the_path_through_all_that_follows_is_activation_patching(name):
    """All of the stream behind the first layer, with its feed-forward recomputed."""
    model, params = opened(name)
    receivers = [('resid_post', 0, None)]
    found = patch_paths(model, params, TOKENS, OTHER, metric, receivers, through_feed_forward=True)
    whole = patch.patch(model, params, OTHER, TOKENS, metric, site='z', axis='head')
    np.testing.assert_allclose(found.before, whole.before, atol=1e-5)
    np.testing.assert_allclose(found.values[0], whole.values[0], atol=1e-4)
    assert np.abs(np.nan_to_num(found.values[0])).max() > 1e-2


@pytest.mark.parametrize('name', ['hybrid', *RECURRENT])
def test_a_sender_behind_its_receiver_has_no_effect_at_all(name):
    model, params = opened(name)
    found = patch_paths(model, params, TOKENS, OTHER, metric, [('z', 0, None)], senders=[(1, 0), (0, 0)])
    assert found.at(1, 0) == 0 and abs(found.at(0, 0)) > 1e-4
    alone = patch_paths(model, params, TOKENS, OTHER, metric, [('z', 0, None)], senders=[(1, 0)])
    assert alone.values.tolist() == [[0]] and alone.before == found.before


def test_the_direct_path_is_the_stream_with_what_the_sender_adds():
    model, params = opened('scanned')
    found = patch_paths(model, params, TOKENS, OTHER, metric)
    mine, other = (capture.run(model, params, tokens, sites=['z', 'resid_post']) for tokens in (TOKENS, OTHER))
    stream = mine.at('resid_post', 1)[:, -1]
    for layer, head in np.ndindex(2, 4):
        kernel = params['body']['block_0']['mixer']['o_proj']['kernel'][layer, head]
        added = (other.at('z', layer) - mine.at('z', layer))[:, -1, head] @ kernel
        after = metric(lens.read_out(model, params, stream + added)[:, None])
        np.testing.assert_allclose(found.at(layer, head), after - found.before, atol=1e-4)


def test_the_direct_path_is_direct_attribution_up_to_the_last_norm():
    """Zeros in, zeros in every head: the path takes away what the head writes, and the norm's scale s changes.

    m' = (s / s') (m - direct effect)
    """
    mixer = SoftmaxConfig(heads=4)
    cfg = DecoderConfig(
        width=32, layers=2, mixer=(mixer,), read_in='linear', input_size=3, output_size=11, remat='none'
    )
    vectors = jax.random.normal(jax.random.key(3), (1, 7, 3))
    model, params = cfg.make(), perturbed_params(cfg, vectors, 0.1)
    found = patch_paths(model, params, vectors, jnp.zeros_like(vectors), metric)
    direction = jnp.zeros((1, 11)).at[0, 3].set(1).at[0, 5].set(-1)
    direct = lens.direct_effects(model, params, vectors, direction)
    run = capture.run(model, params, vectors, sites=['z', 'resid_post'])
    stream, size = run.at('resid_post', 1)[0, -1], lambda x: jnp.sqrt(jnp.mean(x**2) + cfg.norm_epsilon)
    for layer, head in np.ndindex(2, 4):
        kernel = params['body']['block_0']['mixer']['o_proj']['kernel'][layer, head]
        without = stream - run.at('z', layer)[0, -1, head] @ kernel
        expected = size(stream) / size(without) * (direct.outputs[0] - direct.heads[layer, 0, head])
        np.testing.assert_allclose(found.before + found.at(layer, head), expected, rtol=1e-3, atol=1e-4)


def test_direct_effects_of_all_heads_add_up_where_nothing_is_normed():
    """One layer of heads alone, prompts that end alike; norms whose epsilon is huge multiply by a constant, here 1."""
    cfg = DecoderConfig(
        width=32,
        layers=1,
        mixer=(SoftmaxConfig(heads=4),),
        feed_forward=None,
        read_in='tokens',
        input_size=11,
        output_size=11,
        norm_epsilon=1e8,
        remat='none',
    )
    model, params = cfg.make(), perturbed_params(cfg, TOKENS, 0.1)
    is_scale = lambda path: getattr(path[-1], 'key', None) == 'scale'
    params = jax.tree.map_with_path(lambda path, x: jnp.full_like(x, 1e4) if is_scale(path) else x, params)
    other = OTHER.at[:, -1].set(TOKENS[:, -1])
    found = patch_paths(model, params, TOKENS, other, metric)
    whole = metric(capture.run(model, params, other).outputs) - found.before
    assert abs(whole) > 1e-2
    np.testing.assert_allclose(found.values.sum(), whole, rtol=1e-4)


@pytest.mark.parametrize('component', ['q', pytest.param('v', marks=SLOW)])
def test_a_query_receives_what_the_sender_adds_and_nothing_else(component):
    model, params = opened('unrolled')
    found = patch_paths(model, params, TOKENS, OTHER, metric, [(component, 1, 1)], senders=[(0, 2)])
    other = capture.run(model, params, OTHER, sites=['z']).at('z', 0)
    sender = {('z', 0): Edit(value=other, mask=(jnp.arange(4) == 2)[None, None, :, None])}
    mine = capture.run(model, params, TOKENS, sites=['attn_out'])
    added = capture.run(model, params, TOKENS, sites=['attn_out'], edits=sender).at('attn_out', 0) - mine.at(
        'attn_out', 0
    )
    arrived = capture.run(model, params, TOKENS, sites=[component], edits={('resid_pre', 1): Edit(add=added)})
    value = arrived.at(component, 1)
    mask = (jnp.arange(value.shape[2]) == 1)[None, None, :, None]
    after = capture.run(model, params, TOKENS, edits={(component, 1): Edit(value=value, mask=mask)}).outputs
    np.testing.assert_allclose(found.at(0, 2), metric(after) - metric(mine.outputs), atol=1e-5)
    assert abs(found.at(0, 2)) > 1e-4


def test_two_receivers_are_patched_together_and_positions_are_obeyed():
    model, params = opened('hybrid')
    at = lambda *places: jnp.zeros((2, 7), bool).at[:, jnp.array(places)].set(True)
    run = lambda receivers, positions: patch_paths(
        model, params, TOKENS, OTHER, metric, receivers, senders=[(0, 0)], positions=positions
    ).at(0, 0)
    everywhere = run([('q', 1, 0), ('k', 1, 0), *LOGITS], at(*range(7)))
    # The outputs are wholly overwritten, and the direct path is seen at the last place alone.
    np.testing.assert_allclose(everywhere, run([('q', 1, 0), ('k', 1, 0), *LOGITS], at(6)), atol=1e-5)
    assert abs(run([('q', 1, 0), ('k', 1, 0), *LOGITS], at(2))) < 1e-5


def test_equal_runs_have_no_effects_and_padding_has_no_say():
    model, params = opened('scanned')
    receivers = [('q', 1, 0), ('v', 1, 1)]
    plain = patch_paths(model, params, TOKENS, OTHER, metric, receivers)
    np.testing.assert_allclose(patch_paths(model, params, TOKENS, TOKENS, metric, receivers).values, 0, atol=1e-5)
    (rows, context), (others, _) = padded(TOKENS, left=0), padded(OTHER, left=0)
    last = lambda y: metric(y[:, :7])
    found = patch_paths(model, params, rows, others.at[:, 7].set(5), last, receivers, context=context)
    np.testing.assert_allclose(found.values, plain.values, atol=1e-4)


@pytest.mark.slow
def test_behind_a_prefix_effects_are_those_of_the_whole_row():
    model, params = opened('hybrid')
    other = OTHER.at[:, :3].set(TOKENS[:, :3])
    receivers = [('q', 1, 0), ('v', 1, 1)]
    whole = patch_paths(model, params, TOKENS, other, metric, receivers)
    prefix = capture.run(model, params, TOKENS[:, :3], state=model.cfg.init_state(2, 7)).state
    found = patch_paths(model, params, TOKENS[:, 3:], other[:, 3:], metric, receivers, state=prefix)
    np.testing.assert_allclose(found.values, whole.values, atol=1e-4)


@pytest.mark.parametrize(
    ('receivers', 'message'),
    [
        ([], r'receivers=\(\) must name at least one'),
        ([('q', 5, 0)], r"receiver \('q', 5, 0\): site 'q' exists at layers \[0, 1\]"),
        ([('k', 1, 2)], r"receiver \('k', 1, 2\): no such head, the site has 2 in layer 1"),
        ([('mlp_act', 1, 0)], r'no such head, the site has 0'),
        ([('que', 1, 0)], "no site 'que' in this model"),
    ],
)
def test_wrong_receivers_are_named(receivers, message):
    model, params = opened('scanned')
    with pytest.raises(ValueError, match=message):
        patch_paths(model, params, TOKENS, OTHER, metric, receivers)
