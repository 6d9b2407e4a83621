"""The quasi-LSTM against its equations token by token, and its forget gate against that of S6."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import expit

from jattn.contract import Context
from jattn.mixers.qlstm import QLSTMConfig
from tests.mixers.packed import PACKED, X, assert_calls_are, assert_every_document_is, parameters

B, T = 2, 13
PLAIN, REVERSED = (QLSTMConfig(width=32, expansion=1.5, forget=forget) for forget in ('sigmoid', 'reversed'))
variants = pytest.mark.parametrize('cfg', [PLAIN, REVERSED], ids=['sigmoid', 'reversed'])


def recurrence(p, x, cfg):
    """The outputs of one document [T, D], token by token, in float64."""
    p, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p), np.asarray(x, np.float64)
    padded = np.pad(x @ p['x_proj']['kernel'], ((3, 0), (0, 0)))
    u = sum(padded[n : n + len(x)] * p['conv']['kernel'][n] for n in range(4)) + p['conv']['bias']
    gates = np.tensordot(u, p['gates_proj']['kernel'], 1) + p['gates_proj']['bias']
    forget, write, read = np.moveaxis(gates, 1, 0)
    kept = expit(forget) if cfg.forget == 'sigmoid' else expit(-forget) ** max(p['alpha'], 0)
    h, states = np.zeros(cfg.channels), []
    for t in range(len(x)):
        h = kept[t] * h + expit(write[t]) * u[t]
        states.append(expit(read[t]) * h)
    gate = x @ p['gate_proj']['kernel']
    gelu = gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) / 2
    return (gelu * np.stack(states)) @ p['o_proj']['kernel']


@variants
def test_it_is_the_recurrence_of_the_paper_in_every_document(cfg):
    assert_every_document_is(cfg, recurrence)


@variants
def test_any_split_of_packed_rows_gives_the_same_outputs(cfg):
    variables = {'params': parameters(cfg)}
    whole, _ = jax.jit(cfg.make().apply)(variables, X, Context(segments=jnp.array(PACKED)))
    assert_calls_are(whole, cfg, variables, X, PACKED, size=1)


def gates(cfg, p, x=X):
    run = jax.jit(functools.partial(cfg.make().apply, mutable=['taps']))
    return np.asarray(run({'params': p}, x)[1]['taps']['gates'])


def test_the_reversed_gate_at_alpha_one_is_the_plain_gate_of_the_negative():
    p = parameters(REVERSED) | {'alpha': jnp.ones(())}
    plain = {name: value for name, value in p.items() if name != 'alpha'}
    plain['gates_proj'] = {name: value.at[..., 0, :].multiply(-1) for name, value in p['gates_proj'].items()}
    np.testing.assert_allclose(gates(REVERSED, p), gates(PLAIN, plain), atol=1e-6)


@pytest.mark.parametrize('alpha', [0.0, -2.0])
def test_nothing_is_forgotten_once_alpha_is_not_positive(alpha):
    p = parameters(REVERSED) | {'alpha': jnp.array(alpha)}
    np.testing.assert_array_equal(gates(REVERSED, p)[:, :, 0], 1)


def test_saturated_gates_are_exact_and_their_gradients_finite():
    """A sigmoid's power would be 0^alpha and its logarithm -inf; the exponential of softplus has neither."""
    p = parameters(REVERSED)
    bias = p['gates_proj']['bias']
    for forget, kept in ((1e4, 0.0), (-1e4, 1.0)):
        p = p | {'gates_proj': p['gates_proj'] | {'bias': bias.at[0].set(forget)}}
        np.testing.assert_array_equal(gates(REVERSED, p)[:, :, 0], kept)
        grads = jax.jit(jax.grad(lambda p: jnp.sum(REVERSED.make().apply({'params': p}, X)[0])))(p)
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


@variants
def test_every_parameter_has_logical_names(cfg):
    """Also the scalar alpha, which has none of them: the optimizer asks."""
    boxes = jax.eval_shape(cfg.make().init, jax.random.key(0), X)['params']
    leaves = jax.tree.leaves(boxes, is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned))
    assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in leaves)


@pytest.mark.parametrize(
    'fields, message',
    [(dict(forget='tanh'), "forget='tanh' must be one of sigmoid, reversed"), (dict(taps=0), 'taps=0')],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        QLSTMConfig(**fields)
