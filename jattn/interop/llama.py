"""Llama and its kin: RMSNorm, rotary positions, grouped-query attention, a gated feed-forward. Mistral, Qwen2, Qwen3.

Mistral (v0.1) sees a window, Qwen2 has biases on queries, keys and values, Qwen3 normalises queries and keys by head.
Hugging Face has already reordered the rotary channels into halves, as ours are; a GGUF file has not
(`jattn/interop/gguf.py`). Weights are (out, in) on their side.
"""

import functools
from typing import Any

from jattn.config import ConfigError
from jattn.interop.family import Config, Family, need
from jattn.interop.rules import TRANSPOSED, Rule, join_heads, split_bias, split_heads
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.nn.rotary import RotaryScaling


def trunk(config: Config) -> DecoderConfig:
    """The decoder of a config with model_type llama, mistral, qwen2 or qwen3."""
    need(config, 'hidden_act', ['silu'])
    kind, width, heads = config['model_type'], config['hidden_size'], config['num_attention_heads']
    windowed = kind == 'mistral' or (config.get('use_sliding_window', False) and not config.get('max_window_layers', 0))
    if config.get('use_sliding_window', False) and not windowed:
        raise ConfigError('config: use_sliding_window with max_window_layers above 0 is not read')
    bias = 'qkv' if kind == 'qwen2' else need(config, 'attention_bias', [False, True])
    mixer = SoftmaxConfig(
        heads=heads,
        key_heads=config.get('num_key_value_heads', heads),
        head_dim=config.get('head_dim') or width // heads,
        window=config.get('sliding_window') if windowed else None,
        rotary_base=rotary_base(config),
        rotary_scaling=rotary_scaling(config),
        bias={False: 'none', True: 'all'}.get(bias, bias),
        qk_norm=kind == 'qwen3',
    )
    if mixer.qk_norm and config['rms_norm_eps'] != 1e-6:
        raise ConfigError(f'config: rms_norm_eps={config["rms_norm_eps"]} with norms of heads, which have 1e-6 here')
    return DecoderConfig(
        width=width,
        layers=config['num_hidden_layers'],
        mixer=(mixer,),
        feed_forward=FeedForwardConfig(expansion=config['intermediate_size'] / width, activation='silu', gated=True),
        norm_epsilon=config['rms_norm_eps'],
        read_in='tokens',
        input_size=config['vocab_size'],
        output_size=config['vocab_size'],
        embed_scale=1.0,
        tied=config.get('tie_word_embeddings', False),
    )


def rotary_base(config: Config) -> float:
    """Theta; newer files keep it among the parameters of the scaling."""
    return float((config.get('rope_parameters') or {}).get('rope_theta') or config.get('rope_theta', 10_000.0))


def rotary_scaling(config: Config) -> RotaryScaling | None:
    """The scaling of the frequencies."""
    given = config.get('rope_scaling') or config.get('rope_parameters') or {}
    kind = given.get('rope_type', given.get('type', 'default'))
    if kind == 'default':
        return None
    if kind == 'linear':
        return RotaryScaling(factor=given['factor'], original=None)
    if kind != 'llama3':
        raise ConfigError(f"config: rope_scaling of type {kind!r} is not one of 'default', 'linear', 'llama3'")
    return RotaryScaling(
        factor=given['factor'],
        low=given['low_freq_factor'],
        high=given['high_freq_factor'],
        original=given['original_max_position_embeddings'],
    )


def rules(cfg: DecoderConfig) -> list[Rule]:
    """Their tensors and ours."""
    mixer, each = cfg.mixers()[0], functools.partial(of_layers, cfg)
    queries, keys = mixer.heads, mixer.num_key_heads
    table = [
        Rule('model.embed_tokens.weight', 'embedding'),
        Rule('model.norm.weight', 'final_norm.scale'),
        each('input_layernorm.weight', 'mixer_norm.scale'),
        each('self_attn.q_proj.weight', 'mixer.q_proj.kernel', split_heads(queries)),
        each('self_attn.k_proj.weight', 'mixer.k_proj.kernel', split_heads(keys)),
        each('self_attn.v_proj.weight', 'mixer.v_proj.kernel', split_heads(keys)),
        each('self_attn.o_proj.weight', 'mixer.o_proj.kernel', join_heads(queries)),
        each('post_attention_layernorm.weight', 'feed_forward_norm.scale'),
        each('mlp.gate_proj.weight', 'feed_forward.gate_proj.kernel', TRANSPOSED),
        each('mlp.up_proj.weight', 'feed_forward.in_proj.kernel', TRANSPOSED),
        each('mlp.down_proj.weight', 'feed_forward.out_proj.kernel', TRANSPOSED),
    ]
    if not cfg.tied:
        table.append(Rule('lm_head.weight', 'read_out.kernel', TRANSPOSED))
    if mixer.bias != 'none':
        table += [
            each('self_attn.q_proj.bias', 'mixer.q_proj.bias', split_bias(queries)),
            each('self_attn.k_proj.bias', 'mixer.k_proj.bias', split_bias(keys)),
            each('self_attn.v_proj.bias', 'mixer.v_proj.bias', split_bias(keys)),
        ]
    if mixer.bias == 'all':
        table.append(each('self_attn.o_proj.bias', 'mixer.o_proj.bias'))
    if mixer.qk_norm:
        table.append(each('self_attn.q_norm.weight', 'mixer.q_norm.scale'))
        table.append(each('self_attn.k_norm.weight', 'mixer.k_norm.scale'))
    return table


def of_layers(cfg: DecoderConfig, theirs: str, ours: str, *operation: Any) -> Rule:
    """A rule of every layer."""
    return Rule(f'model.layers.{{i}}.{theirs}', ours, *operation, layers=range(cfg.layers))


def describe(cfg: DecoderConfig) -> dict[str, Any]:
    """The config of a decoder that a Llama can hold.

    Raises:
        ConfigError: it cannot; names the field.
    """
    mixer = cfg.mixers()[0]
    said = {
        'model_type': 'llama',
        'architectures': ['LlamaForCausalLM'],
        'hidden_act': 'silu',
        'hidden_size': cfg.width,
        'intermediate_size': 0 if cfg.feed_forward is None else round(cfg.feed_forward.expansion * cfg.width),
        'num_hidden_layers': cfg.layers,
        'num_attention_heads': getattr(mixer, 'heads', 0),
        'num_key_value_heads': getattr(mixer, 'num_key_heads', 0),
        'head_dim': getattr(mixer, 'channels', 0),
        'attention_bias': getattr(mixer, 'bias', 'none') == 'all',
        'rms_norm_eps': cfg.norm_epsilon,
        'rope_theta': getattr(mixer, 'rotary_base', 0),
        'vocab_size': cfg.input_size,
        'tie_word_embeddings': cfg.tied,
        'torch_dtype': 'float32',
    }
    if scaling := getattr(mixer, 'rotary_scaling', None):
        linear = {'rope_type': 'linear', 'factor': scaling.factor}
        turns = {'low_freq_factor': scaling.low, 'high_freq_factor': scaling.high}
        llama3 = {'rope_type': 'llama3', 'factor': scaling.factor, **turns}
        llama3['original_max_position_embeddings'] = scaling.original
        said['rope_scaling'] = linear if scaling.original is None else llama3
    return said


LLAMA = Family(trunk, rules, describe=describe, ignored=[r'.*rotary_emb\.inv_freq'])  # a buffer of older files
