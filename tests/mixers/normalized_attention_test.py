"""Normalised attention against its quadratic form, and what its normaliser may and may not do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers.normalized_attention import NormalizedAttentionConfig
from jattn.taps import Edit
from tests.mixers.packed import assert_calls_are, parameters

B, T, H = 2, 21, 4
X = np.asarray(jax.random.normal(jax.random.key(0), (B, T, 32)))
PACKED = np.array([[0] * 2 + [3] * 9 + [0] + [4] * 9, [1] * 5 + [2] * 16], np.int32)
CFG = NormalizedAttentionConfig(width=32, key_dim=16, chunk=8)
ETA = {'exp': np.exp, 'softplus': lambda z: np.log1p(np.exp(z)), 'sigmoid': lambda z: 1 / (1 + np.exp(-z))}


@functools.cache
def run(cfg):
    return jax.jit(functools.partial(cfg.make().apply, mutable=['taps']))


def quadratic(p, x, segments, eta):
    """All pairs of tokens of a document, in float64."""
    p, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p), np.asarray(x, np.float64)
    q, k, v, z = (
        np.tensordot(x, p[f'{name}_proj']['kernel'], 1) + p[f'{name}_proj'].get('bias', 0)
        for name in ('q', 'k', 'v', 'eta')
    )
    seen = np.tril(segments[:, :, None] == segments[:, None]) & (segments > 0)[:, :, None]
    weights = np.einsum('bthk,bshk->bhts', q, k) * seen[:, None] / np.moveaxis(eta(z), 2, 1)[..., None]
    return np.einsum('bhts,bshv,hvd->btd', weights, v, p['o_proj']['kernel'])


@pytest.mark.parametrize('normaliser', ETA)
def test_it_is_its_quadratic_form(normaliser):
    cfg = dataclasses.replace(CFG, normaliser=normaliser, use_bias=normaliser != 'softplus')
    p = parameters(cfg)
    with jax.enable_x64(True):
        (y, _), _ = run(cfg)({'params': p}, X.astype(np.float64), Context(segments=jnp.array(PACKED)))
    np.testing.assert_allclose(y, quadratic(p, X, PACKED, ETA[normaliser]), atol=1e-10)


def test_any_split_of_packed_rows_gives_the_same_outputs():
    variables = {'params': parameters(CFG)}
    (whole, _), _ = run(CFG)(variables, X, Context(segments=jnp.array(PACKED)))
    assert_calls_are(whole, CFG, variables, X, PACKED, size=7, atol=1e-4)


def test_the_normaliser_of_a_token_touches_no_other_output():
    """It divides the output of its own token; the sum that later tokens read does not know of it."""
    variables = {'params': parameters(CFG)}
    _, captured = run(CFG)(variables, X)
    scale = jnp.ones((B, T, H)).at[:, 5].set(4.0)
    _, edited = run(CFG)(variables | {'edits': {'gates': Edit(scale=scale)}}, X)
    expected = np.asarray(captured['taps']['z']).copy()
    expected[:, 5] /= 4
    np.testing.assert_allclose(edited['taps']['z'], expected, rtol=1e-6)


def test_weights_are_signed_and_do_not_sum_to_one():
    """Values of 1 read back the sum of a token's weights."""
    variables = {'params': parameters(CFG), 'edits': {'v': Edit(value=jnp.ones(()))}}
    sums = np.asarray(run(CFG)(variables, X)[1]['taps']['z'])[..., 0]
    assert sums.min() < -0.5 and sums.max() > 1.5


def test_the_ratio_of_two_normalisers_that_would_overflow_does_no_harm():
    """eta_{t-1} / eta_t, the transition of the recurrent form, is exp(100) here; the sum comes through as it is."""
    p = parameters(CFG)
    z = np.where(np.arange(T) % 2, 50.0, -50.0).astype(np.float32)
    variables = {'params': p, 'edits': {'gates': Edit(value=jnp.exp(z)[None, :, None])}}
    out = run(CFG)(variables, X)[1]['taps']
    plain = run(CFG)({'params': p, 'edits': {'gates': Edit(value=jnp.ones(()))}}, X)[1]['taps']
    np.testing.assert_allclose(out['z'], np.asarray(plain['z']) / np.exp(z)[None, :, None, None], rtol=1e-5)


def test_at_its_initial_values_a_sum_over_many_tokens_is_small():
    """The maps start small whatever the width; nothing else bounds the sum, which grows with the tokens."""
    cfg, x = NormalizedAttentionConfig(width=128), jax.random.normal(jax.random.key(2), (1, 512, 128))
    variables = nn.unbox(jax.jit(cfg.make().init)(jax.random.key(1), x[:, :1]))
    assert np.std(variables['params']['q_proj']['kernel']) == pytest.approx(0.02, rel=0.05)
    z = np.asarray(run(cfg)(variables, x)[1]['taps']['z'])
    assert 0.3 < z[:, -64:].std() < 10


def test_an_unknown_normaliser_is_named():
    with pytest.raises(ValueError, match="normaliser='relu' must be one of exp, softplus, sigmoid"):
        NormalizedAttentionConfig(normaliser='relu')
