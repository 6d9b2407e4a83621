"""The feed-forward block of a layer, plain or gated."""

import dataclasses

import jax
from flax import linen as nn

from jattn.nn.linear import Linear
from jattn.taps import tap
from jattn.typing import Array, Float

ACTIVATIONS = {
    'gelu': jax.nn.gelu,  # the tanh form: the exact one costs 60% more of the block on CPU
    'gelu_exact': lambda x: jax.nn.gelu(x, approximate=False),
    'relu': jax.nn.relu,
    'relu_squared': lambda x: jax.numpy.square(jax.nn.relu(x)),
    'silu': jax.nn.silu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """y = W_out act(W_in x), or gated y = W_out (act(W_gate x) * W_in x)   (Shazeer 2020).

    Attributes:
        expansion: hidden units as a multiple of the width (rounded to an integer).
        activation: gelu (tanh form), gelu_exact, relu, relu_squared or silu.
        gated: whether the activation gates a second projection (GEGLU, SwiGLU).
        use_bias: biases on every projection.
    """

    expansion: float = 4.0
    activation: str = 'gelu'
    gated: bool = False
    use_bias: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'feed_forward.activation={self.activation!r} must be one of {sorted(ACTIVATIONS)}')
        if self.expansion <= 0:
            raise ValueError(f'feed_forward.expansion={self.expansion} must be positive')

    def make(self, **flax_kwargs: object) -> nn.Module:
        """The linen module."""
        return FeedForward(self, **flax_kwargs)

    def flops(self, width: int, tokens: int) -> int:
        """Operations of the matrix products of one row's forward pass."""
        return 2 * tokens * (2 + self.gated) * width * round(self.expansion * width)


class FeedForward(nn.Module):
    """The module of `FeedForwardConfig`; taps `mlp_act`, the hidden units [B, T, F]."""

    cfg: FeedForwardConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
        width = x.shape[-1]
        hidden, bias = round(self.cfg.expansion * width), self.cfg.use_bias
        act = ACTIVATIONS[self.cfg.activation]
        h = Linear((hidden,), ('embed', 'mlp'), bias, name='in_proj')(x)
        h = act(Linear((hidden,), ('embed', 'mlp'), bias, name='gate_proj')(x)) * h if self.cfg.gated else act(h)
        h = tap(self, 'mlp_act', h)
        return Linear((width,), ('mlp', 'embed'), bias, name='out_proj')(h)
