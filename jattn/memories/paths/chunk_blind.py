"""Steps once a chunk (LaCT; Muon inside a memory): reads see the weights at the chunk's start, its end moves them.

Inside a chunk the memory is blind to its own tokens: LaCT puts attention over a window of a chunk's length beside it.
"""

from typing import Any

import jax.numpy as jnp

from jattn.contract import Rows
from jattn.memories.paths import chunked
from jattn.memories.paths.chunked import Slots
from jattn.memories.paths.state import Cell, Fresh
from jattn.memories.tokens import Places, Tokens
from jattn.ops.fast_weights import dual
from jattn.ops.fast_weights.coefficients import coefficients
from jattn.typing import Array, Float


def refusal(cfg: Any) -> str | None:
    """Why this path cannot run a memory; None: it can."""
    return None if cfg.learner.per_chunk else 'learner.per_chunk=False: reads see the steps of their own chunk'


def run(
    cfg: Any, tokens: Tokens, rows: Rows, places: Places, fresh: Fresh, memory: Cell | None
) -> tuple[Float[Array, 'B T H V'], Cell | None]:
    """Outputs, and the cells after the call (None without cells)."""
    del rows
    return chunked.run(cfg, _tile, tokens, places, fresh, memory)


def _tile(cfg: Any, cell: Cell, slots: Slots, fresh: Fresh, stateful: bool) -> tuple[Array, Cell]:
    """One tile of one head; the chunk's sums go on through the state."""
    del stateful
    tokens = slots.tokens
    inner, weight, recent = chunked.inner_gradients(cfg, cell, slots, fresh)
    seen = cfg.retention.weights(cell.anchor, fresh.initial, fresh.slow)
    y = cfg.architecture.forward(lambda layer, x: dual.apply(seen[layer], x), tokens.q, fresh.slow)
    table = coefficients(None, None, tokens.step, weight)
    change = tuple(d - g for d, g in zip(cell.change, inner.total(table.gradients[-1])))
    kept = cell.kept if tokens.log_decay is None else cell.kept * jnp.exp(jnp.sum(tokens.log_decay))
    gate = slots.real if tokens.log_momentum is None else jnp.where(slots.real, jnp.exp(tokens.log_momentum), 0)
    sums = (cell.sums[0] + jnp.sum(tokens.step), cell.sums[1] + jnp.sum(gate, dtype=tokens.step.dtype))
    return y, cell.replace(change=change, kept=kept, sums=sums, recent=recent)
