"""Whisper (Radford et al. 2022): an encoder of log-mel frames behind two convolutions, a decoder of text beside it.

    s = LN(encoder(act(conv(act(conv(frames)))) + p))          logits = decoder(tokens; attention to s in every layer)

Norms first, exact gelu, learned positions in the decoder, a table of sines in the encoder's file; keys have no bias:
ours is zero here, and is not written back, since it adds one number to all scores of a query. The read-out is tied.

    found = load('whisper_tiny')
    frames = log_mel(sound)[None]
    generate(found.model, found.params, prompts, lengths, 20, source=frames)
"""

import jax.numpy as jnp
import numpy as np

from jattn.contract import Context
from jattn.interop.family import Config, Family, need
from jattn.interop.rules import TRANSPOSED, UNUSED, Operation, Rule, join_heads, of_layers, one, split_bias, split_heads
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.models.encoder import EncoderConfig
from jattn.models.encoder_decoder import EncoderDecoderConfig
from jattn.nn.convolution_stem import ConvolutionStemConfig
from jattn.nn.cross_attention import CrossAttentionConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.typing import Array, Float

RATE, WINDOW, HOP = 16_000, 400, 160  # samples a second; of a frame's window; between frames
LOWEST, RANGE = 1e-10, 8.0  # power of a filter; decades below the loudest that are kept


def trunk(config: Config) -> EncoderDecoderConfig:
    """The encoder-decoder of a config with model_type whisper."""
    need(config, 'activation_function', ['gelu'])
    need(config, 'scale_embedding', [False])
    need(config, 'tie_word_embeddings', [True])
    width, source = config['d_model'], config['max_source_positions']
    encoder = EncoderConfig(
        **_side(config, 'encoder'),
        stem=ConvolutionStemConfig(),
        read_in='linear',
        input_size=config['num_mel_bins'],
        output_size=width,
        max_positions=source,
        pooler=None,
        read_out=False,
    )
    heads = config['decoder_attention_heads']
    decoder = DecoderConfig(
        **_side(config, 'decoder'),
        cross=CrossAttentionConfig(heads=heads, capacity=source, use_bias=True),
        read_in='tokens',
        input_size=config['vocab_size'],
        output_size=config['vocab_size'],
        max_positions=config['max_target_positions'],
        embed_scale=1.0,
        tied=True,
    )
    return EncoderDecoderConfig(width=width, encoder=encoder, decoder=decoder)


def _side(config: Config, side: str) -> dict:
    """What both sides have."""
    heads, width = config[f'{side}_attention_heads'], config['d_model']
    return dict(
        width=width,
        layers=config[f'{side}_layers'],
        norm='layer',
        norm_epsilon=1e-5,
        mixer=(SoftmaxConfig(heads=heads, causal=side == 'decoder', rotary_base=None, bias='all'),),
        feed_forward=FeedForwardConfig(
            expansion=config[f'{side}_ffn_dim'] / width, activation='gelu_exact', use_bias=True
        ),
    )


def example(cfg: EncoderDecoderConfig) -> tuple[Array, Context]:
    """A token and two frames."""
    return jnp.zeros((1, 1), jnp.int32), Context(source=jnp.zeros((1, 2, cfg.encoder.input_size)))


def rules(cfg: EncoderDecoderConfig) -> list[Rule]:
    """Their tensors and ours."""
    table = [
        Rule('decoder.embed_tokens.weight', 'decoder.embedding'),
        Rule('proj_out.weight', (), UNUSED, optional=True),  # a copy of the embedding
    ]
    for n in range(len(cfg.encoder.stem.strides)):
        table.append(Rule(f'encoder.conv{n + 1}.weight', f'encoder.read_in.convolution_{n}.kernel', TAPS_FIRST))
        table.append(Rule(f'encoder.conv{n + 1}.bias', f'encoder.read_in.convolution_{n}.bias'))
    for side, own, first in (('encoder', cfg.encoder, 0), ('decoder', cfg.decoder, cfg.encoder.layers)):
        table.append(Rule(f'{side}.embed_positions.weight', f'{side}.positions'))
        table.append(Rule(f'{side}.layer_norm.weight', f'{side}.final_norm.scale'))
        table.append(Rule(f'{side}.layer_norm.bias', f'{side}.final_norm.bias'))
        parts = {'self_attn': ('mixer', own.mixers()[0].heads)}
        if side == 'decoder':
            parts['encoder_attn'] = ('cross', own.cross.heads)
        table += _layer(f'{side}.layers.{{i}}.', range(first, first + own.layers), parts)
    return table


