"""The recurrences that Titans and Miras are compared with, layer by layer, against their equations written in numpy.

Float64 throughout. A layer of `LAYERS` is a member as its paper has it, projections, convolutions, norms and gates
included, around one loop that serves all matrix memories; parameters are random. What the ops and paths promise (chunks
of any size, states handed over, packed documents, gradients) is tested with them; this file holds them to the papers.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.papers.miras.recurrences import ROWS
from experiments.papers.miras.stream import Stream
from jattn.contract import Context, Rows, locate
from jattn.memories import MEMORIES
from jattn.memories.architecture import Gated, Matrix
from jattn.memories.bias import L2, Dot
from jattn.memories.gates import GATES, Gate, GateModule, Gates
from jattn.memories.learner import RIDGE_FLOOR, Learner, implicit_step
from jattn.memories.members import with_lower_bounds
from jattn.memories.paths import PATHS
from jattn.memories.paths.state import Fresh, empty_cell
from jattn.memories.retention import Decay, RowNorm
from jattn.memories.tokens import Tokens, place
from jattn.models.decoder import DecoderConfig
from jattn.ops import diagonal_plus_low_rank
from jattn.training.optimizer import matrix_axes

B, T, D, H, K = 2, 11, 32, 4, 8  # K: of the members whose keys are as wide as the model


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def assert_near(ours, exact, tolerance=1e-10):
    np.testing.assert_allclose(ours, exact, rtol=0, atol=tolerance * np.max(np.abs(exact)))


# --- the layers, as the papers write them


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def unit(x):
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def rms(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def centred(x):
    return x - np.mean(x, axis=-1, keepdims=True)


def project(p, name, x):
    return np.tensordot(x, p[name]['kernel'], 1)


def low_rank(p, name, x, act=lambda x: x):
    return project(p, f'{name}up_proj', act(project(p, f'{name}down_proj', x)))


def gate(p, name, x):
    """A gate's z, with a bias and of any rank."""
    p = p[f'{name}_gate']
    return (project(p, 'proj', x) if 'proj' in p else low_rank(p, '', x)) + p['bias']


def rate(p, x):
    """Mamba-2's log decay, - exp(A_log) softplus(z + dt_bias), and its time step."""
    dt = softplus(gate(p, 'decay', x))
    rates = np.exp(p['decay_gate']['decay_rate'])
    return -(rates if dt.ndim == 3 else rates[:, None]) * dt, dt


def convolved(p, *arrays):
    """All arrays [B, T, ...] through one causal depthwise convolution of 4 tokens."""
    joined = np.concatenate([a.reshape(B, T, -1) for a in arrays], axis=-1)
    before = np.pad(joined, ((0, 0), (3, 0), (0, 0)))
    y = sum(p['conv']['kernel'][n] * before[:, n : n + T] for n in range(4)) + p['conv']['bias']
    ends = np.cumsum([a[0, 0].size for a in arrays])[:-1]
    return [part.reshape(a.shape) for part, a in zip(np.split(y, ends, axis=-1), arrays)]


def qkv(p, x):
    return [project(p, f'{name}_proj', x) for name in 'qkv']


def delta_qkv(p, x):
    """The delta rules': convolution and SiLU on all three, then q and k of length 1, q over the root of K."""
    q, k, v = map(silu, convolved(p, *qkv(p, x)))
    return unit(q) / np.sqrt(q.shape[-1]), unit(k), v


def rotated(x, positions):
    half = x.shape[-1] // 2
    turn = np.exp(1j * positions[:, None, None] * 10_000.0 ** (-np.arange(half) / half))
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


def loop(q, k, v, w=1.0, a=0.0, b=0.0):
    """S_t = S_{t-1} Diag(w) + (S_{t-1} a) b^T + v k^T,   y_t = S_t q_t: the one form of all matrix memories."""
    w, a, b = (np.broadcast_to(x, k.shape) for x in (w, a, b))
    state, y = np.zeros((*v.shape[:1], *v.shape[2:], k.shape[-1])), np.zeros(v.shape)
    for t in range(k.shape[1]):
        held = np.einsum('bhvk,bhk->bhv', state, a[:, t])
        state = state * w[:, t, :, None] + held[..., None] * b[:, t, :, None] + v[:, t, ..., None] * k[:, t, :, None]
        y[:, t] = np.einsum('bhvk,bhk->bhv', state, q[:, t])
    return y


