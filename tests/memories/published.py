"""The layers of the linear recurrences as their papers write them, in numpy: what members are held to.

A layer takes its parameters (of the member of that name) and x [B, T, D] and gives z [B, T, H, V], before the output
projection; projections, convolutions, norms and gates stand around one `loop` that serves all matrix memories.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.papers.miras.recurrences import ROWS
from experiments.papers.miras.stream import Stream
from jattn.contract import Context

B, T, D, H, K = 2, 11, 32, 4, 8  # K: of the members whose keys are as wide as the model


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
