"""The scan over chunks that `dual` and `chunk_blind` share: lays a call's tokens onto chunks and carries the cell.

Chunks are counted from the start of every document. Without a state documents must start at multiples of the chunk in
their row (`document_align`), so chunks of the call are chunks of the documents. With a state every row is shifted right
by the place where its document stands, so that again the two coincide; at most C - 1 identity slots stand in front. A
call of one token is a tile of one slot: no chunk is ever crossed. An identity slot has step 0 and both logs 0.

A document that starts inside a chunk reads NaN: its gradients would be taken at weights that are not its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jattn.memories.paths.state import Cell, Fresh, Recent, choose, settled
from jattn.memories.tiles import lay, misplaced, pick
from jattn.memories.tokens import Places, Tokens
from jattn.ops.fast_weights import dual
from jattn.typing import Array, Float

Tile = Callable[[Any, Cell, 'Slots', Fresh, bool], tuple[Array, Cell]]


@struct.dataclass
class Slots:
    """A tile's slots of one head.

    Attributes:
        tokens: [C, ...]; identities where not real.
        real, new: [C].
        place: [C], the token's place in its chunk.
    """

    tokens: Tokens
    real: Array
    new: Array
    place: Array


def run(
    cfg: Any, tile: Tile, tokens: Tokens, places: Places, fresh: Fresh, memory: Cell | None
) -> tuple[Float[Array, 'B T H V'], Cell | None]:
    """Outputs, and the cells after the call (None without cells)."""
    batch, length, heads = tokens.q.shape[:3]
    size = 1 if memory is not None and length == 1 else cfg.chunk
    tokens = _identities(cfg, tokens, places)
    flags = [jnp.broadcast_to(x[..., None], (batch, length, heads)) for x in (places.real, places.new, places.place)]
    slots = Slots(tokens, *flags)
    shift = None
    if memory is not None and size > 1:
        first = jnp.argmax(places.real, axis=1)
        start = jnp.take_along_axis(places.place, first[:, None], axis=1)[:, 0]
        shift = (start - first) % size
    count = -(-(length + (size - 1 if shift is not None else 0)) // size)
    slots = jax.tree.map(lambda x: jnp.swapaxes(lay(x, shift, count, size), 2, 3), slots)

    body = functools.partial(_tile, cfg, tile, stateful=memory is not None)
    over_rows_and_heads = jax.vmap(jax.vmap(body), in_axes=(0, 0, None))
    cell = memory if memory is not None else _spread(fresh.cell, batch)
    step = jax.checkpoint(lambda cell, slots: over_rows_and_heads(cell, slots, fresh))
    cell, y = lax.scan(step, cell, slots)
    y = pick(jnp.swapaxes(y, 2, 3), shift, length)
    y = jnp.where(misplaced(places, cfg.chunk)[..., None, None], jnp.nan, y)
    return y, None if memory is None else cell


def inner_gradients(cfg: Any, cell: Cell, slots: Slots, fresh: Fresh) -> tuple[dual.Inner, Array | None, Recent | None]:
    """The gradients of a tile's tokens at the anchor, behind those of the window's earlier tokens; the weights of both
    in a step (None without a window); the window after the tile."""
    tokens, recent = slots.tokens, cell.recent
    own = Recent(
        k=tokens.k,
        v=tokens.v,
        weight=jnp.where(slots.real, 1.0 if tokens.weight is None else tokens.weight, 0),
        threshold=tokens.threshold,
        channels=tokens.step if cfg.gates.step.per == 'channel' else None,
    )
    if recent is not None:
        own, recent = _windowed(own, recent, slots.real)
    keep = cfg.retention
    weights = keep.weights(cell.anchor, fresh.initial, fresh.slow)

    def error(prediction: Array) -> Array:
        by_prediction = cfg.bias.gradient(prediction, own.v, own.threshold)
        return by_prediction if own.channels is None else by_prediction * own.channels

    forward = functools.partial(cfg.architecture.forward, slow=fresh.slow)
    inner = dual.inner_gradients(lambda product, x: forward(product, x), error, weights, own.k)
    return inner, None if recent is None else own.weight.astype(tokens.k.dtype), recent


def _windowed(own: Recent, recent: Recent, real: Array) -> tuple[Recent, Recent]:
    """The earlier tokens put right before the tile's first real one, and the last ones after its last."""
    window, size = recent.weight.shape[0], real.shape[0]
    first = jnp.where(jnp.any(real), jnp.argmax(real), 0)
    end = jnp.where(jnp.any(real), size - jnp.argmax(real[::-1]), 0)
    at = jnp.arange(window + size)
    earlier = (at >= first) & (at < first + window)
    from_recent = jnp.clip(at - first, 0, window - 1)

    def join(old: Array, new: Array) -> Array:
        padded = jnp.concatenate([jnp.zeros((window, *new.shape[1:]), new.dtype), new])
        mask = earlier.reshape(-1, *[1] * (new.ndim - 1))
        return jnp.where(mask, old.astype(new.dtype)[from_recent], padded)

    joined = jax.tree.map(join, recent, own)
    last = jax.tree.map(lambda x, old: lax.dynamic_slice_in_dim(x, end, window).astype(old.dtype), joined, recent)
    return joined, choose(jnp.any(real), last, recent)


def _tile(
    cfg: Any, tile: Tile, cell: Cell, slots: Slots, fresh: Fresh, *, stateful: bool
) -> tuple[Cell, Float[Array, 'C V']]:
    """One tile of one head."""
    cell = choose(jnp.any(slots.new), fresh.cell, cell)
    y, after = tile(cfg, cell, slots, fresh, stateful)
    if stateful:
        done = jnp.any(slots.real & (slots.place == cfg.chunk - 1))
        after = choose(done, settled(cfg, after, fresh), after)
    else:
        after = settled(cfg, after, fresh)  # a chunk that is not full ends its document: what it leaves is not read
    return choose(jnp.any(slots.real), after, cell), jnp.where(slots.real[:, None], y, 0)


def _identities(cfg: Any, tokens: Tokens, places: Places) -> Tokens:
    """Tokens that leave no trace where nothing real stands."""

    def zero(x: Array) -> Array:
        return jnp.where(places.real.reshape(*places.real.shape, *[1] * (x.ndim - 2)), x, 0)

    return jax.tree.map(zero, tokens.wide())


def _spread(cell: Cell, batch: int) -> Cell:
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (batch, *x.shape)), cell)