def gated_delta(q, k, v, beta, w=1.0):
    """S Diag(w) (I - beta k k^T) + beta v k^T."""
    return loop(q, k, beta * v, w, -beta * w * k, k)


def swish(p, x):
    return silu(project(p['write'], 'gate_proj', x))


def out(p, y, gate=1.0):
    """An RMS norm a head, then the gate."""
    return rms(y) * p['write']['norm']['scale'] * gate


def projected(p, z):
    return np.einsum('bthv,hvd->btd', z, p['o_proj']['kernel'])


def retnet(p, x):
    (q, k, v), place = qkv(p['read'], x), np.arange(T)
    y = loop(rotated(q, place) / np.sqrt(K), rotated(k, place), v, (1 - 2.0 ** (-5 - np.arange(H)))[:, None])
    return out(p, y, swish(p, x))


def gla(p, x):
    q, k, v = qkv(p['read'], x)
    y = loop(q / np.sqrt(K // 2), k, v, sigmoid(gate(p['read'], 'decay', x)) ** (1 / 16))
    return out(p, y, swish(p, x))


def mamba2(p, x):
    c, b, own = map(silu, convolved(p['read'], *qkv(p['read'], x)))
    log_decay, dt = rate(p['read'], x)
    c, b = (np.repeat(h, H, axis=2) for h in (c, b))
    y = loop(c, b, dt[..., None] * own, np.exp(log_decay)[..., None]) + p['write']['skip'][:, None] * own
    y = y * swish(p, x)
    return rms(y.reshape(B, T, -1)).reshape(y.shape) * p['write']['norm']['scale'].reshape(y.shape[2:])


def deltanet(p, x):
    return out(p, gated_delta(*delta_qkv(p['read'], x), sigmoid(gate(p['read'], 'step', x))[..., None]))


def gated_deltanet(p, x):
    beta, decay = sigmoid(gate(p['read'], 'step', x)), np.exp(rate(p['read'], x)[0])
    y = gated_delta(*delta_qkv(p['read'], x), beta[..., None], decay[..., None])
    return out(p, y, swish(p, x))


def kimi_delta(p, x):
    beta, decay = sigmoid(gate(p['read'], 'step', x)), np.exp(rate(p['read'], x)[0])
    y = gated_delta(*delta_qkv(p['read'], x), beta[..., None], decay)
    return out(p, y, sigmoid(low_rank(p['write'], 'gate_', x)))


def comba(p, x):
    (q, k, v), beta = delta_qkv(p['read'], x), sigmoid(gate(p['read'], 'step', x))[..., None]
    erasing = sigmoid(p['read']['erase_scale'])[:, None] * k
    decay = np.exp(rate(p['read'], x)[0])[..., None]
    q = q - p['read']['query_correction'][:, None] * erasing / np.sqrt(K)
    y = loop(q, k, beta * v, decay, -beta * erasing, k)
    return out(p, y, swish(p, x))


def delta_product(p, x, n=2):
    """A gated delta rule on a sequence n times as long, decay at the first and the read at the last of n."""
    q, k, v = map(silu, convolved(p['read'], *qkv(p['read'], x)))
    beta, decay = sigmoid(gate(p['read'], 'step', x)), np.exp(rate(p['read'], x)[0])

    def longer(x):
        return np.moveaxis(x.reshape(B, T, H, n, -1), 3, 2).reshape(B, n * T, H, -1)

    reads, decays = np.zeros((B, n * T, H, K)), np.ones((B, n * T, H, 1))
    reads[:, n - 1 :: n], decays[:, ::n] = unit(q) / np.sqrt(K), decay[..., None]
    y = gated_delta(reads, longer(unit(k)), longer(v), longer(beta), decays)[:, n - 1 :: n]
    return out(p, y, swish(p, x))


def rwkv7(p, x):
    r, before = p['read'], np.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :T]
    of = {c: x + (before - x) * mix for c, mix in zip('rwkvag', r['mixes'])}
    w = np.exp(-0.6065 * sigmoid(low_rank(r, 'w_', of['w'], np.tanh) + r['w_bias']))
    rate = sigmoid(low_rank(r, 'a_', of['a']) + r['a_bias'])
    q, k, v = (project(r, f'{c}_proj', of[c]) for c in 'rkv')
    v = v + (first_value() - v) * sigmoid(low_rank(r, 'v_', of['v']) + r['v_bias'])
    erased, k = unit(k * r['k_k']), k * (1 + (rate - 1) * r['k_a'])
    y = centred(loop(q, k, v, w, -erased, erased * rate))
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-5 * K)
    y = y * p['write']['norm_scale'] + p['write']['norm_shift'] + np.sum(q * k * r['r_k'], -1, keepdims=True) * v
    return y * low_rank(r, 'g_', of['g'], sigmoid)


