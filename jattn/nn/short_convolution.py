"""Short causal depthwise convolution with a state, the first thing most recurrent mixers do to their inputs.

    y_t = sum_{j=0..W-1} kernel[W-1-j] * x_{t-j}      over the tokens of t's own document

Written as W shifted products, not as a convolution: W is 3 to 4, masks by document come for free, and XLA fuses it.
The state is the last W-1 tokens of the document. Between those and the call's first real token padding may stand, so
with a state the rows are first rolled until their first real token meets the tail.
"""

import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Rows
from jattn.typing import Array, Float, axis_sizes


def short_convolution(
    x: Float[Array, 'B T F'], kernel: Float[Array, 'W F'], rows: Rows, tail: Float[Array, 'B W-1 F'] | None = None
) -> tuple[Float[Array, 'B T F'], Float[Array, 'B W-1 F'] | None]:
    """The convolution of a call, and the new tail (None without one).

    Args:
        x: the inputs.
        kernel: the taps, oldest first: kernel[W-1] multiplies the token itself.
        rows: where the tokens stand (`contract.locate`).
        tail: the last W-1 inputs of the state's document, zeros before its start. None: no state.

    >>> y, _ = short_convolution(jnp.ones((1, 3, 1)), jnp.ones((2, 1)), Rows())
    >>> y[0, :, 0].tolist()
    [1.0, 2.0, 2.0]
    """
    axis_sizes('short_convolution', x=(x, 'B T F'), kernel=(kernel, 'W F'))
    kernel = kernel.astype(x.dtype)
    if tail is None:
        return _convolve(jnp.pad(x, ((0, 0), (len(kernel) - 1, 0), (0, 0))), kernel, rows.index, x.shape[1]), None

    tokens = x.shape[1]
    real = rows.segments > 0
    some = jnp.any(real, axis=1)
    first = jnp.where(some, jnp.argmax(real, axis=1), 0)
    last = jnp.where(some, tokens - 1 - jnp.argmax(real[:, ::-1], axis=1), -1)
    tail = rows.enter(tail, jnp.zeros((), tail.dtype))
    # index counts the earlier tokens of the document in this call; those of the tail stand before them.
    reach = rows.index + jnp.where(rows.carried, len(kernel) - 1, 0)
    joined = jnp.concatenate([tail.astype(x.dtype), _roll(x, first)], axis=1)
    y = _roll(_convolve(joined, kernel, _roll(reach, first), tokens), -first)
    # In `joined` the token at t stands at W-1 + t - first: the last W-1 up to the last real one are the new tail.
    at = (last - first + 1)[:, None] + jnp.arange(len(kernel) - 1)[None]
    kept = jnp.take_along_axis(joined, at[..., None], axis=1)
    reached = jnp.take_along_axis(reach, jnp.maximum(last, 0)[:, None], axis=1)
    own = jnp.arange(len(kernel) - 2, -1, -1)[None] <= reached
    new_tail = jnp.where((own | ~some[:, None])[..., None], kept, 0)
    return y, new_tail.astype(tail.dtype)


def _convolve(joined: Array, kernel: Array, reach: Array | None, tokens: int) -> Array:
    """Sums the taps; `reach` [B, T] says how many earlier tokens a token may look back on (None: all)."""
    taps = len(kernel)
    y = joined[:, taps - 1 :] * kernel[taps - 1].reshape(1, 1, -1)
    for back in range(1, taps):
        term = joined[:, taps - 1 - back : taps - 1 - back + tokens] * kernel[taps - 1 - back].reshape(1, 1, -1)
        y = y + (term if reach is None else jnp.where((reach >= back)[..., None], term, 0))
    return y


def _roll(x: Array, shift: Array) -> Array:
    """Rolls each row left by its own shift [B] along axis 1."""
    at = (jnp.arange(x.shape[1])[None] + shift[:, None]) % x.shape[1]
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)


class ShortConvolution(nn.Module):
    """`short_convolution` with a learned kernel [W, F] and bias [F].

    Attributes:
        taps: W, how many tokens a token sees, itself included.
    """

    taps: int = 4

    @nn.compact
    def __call__(self, x: Array, rows: Rows, tail: Array | None = None) -> tuple[Array, Array | None]:
        # A tenth of what would keep the inputs' size, as RecurrentGemma starts (std .05 of 4 taps): a SiLU behind it is
        # then nearly linear, and keys do not all start in one positive direction. Started larger (PyTorch's default),
        # gated_deltanet trained at T = 64 lost its needles at 16 times that.
        init = nn.initializers.variance_scaling(0.01, 'fan_in', 'normal', in_axis=0, out_axis=(), batch_axis=(1,))
        kernel = self.param(
            'kernel',
            nn.with_logical_partitioning(init, ('tap', 'mlp')),
            (self.taps, x.shape[-1]),
            jnp.float32,
        )
        bias = self.param(
            'bias', nn.with_logical_partitioning(nn.initializers.zeros, ('mlp',)), x.shape[-1:], jnp.float32
        )
        y, tail = short_convolution(x, kernel, rows, tail)
        return y + bias.astype(x.dtype).reshape(1, 1, -1), tail
