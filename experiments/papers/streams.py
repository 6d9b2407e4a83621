"""What a memory holds after it has read pairs of keys and values, with no layer around it and nothing trained.

    passes over (k_1, v_1) ... (k_N, v_N), every step theta         then read at k_1 ... k_N, no step taken

A memory is a `MemoryConfig`, run by its own path (`jattn/memories/paths`). The reads are tokens behind the pairs whose
step is 0 and whose gates forget nothing.
"""

import functools

import jax
import jax.numpy as jnp

from jattn.contract import Rows
from jattn.memories import MemoryConfig
from jattn.memories.paths import PATHS
from jattn.memories.paths.state import Fresh
from jattn.memories.tokens import Tokens, place
from jattn.typing import Array, Float, Key

STOPPED = -30.0  # log of a momentum that is gone


def random_pairs(key: Key, runs: int, pairs: int, dim: int) -> tuple[Float[Array, 'B N K'], Float[Array, 'B N V']]:
    """Keys of length 1 and standard normal values.

    >>> keys, values = random_pairs(jax.random.key(0), 2, 3, 4)
    >>> keys.shape, values.shape, bool(jnp.allclose(jnp.sum(keys**2, axis=-1), 1))
    ((2, 3, 4), (2, 3, 4), True)
    """
    key_key, value_key = jax.random.split(key)
    keys = jax.random.normal(key_key, (runs, pairs, dim))
    return keys / jnp.linalg.norm(keys, axis=-1, keepdims=True), jax.random.normal(value_key, (runs, pairs, dim))


@functools.partial(jax.jit, static_argnames=('cfg', 'passes'))
def read_back(
    cfg: MemoryConfig,
    keys: Float[Array, 'B N K'],
    values: Float[Array, 'B N V'],
    step: float,
    passes: int = 1,
    momentum: float = 0.0,
) -> Float[Array, 'B N V']:
    """What a memory of one head that starts at zero answers to the keys after so many passes.

    Args:
        cfg: the memory: a matrix, its bias, its learner; it forgets nothing.
        keys, values: the pairs, in the order in which they are read.
        step: theta of every token.
        passes: how often the pairs are read.
        momentum: of every token, for a learner that has it.

    >>> from jattn.memories.architecture import Matrix
    >>> keys, values = random_pairs(jax.random.key(0), 1, 1, 4)
    >>> cfg = MemoryConfig(width=4, heads=1, architecture=Matrix())
    >>> bool(jnp.allclose(read_back(cfg, keys, values, 1.0), values, atol=1e-5))
    True
    """
    batch, pairs, dim = keys.shape
    k, v = (jnp.concatenate([jnp.tile(x, (1, passes, 1)), x], axis=1)[:, :, None] for x in (keys, values))
    writes = jnp.broadcast_to((jnp.arange(k.shape[1]) < passes * pairs)[None, :, None], k.shape[:3])
    tokens = Tokens(
        q=k,
        k=k,
        v=v,
        step=jnp.where(writes, step, 0.0),
        log_momentum=jnp.where(writes, jnp.log(momentum), STOPPED) if cfg.learner.momentum else None,
    )
    initial = (jnp.zeros((1, values.shape[-1], dim)),)
    fresh = Fresh.of(cfg, initial, {})
    places = place(Rows(), (batch, k.shape[1]), cfg.chunk, None)
    y, _ = PATHS[cfg.running_path].run(cfg, tokens, Rows(), places, fresh, None)
    return y[:, -pairs:, 0]


def relative_error(
    answers: Float[Array, 'B N V'], values: Float[Array, 'B N V'], counted: Float[Array, 'B N'] | None = None
) -> Float[Array, 'B']:
    """norm(answers - values) / norm(values) of every run, over the pairs that count."""
    weight = jnp.ones(values.shape[:2]) if counted is None else counted
    wrong = jnp.sum(jnp.square(answers - values) * weight[:, :, None], axis=(1, 2))
    return jnp.sqrt(wrong / jnp.sum(jnp.square(values) * weight[:, :, None], axis=(1, 2)))