def mesa(p, x):
    """v has neither convolution nor SiLU; the output gate is an option of the paper's code."""
    q, k, v = qkv(p['read'], x)
    q, k = map(unit, map(silu, convolved(p['read'], q, k)))
    beta, decay = (sigmoid(gate(p['read'], name, x))[..., None, None] for name in ('step', 'decay'))
    y = ridge(q, k, v, beta, decay, softplus(p['ridge']) + 0.25)
    return out(p, y, 1.0)


def ridge(q, k, v, beta, decay, penalty):
    """y_t = G_t (H_t + Diag(lambda))^-1 q_t, solved at every token."""
    gram, memory, y = np.zeros((B, H, K, K)), np.zeros((B, H, K, K)), np.zeros(v.shape)
    for t in range(T):
        gram = decay[:, t] * gram + beta[:, t] * k[:, t, ..., None] * k[:, t, :, None]
        memory = decay[:, t] * memory + beta[:, t] * v[:, t, ..., None] * k[:, t, :, None]
        inverse = np.linalg.inv(gram + penalty[..., None] * np.eye(K))
        y[:, t] = np.einsum('bhvk,bhkl,bhl->bhv', memory, inverse, q[:, t])
    return y


def ttt(row, bound, p, x):
    """q and k of one projection through two convolutions without activation, turned within the chunk of 4."""
    shared, place = project(p['read'], 'qk_proj', x), np.arange(T) % 4
    q, k = (rotated(h, place) for h in convolved(p['read'], shared, shared))
    v, eta = project(p['read'], 'v_proj', x), bound * sigmoid(gate(p['read'], 'step', x)) / K
    y = np.zeros((B, T, H, K))
    for b, h in np.ndindex(B, H):
        slow = {'norm_scale': p['norm_scale'][h], 'norm_shift': p['norm_shift'][h], 'offsets': p['offsets']}
        initial = tuple(p[name][h] for name in sorted(p) if name.startswith('memory_'))
        told = [a[b, :, h] for a in (q, k, v, eta)]
        y[b, :, h] = ROWS[row].recurrence(Stream(*told, None, None, None, None, h, H, initial, slow, 4))
    y = centred(y.reshape(B, T, D))
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6)
    y = (y * p['write']['norm']['scale'] + p['write']['norm']['bias']).reshape(B, T, H, K)
    return y * gelu(project(p['write'], 'gate_proj', x))


def lact(p, x):
    """With one step for all three weights, at most 1, momentum below .95, and no rotation."""
    q, k, v = map(silu, qkv(p['read'], x))
    step, momentum = np.minimum(softplus(gate(p['read'], 'step', x)), 1), 0.95 * sigmoid(gate(p['read'], 'momentum', x))
    y = blind_swiglu(unit(q), unit(k), v, step, momentum, [p[f'memory_{n}'] for n in range(3)])
    return out(p, y, swish(p, x))


