"""The probe (Psomas et al. 2025, Attention, Please!): a pooler, BatchNorm without scale and bias, a linear classifier.

    logits = W norm(pooler(stop_gradient(tokens))) + b          norm: each channel over the batch

The recipe of every head that paper 50 compares; only the pooler and the classifier learn. BatchNorm is the one part of
this room with state: running means in the collection `batch_stats`, which training updates and evaluation reads.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.nn.linear import Linear
from jattn.nn.side_channels import token_mean
from jattn.poolers.pooler import PoolerConfig
from jattn.typing import Array, Float, at_least_float32


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(variance + epsilon) of each channel, over the real tokens of the whole batch.

    That of Flax, but exact where rows or devices hold different numbers of tokens. The variance is that of the batch,
    not corrected for its size. Without `context.train` the running means stand in.

    Attributes:
        epsilon: added to the variance.
        momentum: of the running means.
        affine: scale and bias.
        axis: the logical name of the normalised axis.

    >>> x = jnp.array([[[1.0], [3.0], [50.0]]])
    >>> context = Context(segments=jnp.array([[1, 1, 0]]), train=True)
    >>> variables = BatchNorm().init(jax.random.key(0), x, context)
    >>> y, updated = BatchNorm().apply(variables, x, context, mutable=['batch_stats'])
    >>> y[0, :2, 0].round(3).tolist(), round(float(updated['batch_stats']['mean'].value[0]), 3)
    ([-1.0, 1.0], 0.2)
    """

    epsilon: float = 1e-6
    momentum: float = 0.9
    affine: bool = False
    axis: str = 'embed'

    @nn.compact
    def __call__(self, x: Float[Array, 'B T D'], context: Context) -> Float[Array, 'B T D']:
        def named(init: nn.initializers.Initializer) -> nn.initializers.Initializer:
            return nn.with_logical_partitioning(init, (self.axis,))

        zeros, ones, size = named(nn.initializers.zeros), named(nn.initializers.ones), (x.shape[-1:], jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', zeros, jax.random.key(0), *size)
        running_variance = self.variable('batch_stats', 'variance', ones, jax.random.key(0), *size)
        wide = x.astype(at_least_float32(x))
        mean, variance = running_mean.value, running_variance.value
        if context.train and not self.is_initializing():
            mean = token_mean(wide, context)
            variance = token_mean(jnp.square(wide - mean[None, None]), context)
            if self.is_mutable_collection('batch_stats'):
                running_mean.value = self._moved(running_mean.value, mean)
                running_variance.value = self._moved(running_variance.value, variance)
        y = (wide - mean[None, None]) / jnp.sqrt(variance + self.epsilon)[None, None]
        if self.affine:
            y = y * self.param('scale', ones, *size)[None, None] + self.param('bias', zeros, *size)[None, None]
        return y.astype(x.dtype)

    def _moved(self, running: Float[Array, 'D'], now: Float[Array, 'D']) -> Float[Array, 'D']:
        return self.momentum * running + (1 - self.momentum) * jax.lax.stop_gradient(now).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A classifier of rows of tokens.

    Attributes:
        width: D, of the tokens.
        pooler: from tokens to a vector.
        classes: size of the logits.
        normalize: BatchNorm before the classifier. LAMA is published without.
        frozen: no gradient reaches the tokens.

    >>> from jattn.poolers.simple import MeanConfig
    >>> cfg = ProbeConfig(width=16, pooler=MeanConfig(), classes=10)
    >>> (logits, maps), variables = cfg.make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> logits.shape, maps, sorted(variables)
    ((2, 10), None, ['batch_stats', 'params'])
    """

    width: int
    pooler: PoolerConfig
    classes: int
    normalize: bool = True
    frozen: bool = True

    def make(self, **flax_kwargs: object) -> nn.Module:
        """The linen module, with the single field `cfg`."""
        return Probe(self, **flax_kwargs)


class Probe(nn.Module):
    """The module of `ProbeConfig`: `logits, maps = probe(tokens, context)`."""

    cfg: ProbeConfig

    @nn.compact
    def __call__(
        self, tokens: Float[Array, 'B T D'], context: Context = Context()
    ) -> tuple[Float[Array, 'B E'], Float[Array, 'B Q T'] | None]:
        cfg = self.cfg
        tokens = jax.lax.stop_gradient(tokens) if cfg.frozen else tokens
        vec, maps = dataclasses.replace(cfg.pooler, width=cfg.width).make(name='pooler')(tokens, context)
        if cfg.normalize:
            vec = BatchNorm(name='norm')(vec[:, None], context.replace(segments=None))[:, 0]
        return Linear((cfg.classes,), ('embed', 'vocab'), use_bias=True, name='read_out')(vec), maps
