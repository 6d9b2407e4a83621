"""The sentence encoder of paper 51: an embedding, a bidirectional GRU, perhaps a Transformer layer, then a pooler.

    z, r = sigmoid(W x_t + U h_{t-1} + b)      n = tanh(W_n x_t + b_n + r U_n h_{t-1})      h_t = (1 - z) n + z h_{t-1}

Two GRUs of half the width, one from each end; padding leaves a state as it is.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, MixerConfig, divide
from jattn.models.decoder import Block, DecoderConfig, Stream
from jattn.models.trunk import TrunkConfig
from jattn.nn.linear import Linear, lecun_normal
from jattn.poolers.pooler import PoolerConfig
from jattn.poolers.simple import MeanConfig
from jattn.taps import tap
from jattn.typing import Array, Bool, Float, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceConfig(TrunkConfig):
    """The sentence encoder.

    Attributes:
        pooler: from the states of the GRUs to a vector.
        layer: the mixer of a Transformer layer before the pooler; None: none.
        input_size, output_size: words and classes; None: as the data says.
    """

    width: int = 64
    pooler: PoolerConfig = MeanConfig()
    layer: MixerConfig | None = None
    input_size: int | None = None
    output_size: int | None = None

    @property
    def document_align(self) -> int:
        return 1

    def for_data(self, read_in: str, input_size: int, output_size: int) -> Self:
        if read_in != 'tokens':
            raise ValueError(f'read_in={read_in!r}, but a sentence is made of tokens')
        return dataclasses.replace(self, input_size=input_size, output_size=output_size)

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Sentence(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> PyTree:
        raise ValueError('a sentence encoder reads whole rows and has no state')

    def layer_sites(self) -> list[tuple[tuple[str, ...], int]]:
        return [((), 0)]

    def flops(self, tokens: int) -> int:
        """Those of the GRUs and the classifier."""
        return 2 * tokens * (3 * self.width**2 + 3 * self.width**2 // 2) + 2 * self.width * self.output_size

    def describe(self) -> str:
        return f'a bidirectional GRU of width {self.width}, {type(self.pooler).__name__.removesuffix("Config")}'

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32)


class Sentence(nn.Module):
    """The module of `SentenceConfig`; taps `maps`, the pooler's."""

    cfg: SentenceConfig

    @nn.compact
    def __call__(
        self, tokens: Array, context: Context = Context(), state: PyTree | None = None
    ) -> tuple[Float[Array, 'B E'], None]:
        cfg = self.cfg
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('vocab', 'embed'))
        x = self.param('embedding', init, (cfg.input_size, cfg.width), jnp.float32)[tokens]
        real = jnp.ones(tokens.shape, bool) if context.segments is None else context.segments > 0
        half = divide('width', cfg.width, 'directions', 2)
        ways = [GRU(half, reverse, name=f'gru_{reverse}')(x, real) for reverse in (False, True)]
        x = jnp.concatenate(ways, axis=-1)
        if cfg.layer is not None:
            mixer = dataclasses.replace(cfg.layer, width=cfg.width)
            stream, _ = Block(DecoderConfig(width=cfg.width), mixer, name='layer')(Stream(x), context, None)
            x = stream.x
        vec, maps = dataclasses.replace(cfg.pooler, width=cfg.width).make(name='pooler')(x, context)
        if maps is not None:
            tap(self, 'maps', maps)
        return Linear((cfg.output_size,), ('embed', 'vocab'), use_bias=True, name='read_out')(vec), None


class GRU(nn.Module):
    """A gated recurrent unit over the tokens of a row.

    Attributes:
        size: E, of the state.
        reverse: whether it begins at the last token.
    """

    size: int
    reverse: bool

    @nn.compact
    def __call__(self, x: Float[Array, 'B T D'], real: Bool[Array, 'B T']) -> Float[Array, 'B T E']:
        gates = Linear((3, self.size), ('embed', 'gates', 'mlp'), use_bias=True, name='in_proj')(x)
        init = nn.with_logical_partitioning(lecun_normal(1), ('mlp', 'gates', 'mlp_out'))
        recurrent = self.param('recurrent', init, (self.size, 3, self.size), jnp.float32).astype(x.dtype)

        def step(h: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
            (z, r, n), (z_h, r_h, n_h) = (
                jnp.moveaxis(g, 1, 0) for g in (token[0], jnp.einsum('be,egf->bgf', h, recurrent))
            )
            z, n = jax.nn.sigmoid(z + z_h), jnp.tanh(n + jax.nn.sigmoid(r + r_h) * n_h)
            h = jnp.where(token[1][:, None], (1 - z) * n + z * h, h)
            return h, h

        start = jnp.zeros((len(x), self.size), x.dtype)
        by_time = (jnp.moveaxis(gates, 1, 0), real.T)
        _, states = jax.lax.scan(step, start, by_time, reverse=self.reverse)
        return jnp.moveaxis(states, 0, 1)