def blind_swiglu(q, k, v, step, momentum, initial, chunk=4):
    """A chunk reads the weights after the last one, then moves them; rows keep the norms they started with."""
    y = np.zeros(v.shape)
    for b, h in np.ndindex(B, H):
        start = weights = [w[h] for w in initial]
        moved = [0.0] * 3
        for at in range(0, T, chunk):
            now = (b, slice(at, at + chunk), h)
            w0, w1, w2 = weights
            y[now] = (silu(q[now] @ w0.T) * (q[now] @ w2.T)) @ w1.T
            z, linear, pull = k[now] @ w0.T, k[now] @ w2.T, v[now] @ w1
            slope = sigmoid(z) * (1 + z * (1 - sigmoid(z)))
            moves = [(pull * linear * slope, k[now]), (v[now], silu(z) * linear), (pull * silu(z), k[now])]
            moved = [np.mean(momentum[now]) * m + (step[now][:, None] * e).T @ i for m, (e, i) in zip(moved, moves)]
            weights = [w + m for w, m in zip(weights, moved)]
            norms = [np.linalg.norm(w, axis=1, keepdims=True) for w in (*weights, *start)]
            weights = [w / norm * kept for w, norm, kept in zip(weights, norms, norms[3:])]
    return y


LAYERS = {
    'retnet': retnet,
    'gla': gla,
    'mamba2': mamba2,
    'deltanet': deltanet,
    'gated_deltanet': gated_deltanet,
    'kimi_delta': kimi_delta,
    'comba': comba,
    'delta_product': delta_product,
    'rwkv7': rwkv7,
    'mesa': mesa,
    'ttt_linear': functools.partial(ttt, 'TTT-Linear', 1.0),
    'ttt_mlp': functools.partial(ttt, 'TTT-MLP', 0.1),
    'lact': lact,
}


def inputs():
    return np.random.default_rng(0).normal(size=(B, T, D))


def first_value():
    return np.random.default_rng(1).normal(size=(B, T, H, K))


def parameters(cfg, seed=2):
    """Random ones for every parameter of a layer."""
    example = jnp.zeros((B, T, D), jnp.float32)
    shapes = nn.unbox(jax.eval_shape(cfg.make().init, jax.random.key(0), example))['params']
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.4 * rng.normal(size=leaf.shape), shapes)


