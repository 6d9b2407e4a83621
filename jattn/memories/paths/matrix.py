"""What the paths of a matrix memory share: its state, and a start that is not zero.

The ops clear a state to zero where a document starts. A memory whose documents start at learned weights W_0 (and, after
persistent tokens, momentum M_0) is shifted: with the factors that are left of them

    c_t = a_t c_{t-1}      e_t = m_t e_{t-1}      f_t = a_t f_{t-1} + e_t           (1, 1, 0 at a document's start)

S_t = S~_t + c_t W_0 + f_t M_0, and S~ starts at zero, follows the same rule, and takes v_t minus what the start holds
at k_t for its value. So no op needs to know of it, and documents may start anywhere.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jattn.contract import Rows
from jattn.memories.paths import generic
from jattn.memories.paths.state import Cell, Fresh
from jattn.memories.tokens import Places, Tokens
from jattn.ops import linear_scan
from jattn.ops.fast_weights.dual import Weights
from jattn.typing import Array, Float


@struct.dataclass
class MatrixState:
    """The state of a matrix memory.

    Attributes:
        memory: S~ [B, H, K, V] (S itself where documents start at zero).
        momentum: [B, H, K, V], less its start; None: no momentum.
        log_kept: log c [B, H], or [B, H, K] per channel; None where documents start at zero.
        momentum_kept: (log e, f) [B, H]; None: no momentum, or a start at zero.
    """

    memory: Float[Array, 'B H K V']
    momentum: Float[Array, 'B H K V'] | None = None
    log_kept: Array | None = None
    momentum_kept: tuple[Array, Array] | None = None


@struct.dataclass
class Start:
    """What is left of a document's start at every token: factors after the token, and before it."""

    weights: Float[Array, 'H K V']
    momentum: Float[Array, 'H K V'] | None
    after: tuple[Array, Array | None]
    before: tuple[Array, Array | None]

    def add(self, y: Float[Array, 'B T H V'], q: Float[Array, 'B T H K'], rows: Rows) -> Float[Array, 'B T H V']:
        """The reads y with the start's share; padding reads 0."""
        y = y + self.read(q, self.after)
        return y if rows.segments is None else jnp.where((rows.segments > 0)[..., None, None], y, 0)

    def read(self, x: Float[Array, 'B T H K'], factors: tuple[Array, Array | None]) -> Float[Array, 'B T H V']:
        """(c W_0 + f M_0)^T x."""
        kept, momentum = factors
        per_channel = kept.ndim == 4
        y = jnp.einsum('bthk,hkv->bthv', x * kept if per_channel else x, self.weights, precision='highest')
        y = y if per_channel else y * kept[..., None]
        if momentum is None:
            return y
        return y + momentum[..., None] * jnp.einsum('bthk,hkv->bthv', x, self.momentum, precision='highest')


def empty_state(cfg: Any, batch: int) -> MatrixState:
    """Zeros; `start` gives its meaning to the rest."""
    shape = (batch, cfg.heads, cfg.keys, cfg.values)
    zeros, scalars = jnp.zeros(shape, jnp.float32), jnp.zeros(shape[:2], jnp.float32)
    per_channel = cfg.gates.decay is not None and cfg.gates.decay.per == 'channel'
    has_momentum, starts = cfg.learner.momentum, cfg.has_start
    return MatrixState(
        memory=zeros,
        momentum=zeros if has_momentum else None,
        log_kept=(jnp.zeros(shape[:3], jnp.float32) if per_channel else scalars) if starts else None,
        momentum_kept=(scalars, scalars) if starts and has_momentum else None,
    )


def fresh_state(cfg: Any, fresh: Fresh) -> MatrixState:
    """A document's first state: what is shifted starts at zero, all factors at one."""
    del fresh
    return jax.tree.map(lambda leaf: leaf[0], empty_state(cfg, 1))


def readings(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, before: MatrixState, after: MatrixState
) -> dict[str, Array]:
    """What the tools read, from the token-by-token path."""
    own = dataclasses.replace(cfg, path='generic')
    found = generic.readings(own, tokens, rows, places, fresh, cell(cfg, fresh, before), cell(cfg, fresh, after))
    return found | {'state': jnp.swapaxes(found['state'], 2, 3)}


