"""Probes on cached features: every head with the same recipe, all rates and seeds of one at a time.

A probe is `jattn/poolers/probe.py`: pooler, BatchNorm, a linear classifier; Adam with a rate that falls as a cosine.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.papers.efficient_probing.settings import Size
from jattn.contract import Context
from jattn.nn.losses import cross_entropy
from jattn.poolers import PoolerConfig
from jattn.poolers.probe import ProbeConfig
from jattn.typing import Array, Float, Int32, Key, PyTree

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Features:
    """Tokens of one encoder and the classes, to train on, to choose by, and to test on.

    Attributes:
        train, validation, test: (tokens [N, T, D], labels [N]).
    """

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Found:
    """What became of a head.

    Attributes:
        accuracies: on the test images, of every seed at the best rate.
        rate: that one.
        variables: of the first seed at that rate.
        parameters: of the pooler.
    """

    accuracies: np.ndarray
    rate: float
    variables: PyTree
    parameters: int

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return float(self.accuracies.mean())


def probe(
    size: Size,
    pooler: PoolerConfig,
    features: Features,
    key: Key,
    count: int,
    class_token: bool,
    classes: int = CLASSES,
) -> Found:
    """Trains a head at every rate with every seed, and tests it at the rate that is best on the validation images.

    Args:
        size: how much.
        pooler: the head.
        features: frozen.
        key: of the seeds.
        count: images to train on, the first ones.
        class_token: whether the pooler sees it.
        classes: there are.
    """
    cfg = ProbeConfig(width=size.width, pooler=pooler, classes=classes)
    real = jnp.ones(features.train[0].shape[1], jnp.int32).at[0].set(int(class_token))
    keys = jnp.stack([jax.random.fold_in(key, seed) for seed in range(size.seeds)])
    rates = jnp.repeat(jnp.asarray(size.rates), size.seeds)
    variables = _train(
        cfg, size.probe_steps, size.probe_batch, features.train, real, count, rates, jnp.tile(keys, len(size.rates))
    )
    chosen, tested = (
        np.asarray(_accuracies(cfg, variables, *split, real)).reshape(len(size.rates), size.seeds)
        for split in (features.validation, features.test)
    )
    best = int(chosen.mean(axis=1).argmax())
    own = jax.tree.map(lambda leaf: leaf[best * size.seeds], variables)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(own['params'].get('pooler', {})))
    return Found(tested[best], size.rates[best], own, parameters)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(
    cfg: ProbeConfig,
    steps: int,
    batch: int,
    data: tuple[Float[Array, 'N T D'], Int32[Array, 'N']],
    real: Int32[Array, 'T'],
    count: int,
    rates: Float[Array, 'R'],
    keys: Key,
) -> PyTree:
    """The variables of every run, stacked."""
    model, adam = cfg.make(), optax.scale_by_adam()
    context = _context(real, batch)

    def run(rate: Array, key: Key) -> PyTree:
        variables = nn.unbox(model.init(key, data[0][:batch], context))
        params, stats = variables['params'], {k: v for k, v in variables.items() if k != 'params'}

        def step(carry: tuple, n: Array) -> tuple[tuple, None]:
            params, stats, state = carry
            chosen = jax.random.randint(jax.random.fold_in(key, n), (batch,), 0, count)

            def loss(params: PyTree) -> tuple[Array, PyTree]:
                (logits, _), updated = model.apply(
                    {'params': params, **stats}, data[0][chosen], context, mutable=list(stats)
                )
                return cross_entropy(logits, data[1][chosen]).value(), dict(updated)

            grads, stats = jax.grad(loss, has_aux=True)(params)
            updates, state = adam.update(grads, state)
            now = rate * (1 + jnp.cos(jnp.pi * n / steps)) / 2
            return (jax.tree.map(lambda p, u: p - now * u, params, updates), stats, state), None

        (params, stats, _), _ = jax.lax.scan(step, (params, stats, adam.init(params)), jnp.arange(steps))
        return {'params': params, **stats}

    return jax.vmap(run)(rates, keys)


@functools.partial(jax.jit, static_argnums=0)
def _accuracies(
    cfg: ProbeConfig, variables: PyTree, tokens: Float[Array, 'N T D'], labels: Int32[Array, 'N'], real: Array
) -> Float[Array, 'R']:
    context = _context(real, len(tokens)).replace(train=False)
    logits = jax.vmap(lambda own: cfg.make().apply(own, tokens, context)[0])(variables)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels[None], axis=1)


def maps_of(size: Size, pooler: PoolerConfig, variables: PyTree, tokens: np.ndarray, class_token: bool) -> np.ndarray:
    """The maps [N, Q, T] of a trained probe."""
    cfg = ProbeConfig(width=size.width, pooler=pooler, classes=CLASSES)
    real = jnp.ones(tokens.shape[1], jnp.int32).at[0].set(int(class_token))
    return np.asarray(cfg.make().apply(variables, tokens, _context(real, len(tokens)).replace(train=False))[1])


def overlap(maps: Float[np.ndarray, 'N Q T']) -> float:
    """How much of two maps of one image is shared, sum_t min(a_t, b_t), over all pairs; 1 where all are alike.

    >>> overlap(np.array([[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]]))
    0.5
    """
    first, second = np.triu_indices(maps.shape[1], 1)
    return float(np.minimum(maps[:, first], maps[:, second]).sum(axis=-1).mean())


def _context(real: Int32[Array, 'T'], rows: int) -> Context:
    return Context(segments=jnp.broadcast_to(real[None], (rows, len(real))), train=True)
