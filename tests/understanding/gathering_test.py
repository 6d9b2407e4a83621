"""Where attention gathers: received means, sinks and receivers by hand, on padded and packed rows and on models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.understanding import capture
from jattn.understanding.heads import received, receiver_kurtosis, score_gathering, sink_mass
from tests.understanding.opened import TOKENS, opened, padded

PATTERN = jnp.tril(jax.random.uniform(jax.random.key(0), (2, 3, 12, 12)))
PATTERN = PATTERN / PATTERN.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize('gap', [0, 1, 4])
def test_received_is_the_mean_over_the_queries_behind(gap):
    found = received(PATTERN, gap=gap)
    for key in range(12):
        queries = np.asarray(PATTERN)[:, :, key + gap :, key]
        if key + gap < 12:
            np.testing.assert_allclose(found[:, :, key], queries.mean(axis=-1), rtol=1e-5)
        else:
            assert np.all(np.isnan(found[:, :, key]))


def test_a_sink_takes_what_it_is_given():
    given = jnp.tril(jnp.ones((8, 8))).at[:, 0].add(8.0)
    given = (given / given.sum(axis=-1, keepdims=True))[None]
    expected = np.mean([9 / (t + 9) for t in range(1, 8)])
    np.testing.assert_allclose(sink_mass(given), [expected], rtol=1e-5)
    chosen = jnp.zeros(8, bool).at[jnp.array([0, 3])].set(True)
    both = np.mean([(9 + (t > 3)) / (t + 9) for t in range(1, 8)])
    np.testing.assert_allclose(sink_mass(given, chosen), [both], rtol=1e-5)


def test_documents_are_scored_by_themselves():
    """Two documents in a row, with padding: the mean over all queries of both."""
    blocks = (
        jnp.zeros((1, 11, 11)).at[:, 1:6, 1:6].set(PATTERN[0, :1, :5, :5]).at[:, 6:10, 6:10].set(PATTERN[1, :1, :4, :4])
    )
    segments = jnp.array([0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0])
    alone = sink_mass(PATTERN[0, :1, :5, :5]) * 4 + sink_mass(PATTERN[1, :1, :4, :4]) * 3
    np.testing.assert_allclose(sink_mass(blocks, segments=segments), alone / 7, rtol=1e-5)
    found = received(blocks, segments)
    np.testing.assert_allclose(found[:, 1:6], received(PATTERN[0, :1, :5, :5]), rtol=1e-5)
    np.testing.assert_allclose(found[:, 6:10], received(PATTERN[1, :1, :4, :4]), rtol=1e-5)
    assert np.all(np.isnan(found[:, jnp.array([0, 10])]))


def test_one_receiver_is_peaked_and_the_sink_is_left_out():
    flat = jnp.tril(jnp.ones((40, 40))) / jnp.arange(1, 41)[:, None]
    sink = flat.at[:, 0].add(5.0)
    receiver = sink.at[:, 9].add(3.0)
    first = jnp.arange(40) == 0
    all_, without, peaked = (
        receiver_kurtosis(x[None], leave_out=mask)[0] for x, mask in ((sink, None), (sink, first), (receiver, first))
    )
    assert all_ > 20 and peaked > 20 and without < 6
    mass = np.asarray(received(sink[None], gap=4))[0, 1:33]  # 4 queries at least, 4 tokens behind
    np.testing.assert_allclose(without, ((mass - mass.mean()) ** 4).mean() / mass.var() ** 2, rtol=1e-3)


@pytest.mark.parametrize('name', ['hybrid', pytest.param('unrolled', marks=pytest.mark.slow)])
def test_models_are_scored_layer_by_layer_and_padding_has_no_say(name):
    model, params = opened(name)
    tokens = jnp.tile(TOKENS, (1, 2))
    rows, context = padded(tokens)
    found = score_gathering(model, params, rows, context=context)
    assert found.layers == ((1,) if name == 'hybrid' else (0, 1)) and found.sink.shape == (len(found.layers), 4)
    pattern = capture.run(model, params, tokens, sites=['pattern']).stack('pattern')
    first = jnp.arange(14) == 0
    np.testing.assert_allclose(found.sink, jax.vmap(sink_mass, 1)(pattern).mean(axis=0), rtol=1e-3)
    plain = jax.vmap(lambda row: receiver_kurtosis(row, leave_out=first), 1)(pattern).mean(axis=0)
    np.testing.assert_allclose(found.receiver, plain, rtol=1e-2)


def test_a_model_without_patterns_is_named():
    model, params = opened('mamba')
    with pytest.raises(ValueError, match='no layer of this model has attention patterns'):
        score_gathering(model, params, TOKENS, context=Context())
