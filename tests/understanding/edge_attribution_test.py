"""Edge attribution: slopes of true edge effects, sums that hold exactly, on every form of a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.taps import Edit
from jattn.understanding import capture
from jattn.understanding.attribution_patching import gradients
from jattn.understanding.edge_attribution import attribute_edges
from tests.understanding.opened import OTHER, RECURRENT, TOKENS, metric, opened, padded

SLOW = pytest.mark.slow
FORMS = ('scanned', 'hybrid', *(pytest.param(name, marks=SLOW) for name in ('unrolled', 'parallel', 'sandwich')))


@functools.cache
def edges(name):
    model, params = opened(name)
    return attribute_edges(model, params, TOKENS, OTHER, metric)


def run(name, tokens=TOKENS, **kwargs):
    return capture.run(*opened(name), tokens, **kwargs)


def slope(name, reader, added):
    """The true slope of the metric when a reader alone reads `added` more, from a small step up and one down."""
    site, layer, head = reader

    @jax.jit
    def after(step):
        if head is None:
            site_read = 'resid_post' if site == 'logits' else site
            edits = {(site_read, 1 if layer is None else layer): Edit(add=step * added)}
        else:
            value = run(name, sites=[site], edits={('attn_in', layer): Edit(add=step * added)}).at(site, layer)
            edits = {(site, layer): Edit(value=value, mask=(jnp.arange(value.shape[2]) == head)[None, None, :, None])}
        return metric(run(name, edits=edits).outputs)

    return (after(0.03) - after(-0.03)) / 0.06


@pytest.mark.parametrize('name', FORMS)
def test_a_score_is_the_slope_of_the_true_effect_of_the_edge(name):
    found = edges(name)
    mine, other = (run(name, tokens, sites=['embed', 'mlp_out']) for tokens in (TOKENS, OTHER))
    embed = ('embed', None, None), other.at('embed') - mine.at('embed')
    mlp = ('mlp_out', 0, None), other.at('mlp_out', 0) - mine.at('mlp_out', 0)
    for (sender, added), reader in (
        (embed, ('q', 1, 2)),
        (mlp, ('q', 1, 2)),
        (mlp, ('k', 1, 1)),
        (embed, ('v', 1, 0)),
        (embed, ('mlp_in', 0, None)),
        (mlp, ('attn_in', 1, None)),
        (mlp, ('logits', None, None)),
    ):
        true = slope(name, reader, added)
        np.testing.assert_allclose(found.at(sender, reader), true, rtol=3e-2, atol=2e-3, err_msg=f'{sender} {reader}')


@pytest.mark.parametrize('name', ['scanned', *RECURRENT])
def test_heads_write_what_their_mixer_adds_and_read_what_it_reads(name):
    found = edges(name)
    heads = [sender for sender in found.senders if sender[:2] == ('z', 0)]
    mine, other = (run(name, tokens, sites=['attn_out']).at('attn_out', 0) for tokens in (TOKENS, OTHER))
    slopes = gradients(*opened(name), TOKENS, metric, ('attn_in', 'mlp_in'))[2]
    for site, layer in (('attn_in', 1), ('mlp_in', 0), ('mlp_in', 1)):
        whole = jnp.sum((other - mine) * slopes[site][layer])
        parts = sum(found.at(head, (site, layer, None)) for head in heads)
        np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=1e-4)
    if name == 'scanned':  # softmax reads by its queries, keys and values alone
        row = found.senders.index(('embed', None, None))
        parts = [n for n, (site, layer, _) in enumerate(found.readers) if site in 'qkv' and layer == 1]
        assert len(parts) == 4 + 2 + 2
        whole = found.at(found.senders[row], ('attn_in', 1, None))
        np.testing.assert_allclose(found.scores[row, jnp.array(parts)].sum(), whole, rtol=1e-3, atol=1e-4)


def test_what_comes_later_is_no_sender():
    found = edges('hybrid')
    assert np.isnan(found.at(('mlp_out', 0, None), ('attn_in', 0, None)))
    assert np.isnan(found.at(('z', 1, 0), ('q', 1, 0))) and not np.isnan(found.at(('z', 1, 0), ('mlp_in', 1, None)))
    assert ('q', 0, 0) not in found.readers and ('attn_in', 0, None) in found.readers
    ranked = found.ranked(sites=['q', 'k', 'v'])
    sizes = [abs(found.at(*edge)) for edge in ranked]
    assert sizes == sorted(sizes, reverse=True) and {reader[0] for _, reader in ranked} == {'q', 'k', 'v'}


def test_steps_average_the_gradients_between_the_two_runs():
    model, params = opened('scanned')
    found = attribute_edges(model, params, TOKENS, OTHER, metric, components=('q',), steps=2)
    mine, other = (run('scanned', tokens, sites=['embed', 'mlp_out']) for tokens in (TOKENS, OTHER))
    halfway = {'embed': Edit(value=(mine.at('embed') + other.at('embed')) / 2)}
    slopes = [gradients(model, params, TOKENS, metric, ('attn_in',), edits=edits)[2] for edits in (halfway, {})]
    mean = (slopes[0]['attn_in'][1] + slopes[1]['attn_in'][1]) / 2
    expected = jnp.sum((other.at('mlp_out', 0) - mine.at('mlp_out', 0)) * mean)
    np.testing.assert_allclose(found.at(('mlp_out', 0, None), ('attn_in', 1, None)), expected, rtol=1e-3)
    np.testing.assert_allclose(found.before, metric(mine.outputs), atol=1e-5)
    assert not any(site in 'kv' for site, _, _ in found.readers)


def test_padding_has_no_say():
    model, params = opened('scanned')
    (rows, context), (others, _) = padded(TOKENS, left=0), padded(OTHER, left=0)
    found = attribute_edges(model, params, rows, others.at[:, 7].set(5), lambda y: metric(y[:, :7]), context=context)
    np.testing.assert_allclose(found.scores, edges('scanned').scores, atol=1e-4)


@SLOW
def test_behind_a_prefix_scores_are_those_of_the_whole_row():
    model, params = opened('scanned')
    other = OTHER.at[:, :3].set(TOKENS[:, :3])
    whole = attribute_edges(model, params, TOKENS, other, metric)
    prefix = capture.run(model, params, TOKENS[:, :3], state=model.cfg.init_state(2, 7)).state
    found = attribute_edges(model, params, TOKENS[:, 3:], other[:, 3:], metric, state=prefix)
    np.testing.assert_allclose(found.scores, whole.scores, atol=1e-3)


def test_connected_edges_lead_from_the_read_in_to_the_outputs():
    """One strong way through a key, which heads 0 and 1 read, and a strong edge that leads nowhere."""
    found = edges('scanned')
    way = [
        (('embed', None, None), ('mlp_in', 0, None)),
        (('mlp_out', 0, None), ('k', 1, 0)),
        (('z', 1, 1), ('logits', None, None)),
    ]
    nowhere = (('z', 0, 3), ('v', 1, 1))
    scores = jnp.where(jnp.isnan(found.scores), jnp.nan, 0.01)
    for strength, (sender, reader) in enumerate([*way, nowhere], start=1):
        place = found.senders.index(sender), found.readers.index(reader)
        scores = scores.at[place].set(strength * (-1.0) ** strength)
    planted = found.replace(scores=scores)
    assert set(planted.connected(4)) == set(way)
    assert planted.connected(2) == [] and set(planted.ranked()[:4]) == {*way, nowhere}
    other = planted.replace(scores=scores.at[found.senders.index(('z', 1, 2)), -1].set(9.0))
    assert set(other.connected(5)) == set(way)  # head 2 reads the other key


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('post', {}, "blocks are of kind 'post'"),
        ('scanned', dict(steps=0), 'steps=0 must be at least 1'),
        ('scanned', dict(components=('gates',)), "no site 'gates' in this model"),
    ],
)
def test_what_has_no_edges_is_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        attribute_edges(*opened(name), TOKENS, OTHER, metric, **arguments)