def started(cfg, name):
    """A layer's parameters of that name at the start; no others are computed."""
    example = jnp.zeros((1, 4, D), jnp.float32)
    return jax.jit(lambda key: nn.unbox(cfg.make().init(key, example))['params'][name])(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def apply(cfg, params, x):
    context = Context(first_value=first_value()) if cfg.shares_first_value else Context()
    return cfg.make().apply({'params': params}, x, context)[0]


@pytest.mark.parametrize('name', LAYERS)
def test_a_member_is_the_layer_of_its_paper(name):
    cfg = MEMORIES[name].tiny()
    p = parameters(cfg)
    z = LAYERS[name](p, inputs())
    assert_near(apply(cfg, p, inputs()), projected(p, z))


# --- the memories alone, on tokens drawn here


def drawn(seed=3, step_channels=(), decay_channels=()):
    """Tokens with keys of length 1 and gates inside their bounds."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, T, H, K)) for _ in range(3))
    return Tokens(
        q=q,
        k=k / np.linalg.norm(k, axis=-1, keepdims=True),
        v=v,
        step=rng.uniform(size=(B, T, H, *step_channels)),
        log_decay=-rng.uniform(0, 1, (B, T, H, *decay_channels)),
    )


def memory(name='deltanet', **choices):
    """A member of the test's size with other choices."""
    return dataclasses.replace(MEMORIES[name].tiny(), key_width=1.0, value_width=1.0, key_dim=None, **choices)


@functools.partial(jax.jit, static_argnums=(0, 1))
def read(cfg, path, tokens, initial=None, slow=None, segments=None):
    """What the memory answers."""
    shapes = cfg.architecture.shapes(K, K)
    initial = tuple(jnp.zeros((H, *shape)) for shape in shapes) if initial is None else initial
    slow = slow or {}
    fresh = Fresh(initial, slow, jax.vmap(functools.partial(empty_cell, cfg))(initial, slow))
    rows = locate(Context(segments=segments), (B, T))
    return PATHS[path].run(cfg, tokens, rows, place(rows, (B, T), cfg.chunk, None), fresh, None)[0]


def by_head(recurrence, tokens):
    """A recurrence of one head [T, ...] for all rows and heads; the leaves of `tokens` by attribute."""
    y = [[recurrence(jax.tree.map(lambda x: x[b, :, h], tokens), h) for h in range(H)] for b in range(B)]  # noqa: B023
    return np.moveaxis(np.array(y), 1, 2)


def own_loop(name, s, head):
    """A row of Miras' Table 1, or a write that the table lacks."""
    if name in ROWS:
        recurrence, extra = ROWS[name].recurrence, (None, None, s.erase, head, H, (), {}, 1)
        return recurrence(Stream(s.q, s.k, s.v, s.step, s.log_decay, *extra))
    state, y = np.zeros((K, K)), []
    for q, k, v, beta, decay in zip(s.q, s.k, s.v, s.step, np.exp(s.log_decay)):
        held = state * decay if name == 'Kimi Delta Attention' else state
        state = state * decay + beta * np.outer(v - held @ k, k)
        y.append(state @ q)
    return np.array(y)


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


# --- Longhorn, exact and as published


def longhorn(k, v, step, decay=1.0, error='raw'):
    """All states [B, T, H, V, K]: S[c,n] <- (1 - d_c k_n^2) S[c,n] + d_c x_c k_n, d_c = beta_c / (1 + beta_c k.k)."""
    state, states = np.zeros((B, H, K, K)), []
    decay = np.broadcast_to(decay, (B, T, H, K))[..., None, :]
    step = np.broadcast_to(step, (B, T, H, K))
    for t in range(T):
        d = (step[:, t] / (1 + step[:, t] * np.sum(k[:, t] ** 2, axis=-1, keepdims=True)))[..., None]
        forgotten = d * k[:, t, :, None] ** 2
        kept = decay[:, t] - forgotten if error == 'raw' else decay[:, t] * (1 - forgotten)
        state = kept * state + d * v[:, t, ..., None] * k[:, t, :, None]
        states.append(state)
    return np.stack(states, axis=1)


def diagonal(error='raw', retention=None, **gates):
    """A diagonal memory; as published without further choices."""
    learner = Learner(solver='implicit', diagonal=True, error=error)
    gates = Gates(**({'step': Gate(per='channel')} | gates))
    return memory('longhorn', learner=learner, retention=retention or MEMORIES['longhorn'].retention, gates=gates)


DIAGONAL = {
    'as published': diagonal(),
    'a step per head': diagonal(step=Gate()),
    'a decay per channel, raw': diagonal(retention=Decay(), decay=Gate(per='channel')),
    'a decay, decayed': diagonal('decayed', Decay(), step=Gate(), decay=Gate()),
}
PUBLISHED = DIAGONAL['as published']


def diagonal_tokens(cfg):
    gates = cfg.gates
    channels = [(K,) if gate is not None and gate.per == 'channel' else () for gate in (gates.step, gates.decay)]
    tokens = drawn(5, *channels)
    tokens = tokens.replace(k=2 * tokens.k)
    return tokens if gates.decay is not None else tokens.replace(log_decay=None)


@pytest.mark.parametrize('name', DIAGONAL)
def test_the_diagonal_step_is_the_published_recurrence_on_both_paths(name):
    cfg = DIAGONAL[name]
    assert cfg.running_path == 'diagonal'
    tokens = diagonal_tokens(cfg)
    step = tokens.step if tokens.step.ndim == 4 else tokens.step[..., None]
    decay = 1.0 if tokens.log_decay is None else np.exp(tokens.log_decay)
    decay = decay[..., None] if np.ndim(decay) == 3 else decay
    states = longhorn(tokens.k, tokens.v, step, decay, cfg.learner.error)
    for path in ('diagonal', 'generic'):
        assert_near(read(cfg, path, tokens), np.einsum('bthvk,bthk->bthv', states, tokens.q))


def test_the_gradients_of_the_diagonal_path_are_those_of_the_token_by_token_path():
    cfg = DIAGONAL['a decay per channel, raw']
    weights = np.random.default_rng(6).normal(size=(B, T, H, K))
    ours, oracle = (
        jax.jit(jax.grad(lambda tokens, path=path: jnp.sum(weights * read(cfg, path, tokens))))(diagonal_tokens(cfg))
        for path in ('diagonal', 'generic')
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        assert_near(a, b, 1e-9)


def test_documents_of_a_diagonal_memory_know_nothing_of_each_other():
    cfg, segments = PUBLISHED, jnp.array([[4] * 3 + [0] * 2 + [5] * 6, [1] * 8 + [2] * 3], jnp.int32)
    tokens = diagonal_tokens(cfg)
    hidden = jax.tree.map(lambda x: np.where((segments == 0).reshape(B, T, *[1] * (x.ndim - 2)), np.nan, x), tokens)
    packed = read(cfg, 'diagonal', hidden, segments=segments)
    for row, first, last in ((0, 0, 3), (0, 5, 11), (1, 0, 8), (1, 8, 11)):
        alone = jax.tree.map(lambda x: jnp.roll(x, -first, axis=1), tokens)  # noqa: B023
        assert_near(packed[row, first:last], read(cfg, 'diagonal', alone)[row, : last - first])
    assert not np.any(packed[0, 3:5])


def test_a_diagonal_layer_may_be_called_in_parts():
    cfg = PUBLISHED
    p, x = parameters(cfg), inputs()
    state = cfg.init_state(B, T, jnp.float64)
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, state)
    run = jax.jit(lambda x, state: cfg.make().apply({'params': p}, x, Context(), state))
    outputs = []
    for start, end in itertools.pairwise((0, 5, 6, 11)):
        y, state = run(x[:, start:end], state)
        outputs.append(y)
    assert_near(np.concatenate(outputs, axis=1), apply(cfg, p, x))


def test_the_exact_step_minimises_its_objective_and_equals_the_diagonal_one_where_keys_do_not_meet():
    s = drawn(7)
    before, k, v = np.random.default_rng(8).normal(size=(K, K)), 2 * s.k[0, 0, 0], s.v[0, 0, 0]
    beta = s.step[0, 0, 0]
    d = implicit_step(jnp.asarray(beta), jnp.asarray(k))
    after = before + d * np.outer(v - before @ k, k)
    np.testing.assert_allclose(after - before - beta * np.outer(v - after @ k, k), 0, atol=1e-12)
    one_hot = s.replace(k=2 * np.eye(K)[np.random.default_rng(9).integers(K, size=(B, T, H))], log_decay=None)
    exact = read(memory('longhorn'), 'exact', one_hot)
    assert_near(read(DIAGONAL['a step per head'], 'diagonal', one_hot), exact)
    other = s.replace(log_decay=None)
    apart = read(DIAGONAL['a step per head'], 'diagonal', other) - read(memory('longhorn'), 'exact', other)
    assert np.max(np.abs(apart)) > 0.1


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Learner(diagonal=True), "learner.diagonal=True is a form of solver='implicit'"),
        (lambda: memory('longhorn', gates=Gates(step=Gate(per='channel'))), "solver='implicit' takes a step per head"),
        (lambda: dataclasses.replace(PUBLISHED, path='exact'), 'diagonal of k k^T'),
        (lambda: dataclasses.replace(PUBLISHED, path='diagonal', learned_start=True), 'starts at zero'),
        (lambda: Gate(kind='complement', lower=1.0), 'gate.lower=1.0 must be at least 0 and below 1'),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


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


