"""Mamba against its equations token by token; its initial values; its scan, whose states never stand in memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers.mamba import MambaConfig, selective_scan
from jattn.nn.time_step import time_step_bias
from jattn.taps import Edit
from tests.mixers.packed import PACKED, X, assert_calls_are, assert_every_document_is, parameters

B, T, N = 2, 13, 4
CFG = MambaConfig(width=32, state_size=N, chunk=4)
ALONE = dataclasses.replace(CFG, alone=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def recurrence(p, x, cfg):
    """The outputs of one document [T, D], token by token, from the words of the paper, in float64."""
    p, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p), np.asarray(x, np.float64)
    u = x
    if not cfg.alone:
        u = x @ p['x_proj']['kernel']
        padded = np.pad(u, ((3, 0), (0, 0)))
        u = sum(padded[n : n + len(x)] * p['conv']['kernel'][n] for n in range(4)) + p['conv']['bias']
        u = u * sigmoid(u)
    rank = cfg.step_rank
    selected = u @ p['selection_proj']['kernel']
    dt = np.log1p(np.exp(selected[:, :rank] @ p['step_proj']['kernel'] + p['step_bias']))
    write, read = selected[:, rank : rank + N], selected[:, rank + N :]
    h, z = np.zeros((cfg.channels, N)), np.zeros_like(u)
    for t in range(len(x)):
        h = np.exp(-np.exp(p['decay_log']) * dt[t][:, None]) * h + (dt[t] * u[t])[:, None] * write[t]
        z[t] = h @ read[t] + p['skip'] * u[t]
    if not cfg.alone:
        gate = x @ p['gate_proj']['kernel']
        z = z * gate * sigmoid(gate)
    return z @ p['o_proj']['kernel']


@pytest.mark.parametrize('cfg', [CFG, ALONE], ids=['block', 'alone'])
def test_it_is_the_recurrence_of_the_paper_in_every_document(cfg):
    assert_every_document_is(cfg, recurrence)


def test_the_initial_values_are_the_papers():
    p = nn.unbox(jax.jit(CFG.make().init)(jax.random.key(1), X))['params']
    np.testing.assert_allclose(np.exp(p['decay_log']), np.broadcast_to(np.arange(1, N + 1), (64, N)), rtol=1e-6)
    np.testing.assert_array_equal(p['skip'], np.ones(64))
    assert p['step_proj']['kernel'].shape == (2, 64) and np.max(np.abs(p['step_proj']['kernel'])) <= 2**-0.5
    np.testing.assert_allclose(np.std(p['step_proj']['kernel']), (3 * 2) ** -0.5, rtol=0.15)
    bias = np.asarray(time_step_bias(jax.random.key(0), (20_000,), jnp.float32), np.float64)
    dt = np.log1p(np.exp(bias))
    assert dt.min() > 0.999e-3 and dt.max() < 0.1001
    # mean and standard deviation of a uniform variable between log .001 and log .1, with 5 standard errors
    np.testing.assert_allclose(np.log(dt).mean(), np.log(0.01), atol=5 * np.log(100) / 12**0.5 / 20_000**0.5)
    np.testing.assert_allclose(np.log(dt).std(), np.log(100) / 12**0.5, rtol=0.03)


def scan_inputs(tokens=T, seed=2):
    random = np.random.default_rng(seed)
    step = np.exp(random.uniform(-4, 1, size=(B, tokens, 6)))
    shapes = (B, tokens, 6), (B, tokens, N), (B, tokens, N), (B, 6, N)
    u, write, read, hidden = (random.normal(size=shape) for shape in shapes)
    return u, step, random.uniform(0, 3, size=(6, N)), write, read, hidden


@pytest.mark.parametrize('chunk', [1, 8, T])
def test_chunks_of_any_size_have_the_values_and_gradients_of_one_scan(chunk):
    """Also with the plain step form, whose derivatives are JAX's own."""

    def both(chunk, implementation=None):
        def loss(arrays):
            y, hidden = selective_scan(*arrays, PACKED, chunk=chunk, implementation=implementation)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(hidden))

        return jax.jit(jax.value_and_grad(loss))(scan_inputs())

    with jax.enable_x64(True):
        for own, exact in zip(jax.tree.leaves(both(chunk)), jax.tree.leaves(both(T, 'reference'))):
            np.testing.assert_allclose(own, exact, atol=1e-10)


@pytest.mark.parametrize('cfg', [CFG, ALONE], ids=['block', 'alone'])
def test_any_split_of_packed_rows_gives_the_same_outputs(cfg):
    variables = {'params': parameters(cfg)}
    whole, _ = jax.jit(cfg.make().apply)(variables, X, Context(segments=jnp.array(PACKED)))
    assert_calls_are(whole, cfg, variables, X, PACKED, size=1)


def test_a_time_step_of_zero_holds_the_state_and_a_huge_one_forgets_it():
    """Both ends have finite gradients; what a huge step writes is its own token alone."""
    u, step, rates, write, read, hidden = (np.asarray(array, np.float32) for array in scan_inputs())
    rates, step = rates + 1, step.copy()
    step[:, 5], step[:, 8] = 0, 1e4
    run = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(selective_scan(*a, chunk=4)[0]), argnums=(0, 1, 2, 3, 4, 5)))
    value, grads = run(u, step, rates, write, read, hidden)
    assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in grads)
    y, _ = selective_scan(u, step, rates, write, read, hidden, chunk=4)
    own = 1e4 * u[:, 8] * np.sum(write[:, 8] * read[:, 8], axis=-1)[:, None]
    np.testing.assert_allclose(y[:, 8], own, rtol=1e-4)
    read[:, 5] = read[:, 4]
    y, _ = selective_scan(u, step, rates, write, read, hidden, chunk=4)
    np.testing.assert_allclose(y[:, 5], y[:, 4], rtol=1e-5)


def test_an_edit_of_the_time_steps_is_obeyed():
    """Steps of 0 leave the skip alone: z = D u silu(gate)."""
    p = parameters(CFG)
    variables = {'params': p, 'edits': {'gates': Edit(scale=jnp.zeros(()))}}
    _, captured = jax.jit(functools.partial(CFG.make().apply, mutable=['taps']))(variables, X)
    z, u = (np.asarray(captured['taps'][site][:, :, 0]) for site in 'zv')
    gate = X @ np.asarray(p['gate_proj']['kernel'])
    np.testing.assert_allclose(z, np.asarray(p['skip']) * u * gate * sigmoid(gate), atol=1e-5)


def temporaries(tokens, chunk):
    cfg = MambaConfig(width=32, chunk=chunk)
    mixer, x = cfg.make(), jax.ShapeDtypeStruct((1, tokens, 32), jnp.float32)
    variables = jax.eval_shape(mixer.init, jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda variables, x: jnp.sum(mixer.apply(variables, x)[0])))
    return step.lower(variables, x).compile().memory_analysis().temp_size_in_bytes


def test_training_does_not_keep_the_states_of_all_tokens():
    tokens, states = 2048, 4 * 2048 * 64 * 16  # bytes of h of all tokens
    assert temporaries(tokens, tokens) > 3 * states
    assert temporaries(tokens, 64) < 1.5 * states


@pytest.mark.parametrize('field', ['state_size', 'taps', 'chunk'])
def test_what_does_not_fit_is_named(field):
    with pytest.raises(ValueError, match=f'{field}=0 must be at least 1'):
        MambaConfig(**{field: 0})
