"""Paper 58's common form: the operator of a linear time-varying system is the oracle of every mixer that it names.

    h_i = A_i h_{i-1} + B_i u_i      y_i = C_i h_i + D_i u_i      Phi_ij = C_i A_i ... A_{j+1} B_j (+ D_i where i = j)

with diagonal A and h_{-1} = 0. A member of `MEMBERS` says what A, B, C and D of a layer are, from the values that the
layer names (its taps; those of a memory are made here) and the paper's table. u are the layer's values v, y what the
output projection takes. Float64 throughout.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import expit

from jattn.memories import MEMORIES
from jattn.mixers import (
    AarenConfig,
    MambaConfig,
    NormalizedAttentionConfig,
    QLSTMConfig,
    RGLRUConfig,
    SoftmaxConfig,
)
from jattn.mixers.mamba import selective_scan
from jattn.ops import gated_linear_attention
from jattn.taps import Edit

T, D = 7, 16
X = np.random.default_rng(0).normal(size=(1, T, D))
CONFIGS = {
    'aaren': AarenConfig(width=D, heads=2, chunk=4),
    'linear_attention': dataclasses.replace(MEMORIES['linear_attention'].tiny(), width=D, heads=2),
    'normalized_attention': NormalizedAttentionConfig(width=D, heads=2, key_dim=6, chunk=4),
    's6': MambaConfig(width=D, expansion=1.5, state_size=4, chunk=4),
    's6_alone': MambaConfig(width=D, state_size=4, chunk=4, alone=True),
    'ssd': dataclasses.replace(MEMORIES['mamba2'].tiny(), width=D, heads=2, value_width=1.0),
    'qlstm': QLSTMConfig(width=D, expansion=1.5),
    'qlstm_reversed': QLSTMConfig(width=D, expansion=1.5, forget='reversed'),
    'rg_lru': RGLRUConfig(width=D, heads=2),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@dataclasses.dataclass
class System:
    """a [T, N], B [T, N, U], C [T, Y, N] and D [T, Y, U]."""

    a: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray

    def operator(self):
        """Phi [T, Y, T, U], every block from its definition."""
        phi = np.zeros((T, self.C.shape[1], T, self.B.shape[2]))
        for i in range(T):
            for j in range(i + 1):
                phi[i, :, j] = self.C[i] @ (np.prod(self.a[j + 1 : i + 1], axis=0)[:, None] * self.B[j])
            phi[i, :, i] += self.D[i]
        return phi

    def scan(self, u):
        """y [T, Y], step by step."""
        h, y = 0, []
        for a, b, c, d, now in zip(self.a, self.B, self.C, self.D, u):
            h = a * h + b @ now
            y.append(c @ h + d @ now)
        return np.stack(y)


@functools.cache
def parameters(name):
    shapes = jax.eval_shape(CONFIGS[name].make().init, jax.random.key(0), X)['params']
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape), nn.unbox(shapes))


@functools.cache
def layer(name):
    """What the layer returns [T, D], and its taps by site, of the one row."""
    run = jax.jit(functools.partial(CONFIGS[name].make().apply, mutable=[] if name in MEMORY_TAPS else ['taps']))
    (y, _), captured = run({'params': parameters(name)}, X)
    found = {site: np.asarray(value[0]) for site, value in captured.get('taps', {}).items()}
    return np.asarray(y[0]), found or MEMORY_TAPS[name](parameters(name)['read'])


def taps(name):
    return layer(name)[1]


def returned(name, z):
    """What the layer returns where z [T, ...] enters its output projection."""
    return z.reshape(T, -1) @ parameters(name)['o_proj']['kernel'].reshape(-1, D)


def silu(x):
    return x * expit(x)


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def project(p, name):
    return np.tensordot(X[0], p[f'{name}_proj']['kernel'], 1)


def diagonal(x):
    """[T, N] to [T, N, N]."""
    return x[:, :, None] * np.eye(x.shape[1])


def convolved(p, u):
    """The causal convolution of four tokens over u [T, F]."""
    padded = np.pad(u, ((3, 0), (0, 0)))
    return sum(padded[n : n + T] * p['conv']['kernel'][n] for n in range(4)) + p['conv']['bias']


def linear_attention_taps(p):
    q, k, v = (project(p, name) for name in 'qkv')
    return {'q': np.where(q > 0, q + 1, np.exp(q)), 'k': np.where(k > 0, k + 1, np.exp(k)), 'v': v}


def ssd_taps(p):
    """C, B and u: one convolution over the three, C and B for both heads alike."""
    q, k, v = (project(p, name) for name in 'qkv')
    parts = silu(convolved(p, np.concatenate([x.reshape(T, -1) for x in (q, k, v)], axis=1)))
    parts = [x.reshape(T, -1, 8) for x in np.split(parts, [8, 16], axis=1)]
    return dict(zip('qkv', [np.repeat(x, 2 // x.shape[1], axis=1) for x in parts]))


MEMORY_TAPS = {'linear_attention': linear_attention_taps, 'ssd': ssd_taps}


def matrices(q, k, ratio, values, skip=None):
    """A matrix K x V a head: k v^T is written, q reads, and `ratio` [T, H] of it is kept; q, k [T, H, K]."""
    heads, keys = q.shape[1:]
    eye = np.einsum('gh,vw->gvhw', np.eye(heads), np.eye(values))
    flat = (T, heads * values, heads * keys * values)
    return System(
        a=np.broadcast_to(ratio[:, :, None, None], (T, heads, keys, values)).reshape(T, -1),
        B=np.einsum('tgk,gvhw->tgkvhw', k, eye).reshape(T, flat[2], flat[1]),
        C=np.einsum('thk,gvhw->tgvhkw', q, eye).reshape(flat),
        D=np.zeros((T, flat[1], flat[1])) if skip is None else diagonal(skip),
    )


def separable(q, k, eta, values):
    """Attention with the weights q_i . k_j / eta_i: A_i = eta_{i-1} / eta_i, the normaliser in the state."""
    ratio = np.concatenate([np.zeros_like(eta[:1]), eta[:-1] / eta[1:]])
    return matrices(q, k / eta[..., None], ratio, values)


def aaren(p, t):
    weights = np.exp(t['gates'])[..., None]
    return separable(np.ones_like(weights), weights, np.cumsum(weights, 0)[..., 0], 8)


def linear_attention(p, t):
    return separable(t['q'], t['k'], normaliser(t), 8)


def normaliser(t):
    """eta_i = phi(q_i) . sum_{j<=i} psi(k_j)."""
    return np.einsum('thk,thk->th', t['q'], np.cumsum(t['k'], 0)) + 1e-6


def normalized_attention(p, t):
    eta = np.exp(project(p, 'eta') + p['eta_proj']['bias'])
    return separable(t['q'], t['k'], eta, 8)


def s6(p, t, alone=False):
    dt, write, read = (t[site][:, 0] for site in ('gates', 'k', 'q'))
    gate = np.ones_like(dt) if alone else silu(project(p, 'gate'))
    eye = np.eye(dt.shape[1])
    return System(
        a=np.exp(-dt[..., None] * np.exp(p['decay_log'])).reshape(T, -1),
        B=np.einsum('te,tn,ef->tenf', dt, write, eye).reshape(T, -1, dt.shape[1]),
        C=np.einsum('tf,tn,ef->tfen', gate, read, eye).reshape(T, dt.shape[1], -1),
        D=diagonal(gate * p['skip']),
    )


def ssd(p, t):
    """Before the gate and the norm: one rate and one time step a head."""
    gate = p['read']['decay_gate']
    dt = np.log1p(np.exp(np.tensordot(X[0], gate['proj']['kernel'], 1) + gate['bias']))
    skip = np.repeat(np.broadcast_to(p['write']['skip'], (T, 2)), 8, axis=1)
    kept = np.exp(-np.exp(gate['decay_rate']) * dt)
    return matrices(t['q'], dt[..., None] * t['k'], kept, 8, skip)


def qlstm(p, t):
    u = t['v'][:, 0]
    gates = np.tensordot(u, p['gates_proj']['kernel'], 1) + p['gates_proj']['bias']
    forget, write, read = np.moveaxis(gates, 1, 0)
    kept = expit(-forget) ** max(p['alpha'], 0) if 'alpha' in p else expit(forget)
    return System(kept, diagonal(expit(write)), diagonal(gelu(project(p, 'gate')) * expit(read)), np.zeros((T, 24, 24)))


def rg_lru(p, t):
    r, i = np.moveaxis(t['gates'], 1, 0)
    kept = np.exp(-8 * np.log1p(np.exp(p['decay'])) * r)
    return System(kept, diagonal(np.sqrt(1 - kept**2) * i), diagonal(gelu(project(p, 'gate'))), np.zeros((T, D, D)))


MEMBERS = {
    'aaren': aaren,
    'linear_attention': linear_attention,
    'normalized_attention': normalized_attention,
    's6': s6,
    's6_alone': functools.partial(s6, alone=True),
    'ssd': ssd,
    'qlstm': qlstm,
    'qlstm_reversed': qlstm,
    'rg_lru': rg_lru,
}


def values(name):
    """u [T, U]."""
    p, t = parameters(name), taps(name)
    return convolved(p, project(p, 'x')) if name == 'rg_lru' else t['v'].reshape(T, -1)


def read_out(name, y):
    """What stands between the system and the output projection: of SSD a gate and a norm, else nothing."""
    if name != 'ssd':
        return y
    p = parameters(name)['write']
    y = y * silu(np.tensordot(X[0], p['gate_proj']['kernel'], 1)).reshape(T, -1)
    return y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6) * p['norm']['scale']


@pytest.mark.parametrize('name', MEMBERS)
def test_a_layer_is_its_operator_and_its_scan(name):
    system, u = MEMBERS[name](parameters(name), taps(name)), values(name)
    for y in (np.einsum('iyju,ju->iy', system.operator(), u), system.scan(u)):
        np.testing.assert_allclose(returned(name, read_out(name, y)), layer(name)[0], atol=1e-10)


@pytest.mark.parametrize('name', ['aaren', 'normalized_attention', 's6', 's6_alone', 'qlstm', 'qlstm_reversed'])
def test_with_its_gates_held_a_layer_is_linear_and_its_jacobian_the_operator(name):
    """Block lower triangular, exactly: what the layer computes, differentiated, holds no entry above the diagonal."""
    system, seen = MEMBERS[name](parameters(name), taps(name)), taps(name)
    held = {site: Edit(value=seen[site][None]) for site in ('q', 'k', 'gates') if site in seen}

    @jax.jit
    @jax.jacrev
    def jacobian(v):
        variables = {'params': parameters(name), 'edits': held | {'v': Edit(value=v)}}
        return CONFIGS[name].make().apply(variables, X, mutable=['taps'])[1]['taps']['z'][0]

    found = np.asarray(jacobian(seen['v'][None])).reshape(T, -1, T, seen['v'][0].size)
    np.testing.assert_allclose(found, system.operator(), atol=1e-10)
    for i in range(T):
        assert not np.any(found[i, :, i + 1 :])


def random_heads(*sizes, seed=3):
    random = np.random.default_rng(seed)
    return [random.normal(size=(1, T, *size)) for size in sizes]


def test_s6_without_decay_at_steps_of_one_is_linear_attention_without_normaliser():
    q, k, v = random_heads((4,), (4,), (8,))
    y, state = selective_scan(v, np.ones_like(v), np.zeros((8, 4)), k, q, np.zeros((1, 8, 4)), chunk=4)
    expected, memory = gated_linear_attention(
        q[:, :, None], k[:, :, None], v[:, :, None], None, scale=1.0, return_state=True
    )
    np.testing.assert_allclose(y, expected[:, :, 0], atol=1e-10)
    np.testing.assert_allclose(jnp.swapaxes(state, 1, 2), memory[:, 0], atol=1e-10)


def test_s6_is_linear_attention_where_its_step_is_the_growth_of_the_normaliser():
    """exp(-dt a) = eta_{i-1} / eta_i and dt B = psi(k) / eta, with a = 1: then the two couple alike."""
    t, z = taps('linear_attention'), []
    eta = normaliser(t)
    for head in range(2):
        step = np.concatenate([[1.0], np.log(eta[1:, head] / eta[:-1, head])])[:, None]
        write = t['k'][:, head] / (eta[:, head, None] * step)
        arrays = t['v'][:, head], np.broadcast_to(step, (T, 8)), write, t['q'][:, head]
        u, step, write, read = (x[None] for x in arrays)
        z.append(selective_scan(u, step, np.ones((8, 8)), write, read, np.zeros((1, 8, 8)), chunk=4)[0][0])
    expected, _ = layer('linear_attention')
    np.testing.assert_allclose(returned('linear_attention', np.stack(z, axis=1)), expected, atol=1e-10)


def test_the_reversed_qlstm_is_s6_with_one_number_a_channel():
    """exp(-a softplus(z)) = sigmoid(-z)^a: the forget gate is S6's, its step the softplus of the gate."""
    p, t = parameters('qlstm_reversed') | {'alpha': np.array(0.7)}, taps('qlstm_reversed')
    system, u = qlstm(p, t), t['v'][:, 0]
    forget = np.tensordot(u, p['gates_proj']['kernel'][:, 0], 1) + p['gates_proj']['bias'][0]
    step = np.log1p(np.exp(forget))
    written = np.einsum('tnu,tu->tn', system.B, u) / step
    ones = np.ones((1, T, 1))
    h, _ = selective_scan(written[None], step[None], np.full((24, 1), 0.7), ones, ones, np.zeros((1, 24, 1)), chunk=4)
    np.testing.assert_allclose(np.einsum('tyn,tn->ty', system.C, h[0]), system.scan(u), atol=1e-10)


