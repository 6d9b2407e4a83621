"""The encoder: the decoder's blocks, with mixers that see both sides, ended by a pooler.

    outputs [B, E] = read_out(pooler(norm(x_L)))          without a pooler [B, T, E] = read_out(norm(x_L)), as a decoder

Any mixer will do: a causal one makes a classifier of streams (Aaren's, S4's), whose pooler may be `last`.
"""

import dataclasses
from typing import Self

from jattn.contract import Context, MixerConfig
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.decoder import Decoder, DecoderConfig
from jattn.nn.convolution_stem import ConvolutionStemConfig
from jattn.nn.linear import Linear
from jattn.poolers.pooler import PoolerConfig
from jattn.poolers.simple import MeanConfig
from jattn.typing import Array, Float, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(DecoderConfig):
    """The encoder; the fields of `DecoderConfig`, and

    Attributes:
        stem: convolutions in place of the linear read-in of vectors; None: none.
        pooler: what makes one vector of a row's tokens; None: an output a token.
        read_out: whether the last map follows, to `output_size`; else the outputs are features of width D.

    >>> import jax, jax.numpy as jnp
    >>> cfg = EncoderConfig(width=16, layers=1, read_in='linear', input_size=3, output_size=10)
    >>> model, x = cfg.make(), jnp.ones((2, 5, 3))
    >>> params = jax.jit(model.init)(jax.random.key(0), x)['params']
    >>> model.apply({'params': params}, x)[0].shape
    (2, 10)
    """

    mixer: tuple[MixerConfig, ...] = (SoftmaxConfig(causal=False),)
    stem: ConvolutionStemConfig | None = None
    pooler: PoolerConfig | None = MeanConfig()
    read_out: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ends_hidden is not None:
            raise ValueError(f'ends_hidden={self.ends_hidden} is of a decoder: an encoder ends in its pooler')
        if self.stem is not None and self.read_in == 'tokens':
            raise ValueError("stem: convolutions read vectors, but read_in='tokens'")

    def make(self, **flax_kwargs: object) -> 'Encoder':
        return Encoder(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> PyTree:
        if self.stem is not None:
            raise ValueError('an encoder with a stem of convolutions reads whole rows and has no state')
        if self.pooler is not None:
            raise ValueError(f'an encoder that ends in {type(self.pooler).__name__} reads whole rows and has no state')
        return super().init_state(batch, capacity)

    def flops(self, tokens: int) -> int:
        """As the decoder's; that of a stem or a pooler is not counted."""
        read_outs = 0 if not self.read_out else tokens if self.pooler is None else 1
        return super().flops(tokens) - 2 * (tokens - read_outs) * self.width * self.output_size

    def tiny(self) -> Self:
        pooler = self.pooler if self.pooler is None else self.pooler.tiny()
        return dataclasses.replace(super().tiny(), pooler=pooler)


class Encoder(Decoder):
    """The module of `EncoderConfig`."""

    cfg: EncoderConfig

    def _read_in(self, inputs: Array, embedding: Array | None) -> Float[Array, 'B T D']:
        cfg = self.cfg
        if cfg.stem is None:
            return super()._read_in(inputs, embedding)
        return cfg.stem.make(name='read_in')(inputs.astype(cfg.dtype), cfg.width)

    def _embed(
        self, inputs: Array, embedding: Array | None, context: Context, state: PyTree | None
    ) -> tuple[Float[Array, 'B T D'], PyTree | None]:
        if self.cfg.stem is not None and (context.positions is not None or context.segments is not None):
            raise ValueError('an encoder with a stem of convolutions reads whole rows: no positions, no segments')
        return super()._embed(inputs, embedding, context, state)

    def _read_out(self, x: Float[Array, 'B T D'], embedding: Array | None, context: Context) -> Array:
        cfg = self.cfg
        if cfg.pooler is not None:
            x, _ = dataclasses.replace(cfg.pooler, width=cfg.width).make(name='pooler')(x, context)
        if not cfg.read_out:
            return x
        if cfg.pooler is None:
            return super()._read_out(x, embedding, context)
        return Linear((cfg.output_size,), ('embed', 'vocab'), name='read_out')(x)
