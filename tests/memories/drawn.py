"""Memories alone, without the layer around them, on tokens drawn here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.miras.recurrences import ROWS
from experiments.papers.miras.stream import Stream
from jattn.contract import Context, locate
from jattn.memories import MEMORIES
from jattn.memories.paths import PATHS
from jattn.memories.paths.state import Fresh
from jattn.memories.tokens import Tokens, place
from tests.memories.published import B, H, K, T


def assert_near(ours, exact, tolerance=1e-10):
    np.testing.assert_allclose(ours, exact, rtol=0, atol=tolerance * np.max(np.abs(exact)))


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
    fresh = Fresh.of(cfg, initial, slow)
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