def test_the_weights_of_linear_attention_sum_to_one():
    """But for the 1e-6 beside the normaliser."""
    operator = linear_attention(parameters('linear_attention'), taps('linear_attention')).operator()
    np.testing.assert_allclose(operator.sum(axis=(2, 3)), 1, atol=1e-5)


def test_normalised_attention_fed_with_features_and_row_sums_is_linear_attention():
    t = taps('linear_attention')
    cfg = dataclasses.replace(CONFIGS['normalized_attention'], key_dim=8)
    params = jax.eval_shape(cfg.make().init, jax.random.key(0), X)['params']
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), nn.unbox(params))
    edits = {site: Edit(value=t[site][None]) for site in 'qkv'} | {'gates': Edit(value=normaliser(t)[None])}
    z = jax.jit(functools.partial(cfg.make().apply, mutable=['taps']))({'params': params, 'edits': edits}, X)[1]
    expected, _ = layer('linear_attention')
    np.testing.assert_allclose(returned('linear_attention', np.asarray(z['taps']['z'])), expected, atol=1e-10)


def taylor(x, degree):
    """All monomials of x up to a degree, over the root of their degree's factorial: the features of exp, cut off."""
    features, power = [np.ones((*x.shape[:-1], 1))], np.ones((*x.shape[:-1], 1))
    for m in range(1, degree + 1):
        power = (power[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1)
        features.append(power / math.sqrt(math.factorial(m)))
    return np.concatenate(features, axis=-1)


@pytest.mark.parametrize('degree', [1, 2, 4, 6])
def test_a_state_of_taylor_features_nears_softmax_attention_as_it_grows(degree):
    """With |q.k| <= sqrt(d) the weights before normalisation are off by at most e / (degree + 1)!."""
    cfg = SoftmaxConfig(width=D, heads=8, rotary_base=None)
    q, k, v = random_heads((8, 2), (8, 2), (8, 2))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) * 2**0.25 for x in (q, k))
    params = jax.eval_shape(cfg.make().init, jax.random.key(0), X)['params']
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), nn.unbox(params))
    edits = {'q': Edit(value=q), 'k': Edit(value=k), 'v': Edit(value=v)}
    run = jax.jit(functools.partial(cfg.make().apply, mutable=['taps']))
    exact = np.asarray(run({'params': params, 'edits': edits}, X)[1]['taps']['z'][0])

    scores = np.einsum('thk,shk->hts', q[0], k[0]) / 2**0.5
    features = [taylor(x[0] / 2**0.25, degree) for x in (q, k)]
    assert features[0].shape[-1] == sum(2**m for m in range(degree + 1))
    weights = np.einsum('thn,shn->hts', *features)
    bound = math.e / math.factorial(degree + 1)
    assert np.max(np.abs(scores)) <= 1 and np.max(np.abs(weights - np.exp(scores))) <= bound
    if degree == 1:
        np.testing.assert_allclose(weights, 1 + scores, atol=1e-12)
    eta = np.einsum('thn,thn->th', features[0], np.cumsum(features[1], 0))
    y = separable(*features, eta, 2).scan(v[0].reshape(T, -1))
    largest = np.max(np.abs(v)) * 2 * bound / math.exp(-1)  # each weight over a sum of weights that are at least 1/e
    assert np.max(np.abs(y - exact.reshape(T, -1))) <= largest


