"""The atlas: what rows of attention look like, laid out on a plane by an autoencoder, and in clusters.

map     a patch's row of attention around the patch itself, (2 R + 1)^2 places, divided by its norm; outside: 0
code    two numbers, of an autoencoder P -> 32 -> 2 -> 32 -> P with the squared error
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.papers.fit import fit
from jattn.typing import Array, Float, Int32, Key, PyTree

HIDDEN = 32


def centred(
    pattern: Float[np.ndarray, 'N L H T T'], grid: tuple[int, int], reach: int, count: int, seed: int
) -> tuple[Float[np.ndarray, 'M P'], Int32[np.ndarray, 'M 2']]:
    """Maps of `count` patches of each head, drawn at random over images, and (layer, head) of each.

    >>> maps, heads = centred(np.eye(9).reshape(1, 1, 1, 9, 9), (3, 3), reach=1, count=2, seed=0)
    >>> maps.tolist(), heads.tolist()
    ([[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]], [[0, 0], [0, 0]])
    """
    generator, patches = np.random.default_rng(seed), grid[0] * grid[1]
    own = pattern[..., -patches:, -patches:].reshape(*pattern.shape[:3], *grid, *grid)
    maps, heads = [], []
    for layer in range(pattern.shape[1]):
        for head in range(pattern.shape[2]):
            for _ in range(count):
                number = generator.integers(len(pattern))
                row, column = generator.integers(grid[0]), generator.integers(grid[1])
                around = np.pad(own[number, layer, head, row, column], reach)
                window = around[row : row + 2 * reach + 1, column : column + 2 * reach + 1].ravel()
                maps.append(window / max(np.linalg.norm(window), 1e-9))
                heads.append((layer, head))
    return np.array(maps), np.array(heads)


def train(
    maps: Float[np.ndarray, 'M P'], key: Key, steps: int, code: int = 2, hidden: int = HIDDEN
) -> tuple[PyTree, float]:
    """An autoencoder of maps, and its squared error over that of their mean."""
    mean = maps.mean(axis=0)
    shapes = [(maps.shape[1], hidden), (hidden, code), (code, hidden), (hidden, maps.shape[1])]
    keys = jax.random.split(key, len(shapes) + 1)
    params = {'mean': jnp.asarray(mean, jnp.float32)}
    for number, shape in enumerate(shapes):
        params[f'w{number}'] = jax.random.normal(keys[number], shape) * shape[0] ** -0.5
        params[f'b{number}'] = jnp.zeros(shape[1])
    data = jnp.asarray(maps, jnp.float32)

    def loss(params: PyTree, key: Key) -> Array:
        del key  # all maps at once
        return jnp.mean(jnp.square(decode(params, encode(params, data)) - data))

    params, _ = fit(params, loss, optax.adam(optax.cosine_decay_schedule(5e-3, steps)), steps, keys[-1], steps)
    return params, float(loss(params, key) / np.mean(np.square(maps - mean)))


@jax.jit
def encode(params: PyTree, maps: Float[Array, 'M P']) -> Float[Array, 'M C']:
    """The codes of maps."""
    hidden = jnp.tanh((maps - params['mean'][None]) @ params['w0'] + params['b0'][None])
    return hidden @ params['w1'] + params['b1'][None]


@jax.jit
def decode(params: PyTree, codes: Float[Array, 'M C']) -> Float[Array, 'M P']:
    """The maps of codes."""
    hidden = jnp.tanh(codes @ params['w2'] + params['b2'][None])
    return hidden @ params['w3'] + params['b3'][None] + params['mean'][None]


def clusters(codes: Float[np.ndarray, 'M C'], count: int, seed: int, starts: int = 8) -> Int32[np.ndarray, 'M']:
    """K-means (Lloyd's, the best of several starts): the cluster of each code.

    >>> clusters(np.array([[0.0], [0.1], [5.0], [5.1]]), 2, seed=0).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    True
    """
    generator, best = np.random.default_rng(seed), (np.inf, np.zeros(len(codes), int))
    for _ in range(starts):
        centres = codes[generator.permutation(len(codes))[:count]]
        for _ in range(50):
            own = _squares(codes, centres).argmin(axis=1)
            centres = np.stack([codes[own == n].mean(axis=0) if np.any(own == n) else centres[n] for n in range(count)])
        own = _squares(codes, centres)
        best = min(best, (own.min(axis=1).sum(), own.argmin(axis=1)), key=lambda one: one[0])
    return best[1]


def silhouette(codes: Float[np.ndarray, 'M C'], own: Int32[np.ndarray, 'M']) -> float:
    """How much nearer codes are to their own cluster than to the next: the mean of (b - a) / max(a, b), in -1 .. 1.

    >>> round(silhouette(np.array([[0.0], [0.1], [5.0], [5.1]]), np.array([0, 0, 1, 1])), 2)
    0.98
    """
    far = np.sqrt(np.maximum(_squares(codes, codes), 0))
    names, sizes = np.unique(own, return_counts=True)
    if len(names) < 2:
        return 0.0
    total = np.stack([far[:, own == name].sum(axis=1) for name in names], axis=1)
    at = np.searchsorted(names, own)
    rows = np.arange(len(codes))
    inside = total[rows, at] / np.maximum(sizes[at] - 1, 1)
    means = total / sizes[None]
    means[rows, at] = np.inf
    outside = means.min(axis=1)
    score = (outside - inside) / np.maximum(np.maximum(outside, inside), 1e-12)
    return float(np.mean(np.where(sizes[at] > 1, score, 0)))


def _squares(codes: np.ndarray, centres: np.ndarray) -> Float[np.ndarray, 'M N']:
    return np.square(codes[:, None] - centres[None]).sum(axis=-1)