# --- gates, sizes and states


LOGS = {name: GATES[name] for name in ('keep', 'momentum', 'time_step', 'gla', 'kimi', 'rwkv7', 'hgrn2')}
LOGS['hgrn2, lower'] = dataclasses.replace(GATES['hgrn2'], lower=0.25)


@pytest.mark.parametrize('name', LOGS)
def test_log_decays_are_float32_and_finite_whatever_the_logit(name):
    module, x = GateModule(LOGS[name], 5, 1), jnp.zeros((1, 1, D), jnp.bfloat16)
    shapes = nn.unbox(jax.eval_shape(functools.partial(module.init, as_log=True), jax.random.key(0), x))['params']
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    bias = jnp.array([-300, -100, 0, 100, 300], jnp.float32).reshape(-1, *[1] * (shapes['bias'].ndim - 1))

    def total(bias):
        log_decay = module.apply({'params': params | {'bias': bias}}, x, as_log=True)
        return jnp.sum(log_decay), log_decay

    slope, log_decay = jax.grad(total, has_aux=True)(bias)
    assert log_decay.dtype == slope.dtype == jnp.float32
    assert np.all(np.isfinite(log_decay)) and np.all(np.isfinite(slope)) and np.all(log_decay <= 0)


def made(gate, heads=4000):
    """A gate's parameters at the start."""
    init = jax.jit(functools.partial(GateModule(gate, heads, 1).init, as_log=True))
    return nn.unbox(init(jax.random.key(0), jnp.zeros((1, 1, 2), jnp.float32)))['params']


