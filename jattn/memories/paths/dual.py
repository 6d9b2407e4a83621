"""The dual form: a chunk's gradients at its start, its reads as masked attention, layer by layer (`ops/fast_weights`).

Any architecture and any bias with gates per head; equal to `generic`, many times faster, with memory for one state a
chunk and none a token.
"""

from typing import Any

import jax.numpy as jnp

from jattn.contract import Rows
from jattn.memories.paths import chunked
from jattn.memories.paths.chunked import Slots
from jattn.memories.paths.state import Cell, Fresh, shares
from jattn.memories.tokens import Places, Tokens
from jattn.ops.fast_weights import dual
from jattn.ops.fast_weights.coefficients import coefficients
from jattn.typing import Array, Float


def refusal(cfg: Any) -> str | None:
    """Why this path cannot run a memory; None: it can."""
    if cfg.learner.per_chunk:
        return 'learner.per_chunk=True steps once a chunk (chunk_blind)'
    if cfg.chunk == 1:
        return 'chunk=1 takes every gradient at weights of its own'
    return None


def run(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, memory: Cell | None
) -> tuple[Float[Array, 'B T H V'], Cell | None]:
    """Outputs, and the cells after the call (None without cells)."""
    del rows
    return chunked.run(cfg, _tile, tokens, places, fresh, memory)


def _tile(cfg: Any, cell: Cell, slots: Slots, fresh: Fresh, stateful: bool) -> tuple[Array, Cell]:
    """One tile of one head; without a state the change at its start is zero."""
    tokens, keep, learner = slots.tokens, cfg.retention, cfg.learner
    inner, weight, recent = chunked.inner_gradients(cfg, cell, slots, fresh)
    step = tokens.step if cfg.gates.step.per == 'head' else slots.real.astype(tokens.step.dtype)
    table = coefficients(tokens.log_decay, tokens.log_momentum, step, weight, slots.real)
    change = cell.change if stateful else None
    after, momentum = dual.accumulate(inner, table, change, cell.momentum)

    # What has faded since the chunk's start is counted from there, the table from the tile's.
    parts = keep.parts(cell.anchor, fresh.initial, fresh.slow)
    if stateful and parts.fading is not None:
        parts = parts.replace(fading=tuple(cell.kept * weight for weight in parts.fading))
    if learner.averaged:
        share = shares(cfg, fresh.slow, slots.place)[:, None]
        slope = parts.slope or (jnp.ones((), share.dtype),) * len(cell.anchor)
        parts = parts.replace(slope=tuple(share * s for s in slope))
    seen = table.before() if learner.reads == 'before' else table

    def forward(product: dual.Product, x: Array) -> Array:
        return cfg.architecture.forward(product, x, fresh.slow)

    y = dual.read(forward, tokens.q, inner, seen, parts, change, cell.momentum)
    return y, cell.replace(change=after, momentum=momentum, kept=table.kept[-1] * cell.kept, recent=recent)
