"""What gated diagonal recurrences keep between calls, and the scan that reads it and goes on from it."""

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Cursor, Rows
from jattn.ops import linear_scan
from jattn.taps import captures, tap
from jattn.typing import Array, Float


@struct.dataclass
class VectorState:
    """The state of a diagonal recurrence.

    Attributes:
        cursor: where the rows stand.
        hidden: h [B, R] float32.
        tail: [B, W-1, R], the last inputs of the convolution.
    """

    cursor: Cursor
    hidden: Float[Array, 'B R']
    tail: Float[Array, 'B W-1 R']

    @classmethod
    def fresh(cls, batch: int, channels: int, taps: int, dtype: jnp.dtype) -> 'VectorState':
        """That before any token; `dtype` is the tail's."""
        return cls(
            cursor=Cursor.fresh(batch),
            hidden=jnp.zeros((batch, channels), jnp.float32),
            tail=jnp.zeros((batch, taps - 1, channels), dtype),
        )


def scan(
    module: nn.Module,
    kept: Float[Array, 'B T R'],
    added: Float[Array, 'B T R'],
    rows: Rows,
    state: VectorState | None,
    implementation: str | None,
) -> tuple[Float[Array, 'B T R'], Float[Array, 'B R'] | None]:
    """h_t = kept_t h_{t-1} + added_t from the state on; the last h (the module's tap `state`), None if nobody asks."""
    wanted = state is not None or captures(module)
    h = linear_scan(
        kept,
        added,
        initial_state=None if state is None else rows.enter(state.hidden, jnp.zeros((), jnp.float32)),
        return_state=wanted,
        segments=rows.segments,
        implementation=implementation,
    )
    if not wanted:
        return h, None
    h, hidden = h
    return h, tap(module, 'state', hidden)
