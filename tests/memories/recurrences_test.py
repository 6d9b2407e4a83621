"""The matrix memories as one form, as one another at a limit, and what came after Miras, in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.memories import MEMORIES
from jattn.memories.architecture import Gated, Matrix
from jattn.memories.bias import L2, Dot
from jattn.memories.gates import GATES, Gate, GateModule, Gates
from jattn.memories.learner import RIDGE_FLOOR, Learner
from jattn.memories.retention import Decay, RowNorm
from jattn.ops import diagonal_plus_low_rank
from tests.memories.drawn import assert_near, by_head, drawn, memory, own_loop, read
from tests.memories.published import (
    B,
    D,
    H,
    K,
    T,
    apply,
    delta_qkv,
    gate,
    inputs,
    loop,
    mesa,
    out,
    parameters,
    projected,
    qkv,
    rate,
    ridge,
    sigmoid,
    silu,
    softplus,
    started,
    swish,
    unit,
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def table_row(name, s):
    """w, a, b and what is written, of S_t = S Diag(w) + (S a) b^T + v k^T."""
    one, k, beta, w = np.ones_like(s.k), s.k, s.step[..., None], np.exp(s.log_decay)
    w = w if w.ndim == 4 else w[..., None]
    implicit = beta / (1 + beta * np.sum(k**2, axis=-1, keepdims=True))
    return {
        'linear attention': (one, 0 * k, 0 * k, s.v),
        'RetNet': (one * (1 - 2.0 ** (-5 - np.arange(H)))[:, None], 0 * k, 0 * k, s.v),
        'Mamba2': (one * w, 0 * k, 0 * k, beta * s.v),
        'GLA': (one * w, 0 * k, 0 * k, s.v),
        'DeltaNet': (one, -beta * k, k, beta * s.v),
        'Longhorn': (one, -implicit * k, k, implicit * s.v),
        'Gated DeltaNet': (one * w, -beta * w * k, k, beta * s.v),
        'raw error': (one * w, -beta * k, k, beta * s.v),
        'Kimi Delta Attention': (one * w, -beta * w * k, k, beta * s.v),
        'RWKV-7': (one * w, None if s.erase is None else -s.erase[0], s.erase and s.erase[1], s.v),
    }[name]


@functools.partial(jax.jit, static_argnames='chunk')
def general(q, k, v, log_decay, a, b, chunk=4):
    return diagonal_plus_low_rank(q, k, v, log_decay, a, b, scale=1.0, chunk=chunk)


@pytest.mark.parametrize(
    'name',
    ['linear attention', 'RetNet', 'Mamba2', 'GLA', 'DeltaNet', 'Longhorn', 'Gated DeltaNet', 'raw error']
    + ['Kimi Delta Attention', 'RWKV-7'],
)
def test_a_row_of_the_table_is_the_one_form_and_its_own_loop(name):
    s = drawn(decay_channels=(K,) if name in ('GLA', 'Kimi Delta Attention', 'RWKV-7') else ())
    if name == 'DeltaNet':
        s = s.replace(step=2 * s.step)  # negative eigenvalues
    if name == 'Longhorn':
        s = s.replace(k=3 * s.k, step=9 * s.step)  # stable whatever the size of its keys and steps
    if name == 'RWKV-7':
        erased = np.roll(s.k, 1, axis=1)
        s = s.replace(erase=(erased, erased * np.random.default_rng(4).uniform(size=erased.shape)))
    w, a, b, written = table_row(name, s)
    own = by_head(functools.partial(own_loop, name), s)
    assert_near(loop(s.q, s.k, written, w, a, b), own)
    assert_near(general(s.q, s.k, written, np.log(w), a, b), own)


# --- members that are other members at a limit


def test_without_decay_the_gated_delta_rule_is_deltanet():
    s = drawn()
    ours = read(memory('gated_deltanet'), 'exact', s.replace(log_decay=0 * s.log_decay))
    assert_near(ours, by_head(functools.partial(own_loop, 'DeltaNet'), s))


def test_comba_that_erases_as_it_writes_and_corrects_no_query_is_the_raw_gated_delta_rule():
    cfg = MEMORIES['comba'].tiny()
    p = parameters(cfg)
    own = p | {'read': p['read'] | {'erase_scale': np.full(H, 40.0), 'query_correction': np.zeros(H)}}
    (q, k, v), beta = delta_qkv(p['read'], inputs()), sigmoid(gate(p['read'], 'step', inputs()))[..., None]
    y = loop(q, k, beta * v, np.exp(rate(p['read'], inputs())[0])[..., None], -beta * k, k)
    z = out(p, y, swish(p, inputs()))
    assert_near(apply(cfg, own, inputs()), projected(p, z))


def test_constant_time_steps_and_equal_channels_are_retnets_decays():
    gamma = np.log1p(-(2.0 ** (-5 - np.arange(H))))
    s = drawn()
    s = s.replace(step=np.full((B, T, H), 0.7), log_decay=np.broadcast_to(gamma, (B, T, H)))
    scaled = s.replace(v=0.7 * s.v, step=np.ones((B, T, H)))
    expected = by_head(functools.partial(own_loop, 'RetNet'), scaled)
    assert_near(read(memory('mamba2'), 'exact', s), expected)
    equal = scaled.replace(log_decay=np.broadcast_to(gamma[:, None], (B, T, H, K)))
    assert_near(read(memory('gla'), 'diagonal_plus_low_rank', equal), expected)
    module = GateModule(MEMORIES['mamba2'].gates.decay, H, 1)
    dt = np.array([0.5, 0.1, 0.02, 0.3])
    params = {'bias': np.log(np.expm1(dt)), 'decay_rate': np.log(-gamma / dt), 'proj': {'kernel': np.zeros((D, H))}}
    assert_near(module.apply({'params': params}, inputs(), as_log=True)[0, 0], gamma)
    assert_near(GateModule(GATES['retnet'], H, 1).apply({}, inputs(), as_log=True)[0, 0], gamma)


def test_a_further_step_of_no_size_changes_nothing():
    s = drawn()
    twice = memory('delta_product')
    several = s.replace(
        k=np.stack([s.k, np.roll(s.k, 1, axis=1)], axis=3),
        v=np.stack([s.v, s.v[::-1]], axis=3),
        step=np.stack([s.step, 0 * s.step], axis=3),
    )
    assert_near(read(twice, 'exact', several), read(memory('gated_deltanet'), 'exact', s))


# --- the followers of Miras


def windowed(window, **choices):
    """A linear memory by the Omega rule."""
    gates = Gates(decay=Gate(), window=Gate() if window > 1 else None)
    learner = choices.pop('learner', Learner(window=window))
    gates = dataclasses.replace(gates, momentum=Gate() if learner.momentum else None)
    fixed = dict(architecture=Matrix(), bias=L2(), retention=Decay(), learner=learner, gates=gates)
    return memory('omega', **(fixed | choices))


def start(seed=10):
    return (0.5 * np.random.default_rng(seed).normal(size=(H, K, K)),)


def gradients(s, weights, t, window, gamma):
    """The gradient of the last losses, all at the same weights."""
    return sum(gamma[i] * np.outer(weights @ s.k[i] - s.v[i], s.k[i]) for i in range(max(0, t - window + 1), t + 1))


@pytest.mark.parametrize('window', [1, 3, T])
def test_omega_descends_the_losses_of_its_window_and_a_window_of_one_is_titans(window):
    s = drawn(11).replace(weight=np.random.default_rng(12).uniform(size=(B, T, H)))

    def omega(s, head):
        weights, y, gamma = start()[0][head], [], np.ones(T) if window == 1 else s.weight
        at = weights
        for t in range(T):
            at = weights if t % 4 == 0 else at
            weights = np.exp(s.log_decay[t]) * weights - s.step[t] * gradients(s, at, t, window, gamma)
            y.append(weights @ s.q[t])
        return y

    cfg = windowed(window)
    told = s.replace(weight=None) if window == 1 else s
    assert_near(read(cfg, cfg.running_path, told, start()), by_head(omega, s))


def newton_schulz(x):
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


ATLAS = windowed(3, learner=Learner(window=3, momentum=True, per_chunk=True, orthogonal=True))


def atlas_tokens():
    rng = np.random.default_rng(13)
    weight, momentum = rng.uniform(size=(B, T, H)), np.log(rng.uniform(0.3, 0.9, (B, T, H)))
    return drawn(14).replace(weight=weight, log_momentum=momentum)


def test_atlas_steps_once_a_chunk_along_the_orthogonalised_momentum():
    s = atlas_tokens()

    def atlas(s, head):
        weights, momentum, y = start()[0][head], np.zeros((K, K)), []
        for at in range(0, T, 4):
            now = slice(at, at + 4)
            y.extend(s.q[now] @ weights.T)  # the chunk's own tokens are not seen
            total = sum(s.step[t] * gradients(s, weights, t, 3, s.weight) for t in range(at, min(at + 4, T)))
            momentum = np.mean(np.exp(s.log_momentum[now])) * momentum + total
            weights = np.exp(np.sum(s.log_decay[now])) * weights - np.mean(s.step[now]) * newton_schulz(momentum)
        return y

    assert_near(read(ATLAS, 'chunk_blind', s, start()), by_head(atlas, s), 1e-9)


def test_the_size_of_an_orthogonalised_step_is_the_gates_alone():
    s = atlas_tokens()
    cfg = dataclasses.replace(ATLAS, bias=Dot())
    once, large = (read(cfg, 'chunk_blind', s.replace(v=scale * s.v), start()) for scale in (1.0, 100.0))
    assert_near(once, large, 1e-5)
    assert np.max(np.abs(once[:, 4:] - np.einsum('bthk,hvk->bthv', s.q, start()[0])[:, 4:])) > 0.1


def test_lact_of_one_chunk_is_a_swiglu_network_that_stands_still():
    cfg = dataclasses.replace(MEMORIES['lact'].tiny(), chunk=16)
    assert (cfg.architecture, cfg.retention, cfg.bias) == (Gated(), RowNorm(), Dot())
    p = parameters(cfg)
    q, _, _ = map(silu, qkv(p['read'], inputs()))
    w0, w1, w2 = (p[f'memory_{n}'] for n in range(3))
    first, second = (np.einsum('bthk,hnk->bthn', unit(q), w) for w in (w0, w2))
    z = out(p, np.einsum('bthn,hvn->bthv', silu(first) * second, w1), swish(p, inputs()))
    assert_near(apply(cfg, p, inputs()), projected(p, z))


def test_polynomial_features_start_at_one_over_factorials():
    for name in ('omega', 'atlas'):
        cfg = MEMORIES[name].tiny()
        read = started(cfg, 'read')
        assert read['q_powers'].tolist() == read['k_powers'].tolist() == [1.0, 0.5]


def test_the_penalty_of_mesa_is_bounded_below_and_starts_at_one():
    cfg = MEMORIES['mesa'].tiny()
    p = parameters(cfg) | {'ridge': np.full((H, K), -1e3)}
    y = apply(cfg, p, inputs())
    assert_near(y, projected(p, mesa(p, inputs())))
    np.testing.assert_allclose(softplus(started(cfg, 'ridge')) + RIDGE_FLOOR, 1.0, rtol=1e-3)


def test_the_gradients_of_mesa_are_those_of_the_solution():
    cfg, s = memory('mesa'), drawn(15)
    rng = np.random.default_rng(16)
    penalty, weights = rng.normal(size=(H, K)), rng.normal(size=(B, T, H, K))
    along, along_penalty = jax.tree.map(lambda x: rng.normal(size=x.shape), (s, penalty))

    def dense(size):
        q, k, v, step, log_decay = (
            getattr(s, n) + size * getattr(along, n) for n in ('q', 'k', 'v', 'step', 'log_decay')
        )
        wide = (step[..., None, None], np.exp(log_decay)[..., None, None])
        return np.sum(weights * ridge(q, k, v, *wide, softplus(penalty + size * along_penalty) + 0.25))

    loss = lambda s, penalty: jnp.sum(weights * read(cfg, 'ridge', s, None, {'ridge': penalty}))
    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(s, penalty)
    slope = sum(np.sum(a * b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves((along, along_penalty))))
    assert slope == pytest.approx((dense(1e-5) - dense(-1e-5)) / 2e-5, rel=1e-6)
