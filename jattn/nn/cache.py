"""Cache policies: what a softmax mixer keeps of the past, and what its queries may see of it.

A policy is a small frozen object. It owns the rotation of keys and queries, so that one policy may store rotated keys
(these two: a step rotates one key) and another rotate what it selects (`block_cache.py`). A call hands it the call's
own un-rotated queries, keys and values, and gets back a `View`: the arrays that attention takes.

    state = policy.init(...)                                     # fixed shapes
    state, view = policy.extend(state, q, k, v, rows, rotate)    # state None: training, the call is all there is

Slot n of a row is filled when n < min(length, slots). A call of one token writes first and reads the cache alone; a
longer call reads the old cache beside its own keys, since it may hold several documents, then writes the last one's.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from flax import struct

from jattn.contract import Cursor, Rows
from jattn.typing import Array, Bool, Float, Int32

Rotate = Callable[[Array, Int32[Array, 'B T']], Array]


@struct.dataclass
class KeyValues:
    """The state of a softmax mixer: the keys and values of the current document in N slots.

    Attributes:
        cursor: where the rows stand.
        length: [B], tokens of the document so far (also those that no slot holds any more).
        k, v: [B, N, G, K] and [B, N, G, V], keys rotated.
        positions: [B, N], the position of each slot's token.
    """

    cursor: Cursor
    length: Int32[Array, 'B']
    k: Float[Array, 'B N G K']
    v: Float[Array, 'B N G V']
    positions: Int32[Array, 'B N']


@struct.dataclass
class View:
    """What the queries of a call see; the arguments of `ops.attention`.

    Attributes:
        q, k, v: rotated.
        segments, positions: pairs (query, key), or None for a whole single document.
        overflow: [B, T], queries past the capacity: their outputs must be NaN. None where there is no bound.
    """

    q: Float[Array, 'B T H K']
    k: Float[Array, 'B S G K']
    v: Float[Array, 'B S G V']
    segments: tuple[Array, Array] | None = None
    positions: tuple[Array, Array] | None = None
    overflow: Bool[Array, 'B T'] | None = None


@dataclasses.dataclass(frozen=True)
class PlainCache:
    """Keeps every token of the document, up to the capacity; past it outputs are NaN."""

    def slots(self, capacity: int) -> int:
        """How many tokens are stored."""
        return capacity

    def wraps(self, slots: int) -> bool:
        """Whether old slots are taken again, so that there is no bound on the length."""
        del slots
        return False

    def slot(self, index: Int32[Array, 'B T'], length: Int32[Array, 'B'], slots: int) -> Int32[Array, 'B T']:
        """The slot of the document's token `index` once it has `length` tokens; >= slots where it has none."""
        del length, slots
        return index

    def init(
        self,
        batch: int,
        capacity: int,
        key_heads: int,
        key_dim: int,
        value_dim: int,
        dtype: jnp.dtype,
        heads: int | None = None,
    ) -> KeyValues:
        """An empty cache; some policies keep something of each of the query `heads`."""
        del heads
        slots = self.slots(capacity)
        return KeyValues(
            cursor=Cursor.fresh(batch),
            length=jnp.zeros(batch, jnp.int32),
            k=jnp.zeros((batch, slots, key_heads, key_dim), dtype),
            v=jnp.zeros((batch, slots, key_heads, value_dim), dtype),
            positions=jnp.zeros((batch, slots), jnp.int32),
        )

    def extend(
        self, state: KeyValues | None, q: Array, k: Array, v: Array, rows: Rows, rotate: Rotate
    ) -> tuple[KeyValues | None, View]:
        """Takes a call's tokens in; returns the new state and what their queries see."""
        positions = jnp.arange(q.shape[1])[None] if rows.positions is None else rows.positions
        q, k = rotate(q, positions), rotate(k, positions)
        if state is None:
            if rows.segments is None:
                return None, View(q, k, v)
            return None, View(q, k, v, (rows.segments,) * 2, (rows.positions,) * 2)

        slots = state.k.shape[1]
        old_segments = self._slot_segments(state.length, state.cursor.segment, slots)
        index = rows.index + jnp.where(rows.carried, state.length[:, None], 0)
        overflow = None if self.wraps(slots) else (index >= slots) & (rows.segments > 0)
        new = self._write(state, k, v, index, rows)
        if q.shape[1] == 1:
            seen = self._slot_segments(new.length, new.cursor.segment, slots)
            keys = (new.k.astype(k.dtype), new.v.astype(v.dtype), seen, new.positions)
        else:
            joined = ((state.k, k), (state.v, v), (old_segments, rows.segments), (state.positions, rows.positions))
            keys = tuple(jnp.concatenate([old.astype(own.dtype), own], axis=1) for old, own in joined)
        k_seen, v_seen, k_segments, k_positions = keys
        return new, View(q, k_seen, v_seen, (rows.segments, k_segments), (rows.positions, k_positions), overflow)

    def _slot_segments(self, length: Array, segment: Array, slots: int) -> Int32[Array, 'B N']:
        """The document of each slot: the state's where it is filled, else padding."""
        filled = jnp.arange(slots)[None] < length[:, None]
        return jnp.where(filled, segment[:, None], 0)

    def _write(self, state: KeyValues, k: Array, v: Array, index: Array, rows: Rows) -> KeyValues:
        """Stores the tokens of the call's last document; `index` [B, T] counts the tokens of each document."""
        slots = state.k.shape[1]
        kept = (rows.segments > 0) & (rows.segments == rows.cursor.segment[:, None])
        carried_on = rows.cursor.segment == state.cursor.segment
        length = jnp.max(jnp.where(kept, index + 1, 0), axis=1)
        length = jnp.maximum(length, jnp.where(carried_on, state.length, 0))
        slot = jnp.where(kept, self.slot(index, length, slots), slots)  # out of bounds: dropped
        row = jnp.arange(k.shape[0])[:, None]
        return KeyValues(
            cursor=rows.cursor,
            length=length,
            k=state.k.at[row, slot].set(k.astype(state.k.dtype), mode='drop'),
            v=state.v.at[row, slot].set(v.astype(state.v.dtype), mode='drop'),
            positions=state.positions.at[row, slot].set(rows.positions, mode='drop'),
        )


@dataclasses.dataclass(frozen=True)
class RingCache(PlainCache):
    """Keeps the first `sinks` tokens of the document and the last `window`: constant memory, no bound on the length.

    With less capacity than window + sinks it is a plain cache of that capacity.
    """

    window: int
    sinks: int = 0

    def slots(self, capacity: int) -> int:
        return min(capacity, self.window + self.sinks)

    def wraps(self, slots: int) -> bool:
        return slots == self.window + self.sinks

    def slot(self, index: Int32[Array, 'B T'], length: Int32[Array, 'B'], slots: int) -> Int32[Array, 'B T']:
        if not self.wraps(slots):
            return index
        ring = self.sinks + (index - self.sinks) % self.window
        # Of the tokens that share a slot only the newest is stored: scatters have no order.
        ring = jnp.where(index >= length[:, None] - self.window, ring, slots)
        return jnp.where(index < self.sinks, index, ring)
