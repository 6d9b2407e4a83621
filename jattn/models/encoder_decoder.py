"""The encoder-decoder: an encoder reads a source, a decoder writes and looks at what the encoder made of it.

    s = norm(encoder layers(source));   outputs = decoder(inputs, cross-attention to s in every block)

The source is handed in as `context.source`, what the encoder reads, and `context.source_segments`. With a state the
first call has it, and the later ones (`Context()`) find its keys and values in the state: the encoder runs once.
"""

import dataclasses
from typing import Self

from flax import linen as nn

from jattn.contract import Context
from jattn.models.decoder import DecoderConfig
from jattn.models.encoder import EncoderConfig
from jattn.models.trunk import TrunkConfig
from jattn.nn.cross_attention import CrossAttentionConfig
from jattn.typing import Array, Float, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(TrunkConfig):
    """The encoder-decoder.

    Attributes:
        width: D of both sides.
        encoder: without a pooler and a read-out.
        decoder: with `cross`.

    >>> import jax, jax.numpy as jnp
    >>> cfg = EncoderDecoderConfig(width=16).for_data('tokens', 8, 8)
    >>> model, tokens = cfg.make(), jnp.zeros((1, 5), jnp.int32)
    >>> context = Context(source=jnp.ones((1, 7), jnp.int32))
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens, context)['params']
    >>> model.apply({'params': params}, tokens, context)[0].shape
    (1, 5, 8)
    """

    encoder: EncoderConfig = EncoderConfig(pooler=None, read_out=False)
    decoder: DecoderConfig = DecoderConfig(cross=CrossAttentionConfig())

    def __post_init__(self) -> None:
        if self.decoder.cross is None:
            raise ValueError('decoder.cross=None, but the decoder must attend to the encoder')
        if self.encoder.pooler is not None or self.encoder.read_out:
            raise ValueError('encoder.pooler must be None and encoder.read_out False: the decoder reads every token')

    def sides(self) -> tuple[EncoderConfig, DecoderConfig]:
        """The encoder and the decoder, widths filled in."""
        return tuple(dataclasses.replace(side, width=self.width) for side in (self.encoder, self.decoder))

    @property
    def max_positions(self) -> int | None:
        """Of the decoder, which writes; so are the next two."""
        return self.decoder.max_positions

    @property
    def output_size(self) -> int | None:
        return self.decoder.output_size

    @property
    def dtype(self) -> str:
        return self.decoder.dtype

    @property
    def document_align(self) -> int:
        return max(self.encoder.document_align, self.decoder.document_align)

    def for_data(self, read_in: str, input_size: int, output_size: int) -> Self:
        """Both sides read the same kind of data, where they do not say otherwise."""
        encoder = self.encoder.for_data(read_in, input_size, self.width)
        return dataclasses.replace(
            self, encoder=encoder, decoder=self.decoder.for_data(read_in, input_size, output_size)
        )

    def make(self, **flax_kwargs: object) -> 'EncoderDecoder':
        return EncoderDecoder(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> PyTree:
        """A fresh state: the decoder's, which holds the source once it has been read."""
        _, decoder = self.sides()
        return decoder.init_state(batch, capacity)

    def layer_sites(self) -> list[tuple[tuple[str, ...], int]]:
        """layer -> (path, repeat): the encoder's layers, then the decoder's."""
        sides = (('encoder', self.encoder), ('decoder', self.decoder))
        return [((side, *path), repeat) for side, cfg in sides for path, repeat in cfg.layer_sites()]

    def flops(self, tokens: int) -> int:
        """For a source as long as the inputs."""
        encoder, decoder = self.sides()
        cross = decoder.layers * decoder.cross.flops(self.width, tokens, tokens)
        return encoder.flops(tokens) + decoder.flops(tokens) + cross

    def describe(self) -> str:
        encoder, decoder = self.sides()
        return f'encoder of {encoder.describe()}; decoder of {decoder.describe()}'

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, encoder=self.encoder.tiny(), decoder=self.decoder.tiny())


class EncoderDecoder(nn.Module):
    """The module of `EncoderDecoderConfig`."""

    cfg: EncoderDecoderConfig

    @nn.compact
    def __call__(
        self, inputs: Array, context: Context = Context(), state: PyTree | None = None
    ) -> tuple[Float[Array, 'B T E'], PyTree | None]:
        encoder, decoder = self.cfg.sides()
        if context.source is not None:
            own = Context(segments=context.source_segments, train=context.train, axis=context.axis)
            source, _ = encoder.make(name='encoder')(context.source, own)
            context = context.replace(source=source)
        return decoder.make(name='decoder')(inputs, context, state)
