"""Losses as a sum and a count, so that a mean over devices, batches or calls is always sum over sum.

A mean of means weights a short row like a long one; every loss and metric of jattn is therefore a `Mean`, added up
(over micro-batches, devices, evaluation batches) before the one division.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jattn.typing import Array, Float, Int32, at_least_float32, axis_sizes


@struct.dataclass
class Mean:
    """A mean carried as its two sums; `total` and `count` have one shape (scalars, or curves such as [T]).

    >>> both = Mean(jnp.float32(6.0), jnp.float32(2.0)) + Mean(jnp.float32(0.0), jnp.float32(1.0))
    >>> float(both.value())
    2.0
    """

    total: Float[Array, '...']
    count: Float[Array, '...']

    @classmethod
    def of(cls, values: Float[Array, '...'], mask: Array | None = None, axis: int | tuple | None = None) -> 'Mean':
        """The mean of `values` where `mask` (same shape; None: everywhere) is true, over `axis` (None: all)."""
        values = values.astype(at_least_float32(values))
        weights = jnp.ones_like(values) if mask is None else mask.astype(values.dtype)
        # where, not a product: a value outside the mask may be NaN (a target that does not exist).
        return cls(jnp.sum(jnp.where(weights > 0, values * weights, 0), axis), jnp.sum(weights, axis))

    def __add__(self, other: 'Mean') -> 'Mean':
        return jax.tree.map(jnp.add, self, other)

    def value(self) -> Float[Array, '...']:
        """total / count, and 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1)


def cross_entropy(
    logits: Float[Array, '*B E'], targets: Int32[Array, '*B'], mask: Array | None = None, z_loss: float = 0.0
) -> Mean:
    """Cross-entropy in nats, -log softmax(logits)[target], plus z_loss * (log Z)^2, over the masked positions.

    Computed in float32 at least. z_loss (PaLM section 5: 1e-4) keeps the normaliser Z near one, which bf16 logits need.

    >>> loss = cross_entropy(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]]), mask=jnp.array([[1, 1, 0]]))
    >>> round(float(loss.value()), 4), float(loss.count)     # ln 4
    (1.3863, 2.0)
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f'cross_entropy: targets have shape {targets.shape}, logits {logits.shape}: the leading axes must be equal'
        )
    logits = logits.astype(at_least_float32(logits))
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return Mean.of(log_z - target + z_loss * jnp.square(log_z), mask)


def squared_error(
    outputs: Float[Array, 'B T F'], targets: Float[Array, 'B T F'], mask: Float[Array, 'B T'] | None = None
) -> Mean:
    """Squared error summed over features, averaged over the masked positions.

    >>> float(squared_error(jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3))).value())
    3.0
    """
    axis_sizes('squared_error', outputs=(outputs, 'B T F'), targets=(targets, 'B T F'), mask=(mask, 'B T'))
    return Mean.of(jnp.sum(jnp.square(outputs - targets), axis=-1), mask)
