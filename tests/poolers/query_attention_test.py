"""Attention of few queries, its key and value maps absorbed: the numbers and gradients of keys and values in full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.nn.linear import Linear
from jattn.poolers.attentive import QueryAttention
from jattn.poolers.pooler import attend_few

D, HEADS, CHANNELS = 24, 6, 5
AXES = ('embed', 'heads', 'head')
REAL = jnp.array([[True] * 7, [False, True, True, False, True, False, False], [False] * 7])


class InFull(nn.Module):
    """The same attention with the keys and values of every token."""

    key_heads: int

    @nn.compact
    def __call__(self, queries, keys, values, real):
        q = Linear((HEADS, CHANNELS), AXES, use_bias=True, name='q_proj')(queries)
        k = Linear((self.key_heads, CHANNELS), AXES, name='k_proj')(keys)
        v = Linear((self.key_heads, CHANNELS), AXES, use_bias=True, name='v_proj')(values)
        z, maps = attend_few(q, k, v, real)
        return Linear((D,), ('heads', 'head', 'embed'), use_bias=True, name='o_proj')(z), maps


@pytest.mark.parametrize('key_heads', [HEADS, 2, 1])
@pytest.mark.parametrize('queries', [1, 3])
def test_absorbed_maps_change_no_number_and_no_gradient(key_heads, queries):
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [jax.random.normal(key, (3, count, D)) for key, count in zip(keys, (queries, 7, 7))]
    absorbed, in_full = QueryAttention(HEADS, CHANNELS, key_heads), InFull(key_heads)
    params = nn.unbox(in_full.init(keys[3], *inputs, REAL))
    params = jax.tree.map(lambda p: p + 0.1, params)  # biases start at 0
    assert jax.tree.structure(nn.unbox(absorbed.init(keys[3], *inputs, REAL))) == jax.tree.structure(params)

    def loss(params, inputs, module):
        z, maps = module.apply(params, *inputs, REAL)
        return jnp.sum(jnp.sin(z)) + jnp.sum(maps**2), (z, maps)

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    found, expected = run(params, inputs, absorbed), run(params, inputs, in_full)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    np.testing.assert_array_equal(found[0][1][1][2], 0)  # a row without a token has no maps
