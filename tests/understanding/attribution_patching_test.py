"""Attribution: the slope of the true effect, exact where the metric is linear, in one forward and backward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.flops import count_flops
from jattn.understanding import ablate, capture, patch
from jattn.understanding.attribution_patching import _pulled, attribute, attribute_replacement, gradients
from jattn.understanding.interventions import sweep
from tests.understanding.opened import OTHER, RECURRENT, THREE, TOKENS, metric, opened, padded

SLOW = pytest.mark.slow


def toward(name, step):
    """The replacement of heads by a small step from their own values toward those of the other tokens."""
    model, params = opened(name)
    mine, other = (capture.run(model, params, tokens, sites=['z']).values['z'] for tokens in (TOKENS, OTHER))
    replacement = ablate.prepare(model, params, TOKENS, kind='zero')
    return replacement.replace(fill={n: mine[n] + step * (other[n] - mine[n]) for n in mine})


@pytest.mark.parametrize('name', [*THREE, *RECURRENT])
def test_it_is_the_slope_of_the_true_effect(name):
    model, params = opened(name)
    found = attribute(model, params, OTHER, TOKENS, metric)
    up, down = (sweep(model, params, TOKENS, metric, toward(name, step)).values for step in (0.02, -0.02))
    np.testing.assert_allclose(found.values, (up - down) / 0.04, rtol=3e-2, atol=3e-3 * np.nanmax(np.abs(found.values)))


def test_it_is_exact_where_the_metric_is_linear():
    """Behind the last layer and without a norm's curvature: at the logits."""
    model, params = opened('scanned')
    mine, slopes = gradients(model, params, TOKENS, metric, ('logits',))[1:]
    other = capture.run(model, params, OTHER).outputs
    change = jnp.sum((other - mine['logits'][None]) * slopes['logits'][None])
    np.testing.assert_allclose(change, metric(other) - metric(mine['logits'][None]), rtol=1e-4)


def test_it_agrees_with_true_patching_over_heads_and_positions():
    model, params = opened('scanned')
    near = TOKENS.at[:, 3].set((TOKENS[:, 3] + 1) % 11)
    for site, axis in (('z', 'head'), ('resid_post', 'position')):
        screened = attribute(model, params, near, TOKENS, metric, site=site, axis=axis)
        true = patch.patch(model, params, near, TOKENS, metric, site=site, axis=axis)
        assert screened.layers == true.layers and screened.values.shape == true.values.shape
        assert np.corrcoef(screened.values.reshape(-1), true.values.reshape(-1))[0, 1] > 0.5
        np.testing.assert_allclose(screened.before, true.before, rtol=1e-5)
    third = toward('scanned', 0.3)  # the smaller the change, the better
    screened = attribute_replacement(model, params, TOKENS, metric, third).values
    true = sweep(model, params, TOKENS, metric, third).values
    assert np.corrcoef(screened.reshape(-1), true.reshape(-1))[0, 1] > 0.9


def test_all_heads_cost_one_forward_and_backward_pass():
    model, params = opened('unrolled')
    arrays = (params, TOKENS, capture.Context(), {}, None, [])
    own = count_flops(lambda arrays: _pulled.__wrapped__(model, metric, ('z',), (), arrays), arrays)
    plain = count_flops(jax.value_and_grad(lambda params: metric(model.apply({'params': params}, TOKENS)[0])), params)
    assert own <= plain


def test_ablations_are_attributed_without_a_sweep_and_padding_has_no_say():
    model, params = opened('scanned')
    plain = attribute_replacement(model, params, TOKENS, metric, ablate.prepare(model, params, TOKENS))
    true = ablate.ablate_heads(model, params, TOKENS, metric)
    assert np.corrcoef(plain.values.reshape(-1), true.values.reshape(-1))[0, 1] > 0.5
    rows, context = padded(TOKENS, left=0)
    silent = ablate.prepare(model, params, rows, context=context)
    behind = attribute_replacement(model, params, rows, lambda y: metric(y[:, :7]), silent, context=context)
    np.testing.assert_allclose(behind.values, plain.values, atol=1e-4)


@pytest.mark.parametrize('name', ['scanned', pytest.param('mamba', marks=SLOW)])
def test_behind_a_prefix_attributions_are_those_of_the_whole_row(name):
    model, params = opened(name)
    other = OTHER.at[:, :3].set(TOKENS[:, :3])
    whole = attribute(model, params, other, TOKENS, metric)
    prefix = capture.run(model, params, TOKENS[:, :3], state=model.cfg.init_state(2, 7)).state
    found = attribute(model, params, other[:, 3:], TOKENS[:, 3:], metric, state=prefix)
    np.testing.assert_allclose(found.values, whole.values, atol=1e-3)


@pytest.mark.parametrize(
    'site', ['scores', 'pattern', pytest.param('q', marks=SLOW), pytest.param('mlp_act', marks=SLOW)]
)
def test_every_site_has_its_attribution(site):
    model, params = opened('hybrid')
    axis = 'unit' if site == 'mlp_act' else 'head'
    found = attribute(model, params, OTHER, TOKENS, metric, site=site, axis=axis)
    whole = attribute(model, params, OTHER, TOKENS, metric, site=site, axis='layer')
    assert np.all(np.isfinite(found.values)) and found.layers == ((0, 1) if site == 'mlp_act' else (1,))
    np.testing.assert_allclose(found.values.sum(axis=1), whole.values[:, 0], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_attributed_is_named():
    model, params = opened('hybrid')
    with pytest.raises(ValueError, match="kind='uniform' has no value"):
        silent = ablate.prepare(model, params, TOKENS, kind='uniform')
        attribute_replacement(model, params, TOKENS, metric, dataclasses.replace(silent))
    with pytest.raises(ValueError, match="site 'embed' is in no layer"):
        attribute(model, params, TOKENS, OTHER, metric, site='embed', axis='layer')