@pytest.mark.parametrize(
    ('names', 'low', 'high'),
    [(('mamba2', 'kimi_delta'), 1, 16), (('gated_deltanet', 'comba', 'delta_product'), 0, 16)],
)
def test_decay_rates_start_uniform_and_time_steps_log_uniform(names, low, high):
    gates = {MEMORIES[name].gates.decay for name in names}
    assert {gate.decay_range for gate in gates} == {(low, high)}
    params = made(gates.pop())
    rates, log_dt = np.exp(np.ravel(params['decay_rate'])), np.log(softplus(np.ravel(params['bias'])))
    for found, start, end in ((rates, low, high), (log_dt, np.log(1e-3), np.log(0.1))):
        quantiles = (np.quantile(found, [0, 0.25, 0.5, 0.75, 1]) - start) / (end - start)
        np.testing.assert_allclose(quantiles, [0, 0.25, 0.5, 0.75, 1], atol=0.03)


def names_of(cfg):
    """path -> the logical names of a parameter's axes."""
    boxed = jax.eval_shape(cfg.make().init, jax.random.key(0), jnp.zeros((1, 4, cfg.width), jnp.float32))['params']
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def test_decay_rates_and_time_steps_never_decay_themselves():
    for name in ('mamba2', 'kimi_delta', 'gated_deltanet'):
        leaves = names_of(MEMORIES[name].tiny())
        decaying = {path for path, leaf in leaves.items() if matrix_axes(leaf.names)}
        assert not decaying & {'read.decay_gate.decay_rate', 'read.decay_gate.bias', 'write.skip'}
        assert {'read.q_proj.kernel', 'o_proj.kernel'} < decaying


WIDTHS = {'retnet': (1, 2), 'gla': (0.5, 1), 'deltanet': (1, 1), 'gated_deltanet': (0.75, 1.5), 'kimi_delta': (1, 1)}


@pytest.mark.parametrize('name', WIDTHS)
def test_keys_and_values_are_as_wide_as_published(name):
    cfg = dataclasses.replace(MEMORIES[name], width=1024)
    assert (cfg.keys * cfg.heads / 1024, cfg.head_values * cfg.heads / 1024) == WIDTHS[name]


def test_mamba2_has_a_state_of_64_shared_by_its_heads_and_convolves_all_three_together():
    cfg = dataclasses.replace(MEMORIES['mamba2'], width=128)
    assert (cfg.keys, cfg.recipe.key_groups, cfg.heads * cfg.head_values) == (64, 1, 256)
    assert names_of(cfg)['read.conv.kernel'].value.shape == (4, 2 * 64 + 256)


def test_gated_deltanet_has_six_squared_widths_of_parameters():
    cfg = dataclasses.replace(MEMORIES['gated_deltanet'], width=1024, heads=3)
    assert (cfg.keys, cfg.head_values) == (256, 512)
    count = sum(leaf.value.size for leaf in names_of(cfg).values())
    assert count / 1024**2 == pytest.approx(6, rel=0.01)


