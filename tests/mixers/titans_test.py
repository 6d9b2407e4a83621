"""Titans' three architectures: nothing leaks, not even what the printed MAC lets through; all see persistent tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers import MIXERS
from jattn.nn.cache import View
from jattn.nn.windowed_attention import windowed_attention
from jattn.ops import attention

NAMES = ('titans_mac', 'titans_mag', 'titans_mal')


def build(name, **changes):
    cfg = dataclasses.replace(MIXERS[name].tiny(), **changes)
    x = jax.random.normal(jax.random.key(1), (2, 24, 32))
    return cfg, x, jax.jit(cfg.make().init)(jax.random.key(0), x)


@pytest.mark.parametrize('name', NAMES)
def test_outputs_before_a_changed_token_are_bit_identical_inside_a_segment_too(name):
    cfg, x, variables = build(name)
    run = jax.jit(cfg.make().apply)
    y, _ = run(variables, x)
    for j in (3, 5, 13):  # segments are 8, chunks 4: inside both
        other, _ = run(variables, x.at[:, j].add(1.0))
        np.testing.assert_array_equal(other[:, :j], y[:, :j])
        assert np.any(other[:, j] != y[:, j])


def test_the_printed_mask_of_mac_would_leak():
    """h_j is made of x_j: a token that sees all of its segment's h sees the future."""
    _, x, variables = build('titans_mac')
    params = nn.unbox(variables['params'])['segment']
    q = jnp.einsum('btd,dhk->bthk', x[:, :8], params['retrieve_proj']['kernel'])
    moved = jnp.einsum('btd,dhk->bthk', x.at[:, 7].add(1.0)[:, :8], params['retrieve_proj']['kernel'])
    assert np.all(q[:, :7] == moved[:, :7]) and np.any(q[:, 7] != moved[:, 7])
    printed = jnp.ones((8, 8), bool)  # "all memory visible"
    ours = jnp.tril(printed)
    assert printed[0, 7] and not ours[0, 7]


@pytest.mark.parametrize('name', NAMES)
def test_persistent_tokens_matter_to_every_document_and_to_no_position(name):
    cfg, x, variables = build(name)
    run = jax.jit(cfg.make().apply)
    segments = jnp.array([[1] * 8 + [2] * 16, [3] * 24], jnp.int32)
    params = nn.unbox(variables['params'])
    owner = params['segment'] if name == 'titans_mac' else params
    y, _ = run({'params': params}, x, Context(segments=segments))
    owner['persistent'] = owner['persistent'] + 0.5
    other, _ = run({'params': params}, x, Context(segments=segments))
    assert np.all(np.any(np.abs(other - y) > 1e-6, axis=-1))
    late = Context(segments=segments, positions=jnp.broadcast_to(jnp.arange(24)[None] + 100, (2, 24)))
    shifted, _ = run({'params': params}, x, late)
    np.testing.assert_allclose(shifted, other, atol=2e-4)


def test_a_window_beside_no_persistent_key_is_plain_windowed_attention():
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 23, 3, 8)) for key in keys)
    segments = jnp.array([[1] * 10 + [2] * 13, [0] * 3 + [4] * 20], jnp.int32)
    positions = jnp.where(segments == 2, jnp.arange(23)[None] - 10, jnp.arange(23)[None])
    for window in (1, 4, 30):
        view = View(q, k, v, (segments,) * 2, (positions,) * 2)
        expected = attention(
            q, k, v, causal=True, window=window, segments=segments, positions=positions, implementation='reference'
        )
        np.testing.assert_allclose(windowed_attention(view, window, q, None), expected, atol=1e-5)


def test_a_persistent_key_is_one_more_key_of_every_query():
    q, k, v = (jax.random.normal(key, (1, 9, 2, 4)) for key in jax.random.split(jax.random.key(0), 3))
    always = tuple(jax.random.normal(key, (1, 3, 2, 4)) for key in jax.random.split(jax.random.key(1), 2))
    z = windowed_attention(View(q, k, v), 100, q, always)
    scores = jnp.einsum('bthk,bshk->bhts', q, jnp.concatenate([always[0], k], axis=1)) / 2
    mask = jnp.concatenate([jnp.ones((9, 3), bool), jnp.tril(jnp.ones((9, 9), bool))], axis=1)
    pattern = jax.nn.softmax(jnp.where(mask[None, None], scores, -jnp.inf), axis=-1)
    expected = jnp.einsum('bhts,bshv->bthv', pattern, jnp.concatenate([always[1], v], axis=1))
    np.testing.assert_allclose(z, expected, atol=1e-5)


@pytest.mark.parametrize('memory', ['gated_deltanet', 'yaad', 'mesa'])
def test_any_memory_may_stand_in(memory):
    inner = dataclasses.replace(MIXERS[memory].tiny(), key_width=1.0, value_width=1.0)
    cfg, x, variables = build('titans_mag', memory=inner, **({'persistent': 0} if memory == 'mesa' else {}))
    y, _ = jax.jit(cfg.make().apply)(variables, x)
    assert np.all(np.isfinite(y))
