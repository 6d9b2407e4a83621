"""Which tokens of a video to keep: a light network says how much each is worth (Wang et al. 2023, S5).

    h = gelu(conv3d(features on the grid of frames x rows x columns))        c channels
    p_t = MLP([W h_t's first half, mean over tokens of h's second half])     two logits a token: keep, drop
    training    m_t = hard - stop(soft) + soft      soft = softmax((p_t + Gumbel noise) / temperature), hard its largest
    test        the tokens of the largest p_t[keep] - p_t[drop], so many that the ratio is kept, in the order of time

The paper is without code: c, the MLP and how features are split are sensible choices.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.nn.linear import Linear
from jattn.nn.side_channels import sow_loss, sow_metric, token_mean
from jattn.typing import Array, Bool, Float, Int32, at_least_float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskGeneratorConfig:
    """The mask generator.

    Attributes:
        channels: c, even.
        kernel: (frames, rows, columns) of the convolution.
        temperature: of the Gumbel softmax.
    """

    channels: int = 16
    kernel: tuple[int, int, int] = (3, 3, 3)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f'generator.channels={self.channels} must be even and at least 2')
        if len(self.kernel) != 3 or min(self.kernel) < 1:
            raise ValueError(f'generator.kernel={self.kernel} must be three sizes of at least 1')
        if self.temperature <= 0:
            raise ValueError(f'generator.temperature={self.temperature} must be positive')

    def make(self, **flax_kwargs: object) -> 'MaskGenerator':
        """The linen module."""
        return MaskGenerator(self, **flax_kwargs)

    def flops(self, width: int, tokens: int) -> int:
        """Operations of the matrix products and the convolution of one row."""
        c, taps = self.channels, self.kernel[0] * self.kernel[1] * self.kernel[2]
        return 2 * tokens * (taps * width * c + (c // 2) ** 2 + c * c + 2 * c)


class MaskGenerator(nn.Module):
    """The module of `MaskGeneratorConfig`: `logits [B, T, 2] = generator(features [B, T, D], real, grid)`."""

    cfg: MaskGeneratorConfig

    @nn.compact
    def __call__(
        self, features: Float[Array, 'B T D'], real: Bool[Array, 'B T'], grid: tuple[int, int]
    ) -> Float[Array, 'B T 2']:
        channels, (rows, columns) = self.cfg.channels, grid
        features = jnp.where(real[:, :, None], features, 0)
        video = features.reshape(len(features), -1, rows, columns, features.shape[-1])
        init = nn.with_logical_partitioning(
            nn.initializers.lecun_normal(), ('frames', 'rows', 'columns', 'embed', 'mlp')
        )
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('mlp',))
        convolution = nn.Conv(channels, self.cfg.kernel, kernel_init=init, bias_init=zeros, name='convolution')
        h = jax.nn.gelu(convolution(video)).reshape(*features.shape[:2], channels)
        near, far = jnp.split(h, 2, axis=-1)
        near = Linear((channels // 2,), ('mlp', 'mlp_out'), use_bias=True, name='near_proj')(near)
        count = jnp.maximum(jnp.sum(real, axis=1), 1).astype(h.dtype)
        far = jnp.sum(jnp.where(real[:, :, None], far, 0), axis=1) / count[:, None]
        both = jnp.concatenate([near, jnp.broadcast_to(far[:, None], near.shape)], axis=-1)
        hidden = jax.nn.gelu(Linear((channels,), ('mlp', 'mlp_out'), use_bias=True, name='hidden_proj')(both))
        return Linear((2,), ('mlp', 'logits'), use_bias=True, name='logits_proj')(hidden)


def straight_through(logits: Float[Array, 'B T 2'], noise: Float[Array, 'B T 2'], temperature: float = 1.0) -> Array:
    """The mask [B, T]: 1 where keeping wins, else 0; its gradient is that of the soft probability of keeping.

    >>> straight_through(jnp.array([[[1.0, 0.0], [0.0, 1.0]]]), jnp.zeros((1, 2, 2))).tolist()
    [[1.0, 0.0]]
    """
    soft = jax.nn.softmax((logits + noise).astype(at_least_float32(logits)) / temperature, axis=-1)[..., 0]
    return (soft > 0.5).astype(soft.dtype) + (soft - jax.lax.stop_gradient(soft))


def best_tokens(scores: Float[Array, 'B T'], real: Bool[Array, 'B T'], count: int) -> Int32[Array, 'B N']:
    """The places of the `count` tokens with the largest scores, real ones first, in increasing order.

    >>> best_tokens(jnp.array([[0.1, 3.0, 2.0, 9.0]]), jnp.array([[True, True, True, False]]), 2).tolist()
    [[1, 2]]
    """
    return jnp.sort(jax.lax.top_k(jnp.where(real, scores, -jnp.inf), count)[1], axis=1).astype(jnp.int32)


def sow_ratio(module: nn.Module, mask: Float[Array, 'B T'], ratio: float, context: Context) -> None:
    """The auxiliary loss (mean mask - ratio)^2, over the real tokens of the whole batch."""
    kept = token_mean(mask[..., None], context)[0]
    sow_loss(module, 'keep_ratio', jnp.square(kept - ratio))
    sow_metric(module, 'kept', kept)