def test_an_rg_lru_whose_recurrence_gate_is_closed_holds_its_state():
    """A = 1 and an input weight of 0, but for the floor under the root."""
    cfg, held = CONFIGS['rg_lru'], np.random.default_rng(4).normal(size=(1, D))
    state = cfg.init_state(1, T, jnp.float64).replace(hidden=held)
    state = state.replace(cursor=state.cursor.replace(segment=jnp.ones(1, jnp.int32)))
    edits = {'gates': Edit(scale=np.array([[0.0], [1.0]]))}
    run = jax.jit(cfg.make().apply)
    _, after = run({'params': parameters('rg_lru'), 'edits': edits}, X, state=state)
    np.testing.assert_allclose(after.hidden, held, atol=1e-4)
    _, moved = run({'params': parameters('rg_lru'), 'edits': {}}, X, state=state)
    assert np.max(np.abs(moved.hidden - held)) > 0.1


@pytest.mark.parametrize('name', ['normalized_attention', 's6'])
@pytest.mark.parametrize('chunk', [1, 8, T])
def test_chunks_of_any_size_are_the_recurrence(name, chunk):
    run = jax.jit(dataclasses.replace(CONFIGS[name], chunk=chunk).make().apply)
    y, _ = run({'params': parameters(name)}, X)
    recurrent = jax.jit(dataclasses.replace(CONFIGS[name], implementation='reference').make().apply)
    np.testing.assert_allclose(y, recurrent({'params': parameters(name)}, X)[0], atol=1e-10)
