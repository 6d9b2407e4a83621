"""Attention rollout: a product of mixing matrices by hand; padding and recurrent layers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.understanding import capture
from jattn.understanding.rollout import roll_out, rollout
from tests.understanding.opened import THREE, TOKENS, opened, padded


@pytest.mark.parametrize('name', [THREE[0], THREE[2]])
def test_maps_are_products_of_the_layers(name):
    model, params = opened(name)
    maps = roll_out(model, params, TOKENS)
    pattern = np.asarray(capture.run(model, params, TOKENS, sites=['pattern']).stack('pattern'))
    mixed = 0.5 * np.eye(7) + 0.5 * pattern.mean(axis=2)
    np.testing.assert_allclose(maps[0], mixed[0], atol=1e-5)
    np.testing.assert_allclose(maps[1], mixed[1] @ mixed[0], atol=1e-5)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-5)
    assert np.abs(np.triu(maps, 1)).max() == 0


def test_the_residual_share_goes_from_attention_alone_to_nothing_moved():
    pattern = jnp.tile(jnp.tril(jnp.ones((4, 4))) / jnp.arange(1, 5)[:, None], (2, 1, 3, 1, 1))
    np.testing.assert_allclose(rollout(pattern, 0.0)[0, 0], pattern[0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(rollout(pattern, 1.0)[1, 0], np.eye(4), atol=1e-6)


def test_padding_has_no_say_and_keeps_itself():
    model, params = opened('scanned')
    rows, context = padded(TOKENS)
    maps = roll_out(model, params, rows, context=context)
    np.testing.assert_allclose(maps[:, :, 2:9, 2:9], roll_out(model, params, TOKENS), atol=1e-5)
    np.testing.assert_allclose(maps[:, :, 0], np.broadcast_to(np.eye(10)[0], (2, 2, 10)), atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'layers'), [('hybrid', r'\[0\] .* have: \[1\]'), ('mamba', r'\[0, 1\] .* have: \[\]')]
)
def test_layers_without_patterns_are_named(name, layers):
    model, params = opened(name)
    with pytest.raises(ValueError, match=f'layers {layers}'):
        roll_out(model, params, TOKENS)


def test_what_is_no_pattern_is_named():
    with pytest.raises(ValueError, match='context.source brings tokens of another row in'):
        roll_out(*opened('scanned'), TOKENS, context=Context(source=TOKENS))
    with pytest.raises(ValueError, match='queries and keys must be the same tokens'):
        rollout(jnp.ones((1, 1, 1, 2, 3)))
    with pytest.raises(ValueError, match='residual=2 must be between 0 and 1'):
        rollout(jnp.ones((1, 1, 1, 2, 2)), 2)
