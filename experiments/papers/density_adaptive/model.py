"""A convolution and an LSTM over frames (DAAMAudioCNNLSTM, small), behind one of several gates.

    x = gate(x)      relu(norm(conv_3(x)))  ->  the largest of each 3 frames  ->  LSTM  ->  its last state  ->  classes

    none               x
    gain               x (1 + g)                                      one number a bin
    squeeze-excite     x sigmoid(W_2 relu(W_1 mean_t x))              Hu et al. 2018
    density            x + x a                                        density-adaptive attention over the bins

Padding is no frame to the norm, and leaves the LSTM's state as it is.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.mixers.density_adaptive import DensityAdaptiveConfig
from jattn.models.trunk import TrunkConfig
from jattn.nn.linear import Linear, lecun_normal
from jattn.poolers.pooler import mean_over_tokens
from jattn.poolers.probe import BatchNorm
from jattn.typing import Array, Bool, Float, PyTree

GATES = ('none', 'gain', 'squeeze-excite', 'density')
STRIDE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class CNNLSTMConfig(TrunkConfig):
    """The classifier of frames.

    Attributes:
        width: of the LSTM.
        gate: one of `GATES`.
        channels: of the convolution.
        heads, gaussians: of density-adaptive attention.
        squeeze: bins over hidden units of squeeze-excite.
        dropout: before the LSTM.
        input_size, output_size: bins and classes; None: as the data says.
    """

    width: int = 64
    gate: str = 'none'
    channels: int = 32
    heads: int = 4
    gaussians: int = 4
    squeeze: int = 4
    dropout: float = 0.05
    input_size: int | None = None
    output_size: int | None = None

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise ValueError(f'gate={self.gate!r} must be one of {", ".join(GATES)}')

    @property
    def document_align(self) -> int:
        return 1

    @property
    def density(self) -> DensityAdaptiveConfig:
        """The gate, as a mixer."""
        return DensityAdaptiveConfig(
            width=self.input_size, axis='features', heads=self.heads, gaussians=self.gaussians, causal=True
        )

    def for_data(self, read_in: str, input_size: int, output_size: int) -> Self:
        if read_in != 'linear':
            raise ValueError(f'read_in={read_in!r}, but frames are vectors')
        return dataclasses.replace(self, input_size=input_size, output_size=output_size)

    def make(self, **flax_kwargs: object) -> nn.Module:
        return CNNLSTM(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> PyTree:
        raise ValueError('a classifier of frames reads whole rows and has no state')

    def layer_sites(self) -> list[tuple[tuple[str, ...], int]]:
        return [((), 0)]

    def flops(self, tokens: int) -> int:
        """Those of the convolution, the LSTM and the classifier."""
        frame = 3 * self.input_size * self.channels
        return 2 * (
            tokens * frame
            + tokens // STRIDE * 4 * self.width * (self.channels + self.width)
            + self.width * self.output_size
        )

    def describe(self) -> str:
        return f'a convolution and an LSTM of width {self.width}, gate: {self.gate}'

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=16, channels=8)


class CNNLSTM(nn.Module):
    """The module of `CNNLSTMConfig`."""

    cfg: CNNLSTMConfig

    @nn.compact
    def __call__(
        self, frames: Float[Array, 'B T F'], context: Context = Context(), state: PyTree | None = None
    ) -> tuple[Float[Array, 'B E'], None]:
        cfg = self.cfg
        real = jnp.ones(frames.shape[:2], bool) if context.segments is None else context.segments > 0
        x = self._gate(frames, real, context)
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        near = jnp.stack([padded[:, n : n + x.shape[1]] for n in range(3)], axis=2)
        x = Linear((cfg.channels,), ('taps', 'features', 'embed'), use_bias=True, name='convolution')(near)
        x = nn.relu(BatchNorm(affine=True, name='norm')(x, context))
        # Not jnp.max: its gradient asks again which value was the largest, and 0/0 if that was rounded another way.
        x = nn.max_pool(jnp.where(real[:, :, None], x, 0), (STRIDE,), (STRIDE,))
        real = jnp.any(real[:, : x.shape[1] * STRIDE].reshape(*x.shape[:2], STRIDE), axis=2)
        x = nn.Dropout(cfg.dropout, deterministic=not context.train)(x)
        last = LSTM(cfg.width, name='lstm')(x, real)
        return Linear((cfg.output_size,), ('embed', 'vocab'), use_bias=True, name='read_out')(last), None

    def _gate(self, x: Float[Array, 'B T F'], real: Bool[Array, 'B T'], context: Context) -> Float[Array, 'B T F']:
        cfg = self.cfg
        if cfg.gate == 'gain':
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('features',))
            return x * (1 + self.param('gain', zeros, x.shape[-1:], jnp.float32))[None, None]
        if cfg.gate == 'squeeze-excite':
            hidden = x.shape[-1] // cfg.squeeze
            y = nn.relu(Linear((hidden,), ('features', 'mlp'), name='squeeze')(mean_over_tokens(x, real)))
            return x * nn.sigmoid(Linear(x.shape[-1:], ('mlp', 'features'), name='excite')(y))[:, None]
        if cfg.gate == 'density':
            return x + cfg.density.make(name='density')(x, context)[0]
        return x


class LSTM(nn.Module):
    """A long short-term memory; its state after the last real token.

    Attributes:
        size: E, of the state.
    """

    size: int

    @nn.compact
    def __call__(self, x: Float[Array, 'B T D'], real: Bool[Array, 'B T']) -> Float[Array, 'B E']:
        gates = Linear((4, self.size), ('embed', 'gates', 'mlp'), use_bias=True, name='in_proj')(x)
        init = nn.with_logical_partitioning(lecun_normal(1), ('mlp', 'gates', 'mlp_out'))
        recurrent = self.param('recurrent', init, (self.size, 4, self.size), jnp.float32).astype(x.dtype)
        start = jnp.zeros((len(x), self.size), x.dtype)

        def step(carry: tuple[Array, Array], token: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            cell, hidden = carry
            i, f, o, g = jnp.moveaxis(token[0] + jnp.einsum('be,egf->bgf', hidden, recurrent), 1, 0)
            new_cell = nn.sigmoid(f + 1) * cell + nn.sigmoid(i) * jnp.tanh(g)
            new_hidden = nn.sigmoid(o) * jnp.tanh(new_cell)
            keep = token[1][:, None]
            return (jnp.where(keep, new_cell, cell), jnp.where(keep, new_hidden, hidden)), None

        by_time = (jnp.moveaxis(gates, 1, 0), real.T)
        (_, hidden), _ = jax.lax.scan(step, (start, start), by_time)
        return hidden


def bin_weights(cfg: CNNLSTMConfig, params: PyTree, frames: Array, real: Bool[Array, 'B T']) -> Float[Array, 'F']:
    """The mean weight of every bin over real frames: what the gate hands on, over what it was given."""
    context = Context(segments=real.astype(jnp.int32))
    gated, _ = cfg.density.make().apply({'params': params['density']}, frames, context)
    counted = real[:, :, None] & (jnp.abs(frames) > 1e-3)
    ratio = jnp.where(counted, gated / jnp.where(counted, frames, 1), 0)
    return jnp.sum(ratio, axis=(0, 1)) / jnp.sum(counted, axis=(0, 1))


def with_bin_at(frames: Array, real: Bool[Array, 'B T'], place: Array, value: Array) -> Array:
    """The frames with one bin at a constant, padding left alone."""
    chosen = (jnp.arange(frames.shape[-1]) == place)[None, None] & real[:, :, None]
    return jnp.where(chosen, value, frames)
