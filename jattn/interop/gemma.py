"""Gemma 1, 2 and 3 (text): Llama's tensors, with gains stored as their difference to 1 and embeddings times sqrt(D).

Gemma 2 has norms on both sides of every part of a block, soft caps, scores scaled by a number of their own, and a
window in every other layer, the first one windowed. Gemma 3 has a window in five layers of six, whose rotary base
differs from that of the whole ones, norms of queries and keys, and no caps. Published code rounds sqrt(D) to the
activations' dtype before the product; here it is the product that is rounded.
"""

import dataclasses
from collections.abc import Sequence

from jattn.interop import llama
from jattn.interop.family import Config, Family, need
from jattn.interop.rules import PLUS_ONE, Rule, of_layers
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.nn.feed_forward import FeedForwardConfig

WINDOWED, WHOLE = 'sliding_attention', 'full_attention'
PERIOD = {'gemma': 1, 'gemma2': 2, 'gemma3_text': 6}  # the last layer of a period is whole, the others are windowed
GAINS = {
    'final_norm.scale',
    'mixer_norm.scale',
    'mixer_out_norm.scale',
    'feed_forward_norm.scale',
    'feed_forward_out_norm.scale',
    'mixer.q_norm.scale',
    'mixer.k_norm.scale',
}


def trunk(config: Config) -> DecoderConfig:
    """The decoder of a config with model_type gemma, gemma2 or gemma3_text."""
    kind, width = config['model_type'], config['hidden_size']
    # The first Gemma's files say gelu and mean the tanh form.
    need(config, 'hidden_act', ['gelu_pytorch_tanh', *(['gelu'] if kind == 'gemma' else [])])
    need(config, 'hidden_activation', ['gelu_pytorch_tanh', None])
    need(config, 'use_bidirectional_attention', [False, None])
    mixers = [mixer_of(config, layer) for layer in layer_types(config)]
    return DecoderConfig(
        width=width,
        layers=config['num_hidden_layers'],
        mixer=shortest_pattern(mixers),
        feed_forward=FeedForwardConfig(expansion=config['intermediate_size'] / width, activation='gelu', gated=True),
        norm_epsilon=llama.norm_epsilon(config, mixers[0].qk_norm),
        block='pre' if kind == 'gemma' else 'sandwich',
        read_in='tokens',
        input_size=config['vocab_size'],
        output_size=config['vocab_size'],
        tied=config.get('tie_word_embeddings', True),
        softcap=config.get('final_logit_softcapping', 30.0 if kind == 'gemma2' else None),
    )


def layer_types(config: Config) -> Sequence[str]:
    """Of every layer, whether it is windowed or whole; older files say how often a whole one comes, or nothing."""
    if config.get('layer_types'):
        return config['layer_types']
    period = config.get('sliding_window_pattern', PERIOD[config['model_type']])
    return [WINDOWED if (n + 1) % period else WHOLE for n in range(config['num_hidden_layers'])]


def mixer_of(config: Config, layer: str) -> SoftmaxConfig:
    """The mixer of a windowed or a whole layer."""
    need({'layer_types': layer}, 'layer_types', [WINDOWED, WHOLE])
    kind, heads, rotary = config['model_type'], config['num_attention_heads'], rotary_of(config, layer)
    if kind == 'gemma3_text':
        need(config, 'attn_logit_softcapping', [None])
    return SoftmaxConfig(
        heads=heads,
        key_heads=config.get('num_key_value_heads', heads),
        head_dim=config.get('head_dim', 256),
        window=config.get('sliding_window', 4096) if layer == WINDOWED else None,
        rotary_base=llama.rotary_base(rotary),
        rotary_scaling=llama.rotary_scaling(rotary),
        bias='all' if need(config, 'attention_bias', [False, True]) else 'none',
        qk_norm=kind == 'gemma3_text',
        scale=None if kind == 'gemma' else config.get('query_pre_attn_scalar', 256) ** -0.5,
        softcap=config.get('attn_logit_softcapping', 50.0) if kind == 'gemma2' else None,
    )


def rotary_of(config: Config, layer: str) -> Config:
    """What a config says of the positions of a windowed or a whole layer, as Llama's says it of all."""
    if given := config.get('rope_parameters'):
        return {'rope_parameters': given.get(layer, given)}
    if config['model_type'] != 'gemma3_text':
        return config
    if layer == WINDOWED:
        return {'rope_theta': config.get('rope_local_base_freq', 10_000.0)}
    return {'rope_theta': config.get('rope_theta', 1_000_000.0), 'rope_scaling': config.get('rope_scaling')}


def shortest_pattern(mixers: Sequence[SoftmaxConfig]) -> tuple[SoftmaxConfig, ...]:
    """The shortest pattern that gives the mixers of all layers when it is tiled.

    >>> shortest_pattern('aabaabaa')
    ('a', 'a', 'b')
    """
    lengths = range(1, len(mixers) + 1)
    return next(tuple(mixers[:n]) for n in lengths if all(one == mixers[i % n] for i, one in enumerate(mixers)))


def rules(cfg: DecoderConfig) -> list[Rule]:
    """Their tensors and ours."""
    table, each = llama.rules(cfg), of_layers(llama.LAYER, cfg.layers)
    if cfg.block == 'sandwich':  # their second norm is then behind the attention
        table = [rule for rule in table if rule.ours != 'feed_forward_norm.scale']
        table += [
            each('post_attention_layernorm.weight', 'mixer_out_norm.scale'),
            each('pre_feedforward_layernorm.weight', 'feed_forward_norm.scale'),
            each('post_feedforward_layernorm.weight', 'feed_forward_out_norm.scale'),
        ]
    return [dataclasses.replace(rule, operation=PLUS_ONE) if rule.ours in GAINS else rule for rule in table]


GEMMA = Family(trunk, rules, ignored=[r'.*rotary_emb\.inv_freq'])
