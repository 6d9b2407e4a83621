"""Poolers that gate a feature map: CBAM over an image, and DOLG's local branch.

CBAM (Woo et al. 2018), channels first, then places, with a residual and a mean as paper 50 pools with it:

    y_t = x_t * sigmoid(M(mean_s x_s) + M(max_s x_s))       M: D -> D / reduction -> D, ReLU, no biases
    y_t = y_t * sigmoid(n(conv([mean_d y_td, max_d y_td])))         n: BatchNorm of the one channel
    vec = mean_t relu(x_t + y_t)

DOLG (Yang et al. 2021), its attention without the dilated convolutions, again as paper 50 has it:

    y_t = n(W x_t)      a_t = softplus(w . relu(y_t) + b)      vec = mean_t a_t y_t / |y_t|

DOLG sees no neighbours, its weights are free of each other, and its map is a_t over their sum. A bias of W is left out:
the mean of BatchNorm takes it away. CBAM has no maps.
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, divide
from jattn.nn.largest import largest
from jattn.nn.linear import Linear, lecun_normal
from jattn.poolers.pooler import PoolerConfig, mean_over_tokens, real_tokens
from jattn.poolers.probe import BatchNorm
from jattn.poolers.simple import max_over_tokens
from jattn.typing import Array, Bool, Float, at_least_float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CBAMConfig(PoolerConfig):
    """CBAM over an image whose pixels are the tokens in raster order; a row's document starts at its first cell.

    Attributes:
        reduction: D over the hidden units of the channels' gate.
        kernel: cells of the convolution's side, odd.
        columns: of the image; None: it is square. Padding lies outside the image, whose last row may be short.

    >>> cfg = CBAMConfig(width=16, columns=3)
    >>> (vec, maps), _ = cfg.make().init_with_output(jax.random.key(0), jnp.ones((2, 6, 16)))
    >>> vec.shape, maps
    ((2, 16), None)
    """

    ordered: ClassVar[bool] = True

    reduction: int = 16
    kernel: int = 7
    columns: int | None = None

    def __post_init__(self) -> None:
        if self.reduction < 1 or self.kernel % 2 == 0:
            raise ValueError(f'reduction={self.reduction} must be at least 1 and kernel={self.kernel} odd')

    def make(self, **flax_kwargs: object) -> nn.Module:
        return CBAM(self, **flax_kwargs)

    def tiny(self) -> Self:
        return dataclasses.replace(super().tiny(), reduction=4, columns=4)

    def image(self, tokens: int) -> tuple[int, int]:
        """Its rows and columns."""
        if self.columns is not None:
            return divide('tokens', tokens, 'columns', self.columns), self.columns
        side = round(tokens**0.5)
        if side * side != tokens:
            raise ValueError(f'cbam: {tokens} tokens are not a square image; columns=None says they are')
        return side, side


class CBAM(nn.Module):
    """The module of `CBAMConfig`."""

    cfg: CBAMConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> tuple[Float[Array, 'B D'], None]:
        cfg = self.cfg
        image = cfg.image(tokens.shape[1])
        tokens, real = _to_the_front(*real_tokens(tokens, context))
        hidden = max(tokens.shape[-1] // cfg.reduction, 1)
        squeeze = Linear((hidden,), ('embed', 'mlp'), name='in_proj')
        expand = Linear(tokens.shape[-1:], ('mlp', 'embed'), name='out_proj')
        pooled = [pool(tokens, real) for pool in (mean_over_tokens, max_over_tokens)]
        gate = sum(expand(jax.nn.relu(squeeze(x))) for x in pooled)
        y = tokens * jax.nn.sigmoid(gate)[:, None]
        y = y * jax.nn.sigmoid(self._places(y, real, image, context))
        return mean_over_tokens(jax.nn.relu(tokens + y), real), None

    def _places(
        self, y: Float[Array, 'B T D'], real: Bool[Array, 'B T'], image: tuple[int, int], context: Context
    ) -> Float[Array, 'B T 1']:
        """The logit of each place; beyond the image the convolution reads 0."""
        init = nn.with_logical_partitioning(lecun_normal(3), ('rows', 'columns', 'features', 'gate'))
        kernel = self.param('kernel', init, (self.cfg.kernel, self.cfg.kernel, 2, 1), jnp.float32).astype(y.dtype)
        pair = jnp.stack([jnp.mean(y, axis=-1), largest(y)], axis=-1)
        grid = pair.reshape(len(y), *image, 2)
        logits = jax.lax.conv_general_dilated(grid, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
        norm = BatchNorm(epsilon=1e-5, affine=True, axis='gate', name='norm')
        return norm(logits.reshape(*y.shape[:2], 1), context.replace(segments=real.astype(jnp.int32)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DOLGConfig(PoolerConfig):
    """DOLG's local attention.

    >>> (vec, maps), _ = DOLGConfig(width=16).make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape
    ((2, 16), (2, 1, 5))
    """

    @property
    def maps(self) -> int:
        return 1

    def make(self, **flax_kwargs: object) -> nn.Module:
        return DOLG(self, **flax_kwargs)


class DOLG(nn.Module):
    """The module of `DOLGConfig`."""

    cfg: DOLGConfig

    @nn.compact
    def __call__(
        self, tokens: Float[Array, 'B T D'], context: Context = Context()
    ) -> tuple[Float[Array, 'B D'], Float[Array, 'B 1 T']]:
        tokens, real = real_tokens(tokens, context)
        y = Linear(tokens.shape[-1:], ('embed', 'mlp'), name='in_proj')(tokens)
        y = BatchNorm(epsilon=1e-5, affine=True, axis='mlp', name='norm')(y, context)
        scores = Linear((1,), ('mlp', 'heads'), use_bias=True, name='score')(jax.nn.relu(y))
        weights = jnp.where(real, jax.nn.softplus(scores[..., 0].astype(at_least_float32(y))), 0)
        squares = jnp.sum(jnp.square(y.astype(weights.dtype)), axis=-1, keepdims=True)
        directions = y / jnp.sqrt(jnp.maximum(squares, 1e-24))
        vec = mean_over_tokens(weights[:, :, None] * directions, real).astype(tokens.dtype)
        total = jnp.sum(weights, axis=1, keepdims=True)
        return vec, (weights / jnp.where(total > 0, total, 1))[:, None]


def _to_the_front(
    tokens: Float[Array, 'B T D'], real: Bool[Array, 'B T']
) -> tuple[Float[Array, 'B T D'], Bool[Array, 'B T']]:
    """The rows with their padding behind, the rest in its order."""
    order = jnp.argsort(~real, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order[:, :, None], axis=1), jnp.take_along_axis(real, order, axis=1)
