"""A matrix memory whose entries never meet: the implicit step with the diagonal of k k^T alone (Longhorn as published).

    S_t[k, v] = (a_t - d_t[v] k_t[k]^2) S_{t-1}[k, v] + d_t[v] k_t[k] v_t[v]          d = theta / (1 + theta k.k)

with a_t (1 - d_t[v] k_t[k]^2) where the error is taken after the decay. Every entry has a decay of its own, as in S6:
there are no products of chunks, but `ops.linear_scan` over all entries, tile by tile; only one tile's states are held.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jattn.contract import Rows
from jattn.memories.learner import implicit_step
from jattn.memories.paths.matrix import MatrixState
from jattn.memories.paths.state import Fresh
from jattn.memories.tiles import lay, pick
from jattn.memories.tokens import Places, Tokens
from jattn.ops import linear_scan
from jattn.typing import Array, Bool, Float


def refusal(cfg: Any) -> str | None:
    """Why this path cannot run a memory; None: it can."""
    if not cfg.learner.diagonal:
        return 'learner.diagonal=False: the entries of its memory meet'
    if cfg.learner.reads == 'before':
        return 'it reads after the step'
    return 'a memory with decays per entry starts at zero' if cfg.has_start else None


def run(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, memory: MatrixState | None
) -> tuple[Float[Array, 'B T H V'], MatrixState | None]:
    """Outputs, and the state after the call (None without one)."""
    del rows, fresh
    batch, length, heads, keys = tokens.q.shape
    real = places.real[..., None]
    # A token of zeros keeps all and adds nothing, here as where a tile is filled up.
    tokens = jax.tree.map(lambda x: jnp.where(real if x.ndim == 3 else real[..., None], x, 0), tokens.wide())
    state = jnp.zeros((batch, heads, keys, cfg.values), tokens.k.dtype) if memory is None else memory.memory
    size = min(cfg.tile, length)
    slots = jax.tree.map(lambda x: lay(x, None, -(-length // size), size), (tokens, places.new))
    state, y = lax.scan(jax.checkpoint(lambda state, slots: _tile(cfg, state, *slots)), state, slots)
    return pick(y, None, length), None if memory is None else memory.replace(memory=state)


def _tile(
    cfg: Any, state: Float[Array, 'B H K V'], tokens: Tokens, new: Bool[Array, 'B C']
) -> tuple[Array, Float[Array, 'B C H V']]:
    """The state after one tile, and its reads."""
    kept, added = _entries(cfg, tokens)
    kept, flat = jnp.where(new[..., None, None, None], 0, kept), (*new.shape, -1)
    kept, inputs = jnp.broadcast_to(kept, added.shape).reshape(flat), added.reshape(flat)
    states, last = linear_scan(kept, inputs, initial_state=state.reshape(len(state), -1), return_state=True)
    y = jnp.einsum('bchkv,bchk->bchv', states.reshape(added.shape), tokens.q, precision='highest')
    return last.reshape(state.shape), y


def _entries(cfg: Any, tokens: Tokens) -> tuple[Float[Array, 'B C H K V'], Float[Array, 'B C H K V']]:
    """What every token keeps of an entry, and what it adds to it."""
    k, v = tokens.k[..., :, None], tokens.v[..., None, :]
    step = implicit_step(tokens.step, tokens.k)
    step = step[..., None, None] if step.ndim == 3 else step[..., None, :]
    forgotten, added = step * jnp.square(k), step * k * v
    if tokens.log_decay is None:
        return 1 - forgotten, added
    decay = jnp.exp(tokens.log_decay)
    decay = decay[..., None, None] if decay.ndim == 3 else decay[..., :, None]
    return decay - forgotten if cfg.learner.error == 'raw' else decay * (1 - forgotten), added