def test_ttt_starts_small_with_chunks_of_16_and_its_steps_are_shared_out_by_place():
    for name, base in (('ttt_linear', 1.0), ('ttt_mlp', 0.1)):
        cfg = dataclasses.replace(MEMORIES[name], width=128)
        assert (cfg.chunk, GateModule(cfg.gates.step, 4, 1, keys=cfg.keys).limit) == (16, base / 32)
        weights = cfg.architecture.init(jax.random.key(0), cfg.architecture.shapes(32, 32), 4)
        assert all(np.std(w[..., :-1]) == pytest.approx(0.02, rel=0.1) and not np.any(w[..., -1]) for w in weights)
    assert [shape[0] for shape in MEMORIES['ttt_mlp'].architecture.shapes(32, 32)] == [128, 32]


def test_states_hold_the_last_three_inputs_of_each_convolution_or_the_last_token():
    tails = {'deltanet': (3, 3 * D), 'mamba2': (3, 2 * K + 2 * D), 'mesa': (3, 2 * D), 'ttt_linear': (3, 2 * D)}
    for name, shape in (tails | {'rwkv7': (1, D)}).items():
        assert MEMORIES[name].tiny().init_state(1, 8).tails.shape == (1, *shape)
    for name in ('linear_attention', 'retnet', 'gla'):
        assert MEMORIES[name].tiny().init_state(1, 8).tails is None


def test_memories_that_correct_themselves_have_keys_of_length_one():
    """Or a triangular system without bound; TTT and RWKV-7 bound theirs otherwise, Longhorn needs none."""
    correcting = [cfg for cfg in MEMORIES.values() if cfg.chunk == 1 and (cfg.bias.erases or not cfg.bias.is_constant)]
    recipes = [cfg.recipe for cfg in correcting if cfg != MEMORIES['rwkv7']]
    assert len(recipes) >= 8 and all(recipe.qk_norm for recipe in recipes)


def test_the_sums_of_mesa_are_float32_under_bfloat16():
    cfg = MEMORIES['mesa'].tiny()
    x = jnp.zeros((1, 4, D), jnp.bfloat16)
    cursor = cfg.init_state(1, 8)
    params = jax.eval_shape(cfg.make().init, jax.random.key(0), x)
    y, after = jax.eval_shape(cfg.make().apply, params, x, Context(), cursor)
    assert y.dtype == jnp.bfloat16
    assert after.memory.gram.dtype == after.memory.memory.dtype == jnp.float32


# --- HGRN2's lower bounds


def test_lower_bounds_are_those_of_a_softmax_over_layers_at_its_start():
    mixers = with_lower_bounds(MEMORIES['hgrn2'], 5)
    share = np.exp(np.zeros(5)) / 5
    np.testing.assert_allclose([cfg.gates.decay.lower for cfg in mixers], np.cumsum(share) - share[0], atol=1e-15)
    cfg = DecoderConfig(width=D, layers=5, mixer=mixers, read_in='tokens', input_size=8, output_size=8)
    assert [mixer.gates.decay.lower for mixer in cfg.mixers()] == [0, 0.2, 0.4, 0.6, 0.8]
    assert dataclasses.replace(mixers[3], gates=mixers[0].gates) == mixers[0] == MEMORIES['hgrn2']


@pytest.mark.parametrize('lower', [0.0, 0.6])
def test_hgrn2_keeps_at_least_its_lower_bound_and_writes_what_it_forgets(lower):
    cfg = with_lower_bounds(MEMORIES['hgrn2'].tiny(), 5)[round(5 * lower)]
    p = parameters(cfg)
    read_in = cfg.recipe.read_in(cfg)
    tokens, _ = read_in.apply({'params': p['read']}, inputs(), Rows(), Context(), None, jnp.zeros((B, T), jnp.int32))
    f = lower + (1 - lower) * sigmoid(gate(p['read'], 'decay', inputs()))
    assert np.min(f) >= lower
    assert_near(tokens.log_decay, np.log(f))
    assert_near(tokens.k, 1 - f)