def weights(cfg: Any, fresh: Fresh, memory: MatrixState) -> Weights:
    """The weights [B, H, V, K] that a read would see, as the architecture has them."""
    return cell(cfg, fresh, memory).anchor


def cell(cfg: Any, fresh: Fresh, state: MatrixState) -> Cell:
    """The state as the token-by-token path has it: weights [B, H, V, K], the start among them."""
    memory, momentum = state.memory, state.momentum
    if cfg.has_start:
        weights = jnp.swapaxes(fresh.cell.anchor[0], 1, 2)[None]
        kept = jnp.exp(state.log_kept)
        memory = memory + (kept[..., None] if kept.ndim == 3 else kept[..., None, None]) * weights
        if momentum is not None:
            log_e, f = (x[..., None, None] for x in state.momentum_kept)
            of_momentum = jnp.swapaxes(fresh.cell.momentum[0], 1, 2)[None]
            memory, momentum = memory + f * of_momentum, momentum + jnp.exp(log_e) * of_momentum
    return Cell(
        anchor=(jnp.swapaxes(memory, 2, 3),),
        momentum=None if momentum is None else (jnp.swapaxes(momentum, 2, 3),),
    )


def start(
    cfg: Any, tokens: Tokens, rows: Rows, fresh: Fresh, state: MatrixState | None
) -> tuple[Start | None, MatrixState | None]:
    """The start's share at every token, and the state with its factors after the call (None: as `state`)."""
    if not cfg.has_start:
        return None, state
    like = tokens.step if tokens.step.ndim == 3 else tokens.step[..., 0]  # one a head
    log_decay = jnp.zeros_like(like) if tokens.log_decay is None else tokens.log_decay
    carried = None if state is None else state.log_kept
    kept, last_kept = _sum(log_decay, rows, carried)
    after, before = jnp.exp(kept), jnp.exp(_previous(kept, rows, carried))
    weights = jnp.swapaxes(fresh.cell.anchor[0], 1, 2)
    if tokens.log_momentum is None:
        return Start(weights, None, (after, None), (before, None)), _with(state, last_kept, None)
    log_e, f = (None, None) if state is None else state.momentum_kept
    entering, last_e = _sum(tokens.log_momentum, rows, log_e)
    total, last_f = _scan(jnp.exp(log_decay), jnp.exp(entering), rows, f)
    found = Start(
        weights=weights,
        momentum=jnp.swapaxes(fresh.cell.momentum[0], 1, 2),
        after=(after, total),
        before=(before, _previous(total, rows, f)),
    )
    return found, _with(state, last_kept, (last_e, last_f))


def _with(state: MatrixState | None, kept: Array, momentum: tuple[Array, Array] | None) -> MatrixState | None:
    return None if state is None else state.replace(log_kept=kept, momentum_kept=momentum)


def _sum(x: Array, rows: Rows, initial: Array | None) -> tuple[Array, Array]:
    """The running sum within each document, and the last one."""
    return _scan(jnp.ones_like(x), x, rows, initial)


def _scan(a: Array, x: Array, rows: Rows, initial: Array | None) -> tuple[Array, Array]:
    flat = (*x.shape[:2], -1)
    initial = None if initial is None else initial.reshape(x.shape[0], -1)
    y, last = linear_scan(
        a.reshape(flat), x.reshape(flat), initial_state=initial, return_state=True, segments=rows.segments
    )
    return y.reshape(x.shape), last.reshape(x.shape[0], *x.shape[2:])


def _previous(x: Array, rows: Rows, carried: Array | None) -> Array:
    """The value after the token before, in the same document; before the first one 0, or the state's."""

    def wide(mask: Array) -> Array:
        return mask.reshape(*mask.shape, *[1] * (x.ndim - 2))

    shifted = jnp.pad(x[:, :-1], ((0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)))
    if rows.segments is None:
        return shifted
    first = (
        jnp.zeros_like(x[:, :1])
        if carried is None or rows.carried is None
        else jnp.where(wide(rows.carried), carried[:, None], 0)
    )
    return jnp.where(wide(rows.index > 0), shifted, first)