def _layer(prefix: str, layers: range, parts: dict[str, tuple[str, int]]) -> list[Rule]:
    """Those of the layers of a side; parts: their attention -> ours, and its heads."""
    each = of_layers(prefix, layers)
    table = [
        each('final_layer_norm.weight', 'feed_forward_norm.scale'),
        each('final_layer_norm.bias', 'feed_forward_norm.bias'),
        each('fc1.weight', 'feed_forward.in_proj.kernel', TRANSPOSED),
        each('fc1.bias', 'feed_forward.in_proj.bias'),
        each('fc2.weight', 'feed_forward.out_proj.kernel', TRANSPOSED),
        each('fc2.bias', 'feed_forward.out_proj.bias'),
    ]
    for theirs, (ours, heads) in parts.items():
        table += [
            each(f'{theirs}_layer_norm.weight', f'{ours}_norm.scale'),
            each(f'{theirs}_layer_norm.bias', f'{ours}_norm.bias'),
            each(f'{theirs}.out_proj.weight', f'{ours}.o_proj.kernel', join_heads(heads)),
            each(f'{theirs}.out_proj.bias', f'{ours}.o_proj.bias'),
            Rule((), f'{ours}.k_proj.bias', ZERO, layers),
        ]
        table += [each(f'{theirs}.{x}_proj.weight', f'{ours}.{x}_proj.kernel', split_heads(heads)) for x in 'qkv']
        table += [each(f'{theirs}.{x}_proj.bias', f'{ours}.{x}_proj.bias', split_bias(heads)) for x in 'qv']
    return table


TAPS_FIRST = one(lambda w: w.transpose(2, 1, 0), lambda w: w.transpose(2, 1, 0))  # (D, F, taps) <-> [taps, F, D]
ZERO = Operation(lambda: (np.zeros(()),), lambda bias: ())  # ours alone
WHISPER = Family(trunk, rules, example, prefix='model.')


def log_mel(
    sound: Float[np.ndarray, 'N'], rate: int = RATE, mels: int = 80, seconds: float = 30.0
) -> Float[np.ndarray, 'T M']:
    """The frames that Whisper reads, 100 a second; it was trained on 30 s at a time, and takes shorter rows too.

    Args:
        sound: samples between -1 and 1, cut or padded with silence to `seconds`.
        rate: samples a second; other than 16,000 they are resampled, band-limited.
        mels: filters.

    >>> log_mel(np.zeros(8_000), rate=8_000, seconds=2.0).shape
    (200, 80)
    """
    if rate != RATE:
        count = round(len(sound) * RATE / rate)
        sound = np.fft.irfft(np.fft.rfft(sound), count) * (count / len(sound))
    samples = round(seconds * RATE)
    sound = np.pad(sound[:samples], (0, max(samples - len(sound), 0)))
    around = np.pad(sound, WINDOW // 2, mode='reflect')
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(around, WINDOW)[::HOP][:-1]
    power = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
    levels = np.log10(np.maximum(np.einsum('tf,mf->tm', power, mel_filters(mels)), LOWEST))
    return ((np.maximum(levels, levels.max() - RANGE) + 4) / 4).astype(np.float32)


def mel_filters(mels: int) -> Float[np.ndarray, 'M F']:
    """Triangles of unit area on Slaney's mel scale (linear to 1 kHz, then 27 a factor of 6.4), from 0 to 8 kHz.

    >>> filters = mel_filters(80)
    >>> filters.shape, bool(np.all(filters.sum(axis=1) > 0))
    ((80, 201), True)
    """
    top = 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4)
    scale = np.linspace(0, top, mels + 2)
    corners = np.where(scale < 15, 200 * scale / 3, 1000 * 6.4 ** ((scale - 15) / 27))
    frequencies = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (frequencies[None] - low) / (centre - low)
    falling = (high - frequencies[None]) / (high - centre)
    return np.maximum(np.minimum(rising, falling), 0) * 2 / (high - low)
