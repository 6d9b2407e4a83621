"""The competitors of paper 50 in numpy, one row at a time, as its public code writes them: what poolers are held to.

A pooler takes its parameters, the row's tokens x [T, D] and its config, and gives (vec, maps or None).
"""

import math

import numpy as np

erf = np.vectorize(math.erf)


def softmax(x, axis=-1):
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def layer_norm(p, x, epsilon=1e-6):
    y = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    return y * p['scale'] + p.get('bias', 0)


def batch_norm(p, x, epsilon):
    """In evaluation, at running means 0 and 1."""
    return x / np.sqrt(1 + epsilon) * p.get('scale', 1) + p.get('bias', 0)


def linear(p, x):
    """Over one input axis; all output axes are flattened."""
    return x @ p['kernel'].reshape(x.shape[-1], -1) + np.ravel(p.get('bias', 0))


def heads(x, count):
    return x.reshape(len(x), count, -1).transpose(1, 0, 2)


def attend(q, k, v, count):
    """[N, D], [T, D], [T, D] -> [N, D] and the maps [H, N, T]."""
    q, k, v = (heads(x, count) for x in (q, k, v))
    pattern = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
    return (pattern @ v).transpose(1, 0, 2).reshape(q.shape[1], -1), pattern


def projected(p, q, k, v, count):
    z, pattern = attend(linear(p['q_proj'], q), linear(p['k_proj'], k), linear(p['v_proj'], v), count)
    kernel = p['o_proj']['kernel']
    return z @ kernel.reshape(-1, kernel.shape[-1]) + p['o_proj'].get('bias', 0), pattern


def mlp(p, x):
    return linear(p['out_proj'], gelu(linear(p['in_proj'], x)))


def additive(p, x, cfg):
    maps = softmax(linear(p['score'], np.tanh(linear(p['in_proj'], x))).T)
    return np.ravel(maps @ x), maps


def aim(p, x, cfg):
    x = batch_norm({}, x, 1e-6)
    z, pattern = attend(p['queries'], linear(p['k_proj'], x), linear(p['v_proj'], x), cfg.heads)
    return z.mean(axis=0), pattern.reshape(-1, len(x))


def simpool(p, x, cfg):
    normed = layer_norm(p['norm'], x)
    query = x.mean(axis=0, keepdims=True)
    if cfg.linears:
        q, k, v = linear(p['q_proj'], query), linear(p['k_proj'], normed), normed
    else:
        q, k, v = layer_norm(p['norm'], query), normed, x
    if cfg.gamma is None:
        z, pattern = attend(q, k, v, cfg.heads)
    else:
        z, pattern = attend(q, k, (v - v.min() + 1e-6) ** cfg.gamma, cfg.heads)
        z = z ** (1 / cfg.gamma)
    return z[0], pattern[:, 0]


def cae(p, x, cfg):
    q, k, v = (layer_norm(p[f'{name}_norm'], y, 1e-5) for name, y in (('q', p['queries']), ('k', x), ('v', x)))
    y, pattern = projected(p['attention'], q, k, v, cfg.heads)
    return y[0], pattern[:, 0]


def v_jepa(p, x, cfg):
    normed = layer_norm(p['token_norm'], x, 1e-5)
    y, pattern = projected(p['attention'], p['queries'], normed, normed, cfg.heads)
    z = p['queries'] + y
    z = z + mlp(p['mlp'], layer_norm(p['mlp_norm'], z, 1e-5))
    return z[0], pattern[:, 0]


def siglip(p, x, cfg):
    z, pattern = projected(p['attention'], p['queries'], x, x, cfg.heads)
    return (z + mlp(p['mlp'], z))[0], pattern[:, 0]


def without_first(pattern):
    return pattern[:, 0, 1:] / pattern[:, 0, 1:].sum(axis=-1, keepdims=True)


def clip(p, x, cfg):
    x = layer_norm(p['norm'], x)
    x = np.concatenate([x.mean(axis=0, keepdims=True), x]) + p['positions'][: len(x) + 1]
    y, pattern = projected(p['attention'], x, x, x, cfg.heads)  # all ask, and the first is read
    return y[0], without_first(pattern)


def coca(p, x, cfg):
    q = linear(p['attention']['q_proj'], layer_norm(p['q_norm'], p['queries'], 1e-5))
    k, v = (np.tile(linear(p['attention'][f'{name}_proj'], x), cfg.heads) for name in 'kv')
    z, pattern = attend(q, k, v, cfg.heads)
    return (z @ p['attention']['o_proj']['kernel'].reshape(z.shape[-1], -1))[0], pattern[:, 0]


def cait(p, x, cfg):
    z = p['queries']
    u = layer_norm(p['attention_norm'], np.concatenate([z, x]))
    y, pattern = projected(p['attention'], u[:1], u, u, cfg.heads)
    z = z + p['attention_scale'] * y
    z = z + p['mlp_scale'] * mlp(p['mlp'], layer_norm(p['mlp_norm'], z))
    return layer_norm(p['norm'], z, 1e-5)[0], without_first(pattern)


def dino_block(p, x, cfg):
    normed = layer_norm(p['mixer_norm'], x, 1e-5)
    x = x + projected(p['mixer'], normed, normed, normed, cfg.heads)[0]
    return (x + mlp(p['mlp'], layer_norm(p['mlp_norm'], x, 1e-5))).mean(axis=0), None


def cbam(p, x, cfg):
    gate = sum(linear(p['out_proj'], np.maximum(linear(p['in_proj'], y), 0)) for y in (x.mean(axis=0), x.max(axis=0)))
    y = x * sigmoid(gate)
    grid = np.stack([y.mean(axis=1), y.max(axis=1)], axis=1).reshape(-1, cfg.columns, 2)
    reach = cfg.kernel // 2
    padded = np.pad(grid, ((reach, reach), (reach, reach), (0, 0)))
    logits = [
        np.sum(padded[i : i + cfg.kernel, j : j + cfg.kernel] * p['kernel'][..., 0])
        for i in range(len(grid))
        for j in range(cfg.columns)
    ]
    y = y * sigmoid(batch_norm(p['norm'], np.array(logits)[:, None], 1e-5))
    return np.maximum(x + y, 0).mean(axis=0), None


def dolg(p, x, cfg):
    y = batch_norm(p['norm'], linear(p['in_proj'], x), 1e-5)
    scores = linear(p['score'], np.maximum(y, 0))
    weights = np.log1p(np.exp(scores))
    vec = (weights * y / np.linalg.norm(y, axis=1, keepdims=True)).mean(axis=0)
    return vec, (weights / weights.sum()).T


PUBLISHED = {
    'mean': lambda p, x, cfg: (x.mean(axis=0), None),
    'max': lambda p, x, cfg: (x.max(axis=0), None),
    'last': lambda p, x, cfg: (x[-1], None),
    'cls': lambda p, x, cfg: (x[0], None),
    'additive': additive,
    'structured': additive,
    'abmilp': additive,
    'aim': aim,
    'simpool': simpool,
    'cae': cae,
    'v_jepa': v_jepa,
    'siglip': siglip,
    'clip': clip,
    'coca': coca,
    'cait': cait,
    'dino_block': dino_block,
    'cbam': cbam,
    'dolg': dolg,
}
