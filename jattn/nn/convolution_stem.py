"""A stem of convolutions: a few layers that turn frames into fewer tokens before the first block of an encoder.

    x = act(sum_i W_i x[stride t + i - (taps - 1) / 2] + b)        for every stride, zeros outside the row

With strides (1, 2) and three taps it is the read-in of Whisper (Radford et al. 2022): 3,000 frames become 1,500 tokens.
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import linen as nn

from jattn.nn.feed_forward import ACTIVATIONS
from jattn.nn.linear import Linear
from jattn.typing import Array, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionStemConfig:
    """The stem.

    Attributes:
        taps: frames that a convolution sees; odd.
        strides: of the convolutions, one after another.
        activation: behind each; the names of `FeedForwardConfig`.
    """

    taps: int = 3
    strides: tuple[int, ...] = (1, 2)
    activation: str = 'gelu_exact'

    def __post_init__(self) -> None:
        if self.taps < 1 or self.taps % 2 == 0:
            raise ValueError(f'stem.taps={self.taps} must be odd')
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f'stem.strides={self.strides} must be one or more positive numbers')
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'stem.activation={self.activation!r} must be one of {sorted(ACTIVATIONS)}')

    def tokens(self, frames: int) -> int:
        """Tokens of a row of frames.

        >>> ConvolutionStemConfig().tokens(3000)
        1500
        """
        for stride in self.strides:
            frames = math.ceil(frames / stride)
        return frames

    def make(self, **flax_kwargs: object) -> nn.Module:
        """The linen module."""
        return ConvolutionStem(self, **flax_kwargs)


class ConvolutionStem(nn.Module):
    """The module of `ConvolutionStemConfig`: [B, frames, F] -> [B, tokens, width]."""

    cfg: ConvolutionStemConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'B S F'], width: int) -> Float[Array, 'B T D']:
        cfg = self.cfg
        for number, stride in enumerate(cfg.strides):
            frames, side = x.shape[1], cfg.taps // 2
            padded = jnp.pad(x, ((0, 0), (side, side), (0, 0)))
            seen = [padded[:, tap : tap + frames : stride] for tap in range(cfg.taps)]
            axes = ('tap', 'features' if number == 0 else 'mlp', 'embed')
            y = Linear((width,), axes, use_bias=True, name=f'convolution_{number}')(jnp.stack(seen, axis=2))
            x = ACTIVATIONS[cfg.activation](y)
        return x
