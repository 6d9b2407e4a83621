"""The RG-LRU against its equations, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.mixers import RGLRUConfig

X = jax.random.normal(jax.random.key(0), (2, 11, 32))


def build(**fields):
    cfg = RGLRUConfig(width=32, **fields)
    return cfg, nn.unbox(cfg.make().init(jax.random.key(1), X))['params']


@pytest.mark.parametrize('fields', [{}, dict(recurrent_width=48, heads=3, taps=2)], ids=['default', 'wide'])
def test_it_is_the_recurrence_of_the_paper(fields):
    cfg, p = build(**fields)
    p['conv']['bias'] = p['conv']['bias'] + 0.3
    y, _ = cfg.make().apply({'params': p}, X)
    width, heads = cfg.heads * cfg.channels, cfg.heads
    u = X @ p['x_proj']['kernel']
    padded = jnp.pad(u, ((0, 0), (cfg.taps - 1, 0), (0, 0)))
    u = sum(padded[:, i : i + 11] * p['conv']['kernel'][i][None, None] for i in range(cfg.taps))
    u = u + p['conv']['bias'][None, None]
    blocks = p['gate_blocks']
    gates = []
    for n in range(2):
        matrix = jax.scipy.linalg.block_diag(*(blocks['kernel'][n, h] for h in range(heads)))
        gates.append(jax.nn.sigmoid(u @ matrix + blocks['bias'][n].reshape(1, 1, -1)))
    r, i = gates
    a = jnp.exp(-cfg.sharpness * jax.nn.softplus(p['decay'])[None, None] * r)
    h, outputs = jnp.zeros((2, width)), []
    for t in range(11):
        h = a[:, t] * h + jnp.sqrt(1 - a[:, t] ** 2) * i[:, t] * u[:, t]
        outputs.append(h)
    expected = (jax.nn.gelu(X @ p['gate_proj']['kernel']) * jnp.stack(outputs, 1)) @ p['o_proj']['kernel']
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_the_decay_starts_uniform_between_0_9_and_0_999():
    cfg, _ = build()
    decay = cfg.make()._init_decay(jax.random.key(2), (20_000,), jnp.float32)
    a = np.asarray(jnp.exp(-cfg.sharpness * jax.nn.softplus(decay)))
    assert a.min() > 0.8999 and a.max() < 0.9991
    # mean and standard deviation of a uniform variable, with 5 standard errors
    np.testing.assert_allclose(a.mean(), 0.9495, atol=5 * 0.0286 / 20_000**0.5)
    np.testing.assert_allclose(a.std(), 0.099 / 12**0.5, rtol=0.03)


def test_a_gate_at_zero_keeps_everything_with_a_finite_gradient():
    """log a = 0 exactly: nothing is written, nothing forgotten, and the root's gradient does not blow up."""
    cfg, p = build()
    p['gate_blocks']['bias'] = p['gate_blocks']['bias'].at[0].set(-1e4)
    loss = lambda p: jnp.sum(cfg.make().apply({'params': p}, X)[0])
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(jax.grad(loss)(p)))
