"""What a head remembers when its gradients are taken at the start of chunks, and what happens at a chunk's end.

Shapes are those of one head; in a state every leaf of a cell has [B, H] in front, in a fresh one [H].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jattn.memories.learner import orthogonalise
from jattn.ops.fast_weights.dual import Weights
from jattn.typing import Array, Bool, Float, Int32


@struct.dataclass
class Recent:
    """The last w-1 tokens, for a window of w; `weight` 0 where there was none.

    Attributes:
        k, v: [w-1, K], [w-1, V].
        weight: gamma [w-1].
        threshold: delta [w-1]; None: the loss has none.
        channels: [w-1, V], the step per value channel; None: per head.
    """

    k: Array
    v: Array
    weight: Array
    threshold: Array | None
    channels: Array | None


@struct.dataclass
class Cell:
    """What a head remembers.

    Attributes:
        anchor: the retention's accumulator at the chunk's start; its weights are where gradients are taken.
        momentum: S; None: no momentum.
        change: D, what the chunk's tokens have added so far; None with chunk = 1.
        kept: b, the product of the decays since the chunk's start; None with chunk = 1.
        sums: of the chunk's steps and momentum gates, for a learner that steps once a chunk.
        recent: the window's earlier tokens; None: no window.
    """

    anchor: Weights
    momentum: Weights | None = None
    change: Weights | None = None
    kept: Float[Array, ''] | None = None
    sums: tuple[Float[Array, ''], Float[Array, '']] | None = None
    recent: Recent | None = None


@struct.dataclass
class Fresh:
    """What the outer loop learned of a memory's start, [H, ...].

    Attributes:
        initial: W_0.
        slow: the slow parameters.
        cell: the cell before a document's first token.
    """

    initial: Weights
    slow: dict[str, Array]
    cell: Cell

    @classmethod
    def of(cls, cfg: Any, initial: Weights, slow: dict[str, Array]) -> 'Fresh':
        """The start with those weights, before any token."""
        return cls(initial, slow, jax.vmap(functools.partial(empty_cell, cfg))(initial, slow))


def empty_cell(cfg: Any, initial: Weights, slow: dict[str, Array]) -> Cell:
    """One head's cell before any token."""
    anchor = cfg.retention.accumulator(initial, slow)
    zeros = tuple(jnp.zeros_like(weight) for weight in anchor)
    dtype, window = anchor[0].dtype, cfg.learner.window - 1
    recent, chunked = None, cfg.chunk > 1
    if window:
        recent = Recent(
            k=jnp.zeros((window, cfg.keys), dtype),
            v=jnp.zeros((window, cfg.values), dtype),
            weight=jnp.zeros(window, dtype),
            threshold=jnp.zeros(window, dtype) if cfg.gates.threshold is not None else None,
            channels=jnp.zeros((window, cfg.values), dtype) if cfg.gates.step.per == 'channel' else None,
        )
    return Cell(
        anchor=anchor,
        momentum=zeros if cfg.learner.momentum else None,
        change=zeros if chunked else None,
        kept=jnp.ones((), dtype) if chunked else None,
        sums=(jnp.zeros((), dtype), jnp.zeros((), dtype)) if cfg.learner.per_chunk else None,
        recent=recent,
    )


def settled(cfg: Any, cell: Cell, fresh: Fresh) -> Cell:
    """The cell after its chunk's last token: the change moves into the anchor."""
    change, momentum = cell.change, cell.momentum
    if cfg.learner.per_chunk:
        step_sum, momentum_sum = cell.sums
        if momentum is not None:
            change = momentum = tuple(momentum_sum / cfg.chunk * s + d for s, d in zip(momentum, change))
        if cfg.learner.orthogonal:
            change = tuple(step_sum / cfg.chunk * orthogonalise(d) for d in change)
    if cfg.learner.averaged:
        share = shares(cfg, fresh.slow, jnp.full(1, cfg.chunk - 1))[0]
        change = tuple(share * d for d in change)
    anchor = cfg.retention.settle(cell.anchor, cell.kept, change, fresh.initial, fresh.slow, cfg.chunk)
    return cell.replace(
        anchor=anchor,
        momentum=momentum,
        change=tuple(jnp.zeros_like(d) for d in cell.change),
        kept=jnp.ones_like(cell.kept),
        sums=None if cell.sums is None else tuple(jnp.zeros_like(x) for x in cell.sums),
    )


def shares(cfg: Any, slow: dict[str, Array], place: Int32[Array, 'C']) -> Float[Array, 'C']:
    """What a read sees of the change of its chunk's first place + 1 tokens: max(0, 1 / (place + 1) + offset)."""
    offset = slow['offsets'][place]
    return jnp.maximum(1 / (place + 1).astype(offset.dtype) + offset, 0)


def choose(condition: Bool[Array, ''], yes: Any, no: Any) -> Any:
    """Leaf by leaf, for one head."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def norm(weights: Weights) -> Float[Array, '']:
    """The Euclidean norm over all weights, with a finite gradient at 0."""
    square = sum(jnp.sum(jnp.square(weight)) for weight in weights)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
