"""The softmax mixer against attention written out by hand, and against flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers import SoftmaxConfig

X = jax.random.normal(jax.random.key(0), (2, 9, 32))


def build(**fields):
    cfg = SoftmaxConfig(width=32, **fields)
    return cfg, nn.unbox(cfg.make().init(jax.random.key(1), X))['params']


def test_without_positions_it_is_flax_multi_head_attention():
    cfg, params = build(rotary_base=None)
    y, _ = cfg.make().apply({'params': params}, X)
    theirs = nn.MultiHeadDotProductAttention(num_heads=4, use_bias=False)
    names = {'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj', 'out': 'o_proj'}
    moved = {name: {'kernel': params[own]['kernel']} for name, own in names.items()}
    np.testing.assert_allclose(y, theirs.apply({'params': moved}, X, mask=nn.make_causal_mask(X[..., 0])), atol=1e-5)


@pytest.mark.parametrize('window, sinks', [(1, 0), (3, 0), (3, 2), (100, 1)])
def test_window_and_sinks_hide_what_they_say(window, sinks):
    cfg, params = build(window=window, sinks=sinks)
    _, captured = cfg.make().apply({'params': params}, X, mutable=['patterns'])
    t, s = np.mgrid[:9, :9]
    visible = (s <= t) & ((t - s < window) | (s < sinks))
    np.testing.assert_array_equal(np.asarray(captured['patterns']['pattern'][0, 0] > 0), visible)


def test_grouped_heads_share_their_keys():
    cfg, params = build(key_heads=2)
    full_cfg, full = build()
    full['q_proj'], full['o_proj'] = params['q_proj'], params['o_proj']
    for name in ('k_proj', 'v_proj'):
        full[name] = {'kernel': jnp.repeat(params[name]['kernel'], 2, axis=1)}
    a, _ = cfg.make().apply({'params': params}, X)
    b, _ = full_cfg.make().apply({'params': full}, X)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_outputs_depend_on_relative_positions_alone():
    cfg, params = build()
    y, _ = cfg.make().apply({'params': params}, X)
    shifted = Context(positions=jnp.broadcast_to(jnp.arange(9) + 500, (2, 9)))
    np.testing.assert_allclose(cfg.make().apply({'params': params}, X, shifted)[0], y, atol=1e-4)
    stretched = Context(positions=jnp.broadcast_to(2 * jnp.arange(9), (2, 9)))
    assert float(jnp.max(jnp.abs(cfg.make().apply({'params': params}, X, stretched)[0] - y))) > 1e-3


def test_a_softcap_bounds_the_scores():
    cfg, params = build(softcap=0.5)
    _, captured = cfg.make().apply({'params': params}, 100 * X, mutable=['patterns'])
    scores = captured['patterns']['scores']
    assert float(jnp.max(scores)) <= 0.5 and float(jnp.max(scores)) > 0.49


def test_a_query_without_causality_sees_the_whole_document():
    cfg, params = build(causal=False)
    segments = jnp.array([[1] * 4 + [2] * 5, [1] * 9])
    _, captured = cfg.make().apply({'params': params}, X, Context(segments=segments), mutable=['patterns'])
    pattern = np.asarray(captured['patterns']['pattern'][:, 0] > 0)
    np.testing.assert_array_equal(pattern, segments[:, :, None] == segments[:, None, :])


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(window=0), 'window=0 must be at least 1'),
        (dict(sinks=2), 'sinks=2 stand beside a window, but window is None'),
        (dict(head_dim=7), 'head_dim=7 must be even'),
        (dict(heads=6), 'width=32 must be a multiple of heads=6'),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxConfig(width=32, **fields)
    with pytest.raises(ValueError, match='SoftmaxConfig.width is None'):
        _ = SoftmaxConfig().channels
