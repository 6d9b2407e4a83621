"""What a module tells the training step beside its outputs: auxiliary losses, metrics, and means over the whole batch.

Three Flax collections, which trunks stack over their layers:

- `losses`: unweighted; the step adds their sum over layers, times its weight in `TrainingConfig.losses`.
- `metrics`: for those who ask.
- `mixer_state`: slow state in float32 (centroids, counts), updated where `context.train`, else left as it is.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.typing import Array, Float, PyTree, at_least_float32

LOSSES, METRICS, MIXER_STATE = 'losses', 'metrics', 'mixer_state'


def sow_loss(module: nn.Module, name: str, value: Float[Array, '']) -> None:
    """Hands an auxiliary loss to the step; `name` is a field of `LossWeights`."""
    _sow(module, LOSSES, name, value)


def sow_metric(module: nn.Module, name: str, value: Array) -> None:
    """Hands a value to whoever asks for the collection `metrics`."""
    _sow(module, METRICS, name, value)


def _sow(module: nn.Module, collection: str, name: str, value: Array) -> None:
    if not module.is_initializing():  # else it would be stored as if it were state
        module.sow(collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)


def batch_sum(x: PyTree, context: Context) -> PyTree:
    """Sums that were taken over this device's rows, over all rows of the batch."""
    return x if context.axis is None else jax.lax.psum(x, context.axis)


def token_mean(x: Float[Array, 'B T *F'], context: Context) -> Float[Array, '*F']:
    """The mean over the real tokens of the whole batch, on all devices; 0 where there are none.

    >>> x = jnp.array([[[1.0], [3.0], [50.0]]])
    >>> token_mean(x, Context(segments=jnp.array([[1, 1, 0]]))).tolist()
    [2.0]
    """
    x = x.astype(at_least_float32(x))
    real = jnp.ones(x.shape[:2], bool) if context.segments is None else context.segments > 0
    total = jnp.sum(jnp.where(real.reshape(*real.shape, *[1] * (x.ndim - 2)), x, 0), axis=(0, 1))
    total, count = batch_sum((total, jnp.sum(real, dtype=x.dtype)), context)
    return total / jnp.maximum(count, 1)
