"""Linear attention against its quadratic form."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jattn.mixers import MIXERS
from jattn.taps import Edit


def test_it_is_attention_with_positive_features_in_place_of_the_exponential():
    cfg = MIXERS['linear_attention'].tiny()
    x = jax.random.normal(jax.random.key(0), (2, 21, 32))
    params = nn.unbox(cfg.make().init(jax.random.key(1), x))['params']
    y, _ = cfg.make().apply({'params': params}, x)
    q, k, v = (jnp.einsum('btd,dhk->bthk', x, params['read'][f'{name}_proj']['kernel']) for name in 'qkv')
    weights = jnp.einsum('bthk,bshk->bhts', jax.nn.elu(q) + 1, jax.nn.elu(k) + 1)
    weights = jnp.tril(weights)
    weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-6)
    z = jnp.einsum('bhts,bshv->bthv', weights, v)
    np.testing.assert_allclose(y, jnp.einsum('bthv,hvd->btd', z, params['o_proj']['kernel']), atol=1e-5)


def test_values_that_are_all_alike_come_back():
    """The weights of a query sum to one: constant values give that constant, however long the document."""
    cfg = MIXERS['linear_attention'].tiny()
    x = jax.random.normal(jax.random.key(0), (1, 40, 32))
    params = nn.unbox(cfg.make().init(jax.random.key(1), x))['params']
    constant = jnp.arange(8.0)
    edits = {'v': jnp.broadcast_to(constant, (1, 40, 4, 8))}
    variables = {'params': params, 'edits': {'v': Edit(value=edits['v'])}}
    _, captured = cfg.make().apply(variables, x, mutable=['taps'])
    np.testing.assert_allclose(captured['taps']['z'], edits['v'], rtol=1e-4, atol=1e-5)
