"""Llama and its kin: RMSNorm, rotary positions, grouped-query attention, a gated feed-forward. Mistral, Qwen2, Qwen3.

Mistral (v0.1) sees a window, Qwen2 has biases on queries, keys and values, Qwen3 normalises queries and keys by head.
Hugging Face has already reordered the rotary channels into halves, as ours are; a GGUF file has not
(`jattn/interop/gguf.py`). Weights are (out, in) on their side.
"""

import dataclasses
from typing import Any

from jattn.config import ConfigError, difference
from jattn.interop.family import Config, Family, need
from jattn.interop.rules import TRANSPOSED, UNUSED, Rule, join_heads, of_layers, split_bias, split_heads
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.nn.cache import PlainCache
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.nn.rotary import RotaryScaling

LAYER = 'model.layers.{i}.'


def trunk(config: Config) -> DecoderConfig:
    """The decoder of a config with model_type llama, mistral, qwen2 or qwen3."""
    need(config, 'hidden_act', ['silu'])
    kind, width, heads = config['model_type'], config['hidden_size'], config['num_attention_heads']
    windowed = config.get('use_sliding_window', kind == 'mistral')
    if windowed and kind != 'mistral' and config.get('max_window_layers', 28):
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
    return DecoderConfig(
        width=width,
        layers=config['num_hidden_layers'],
        mixer=(mixer,),
        feed_forward=FeedForwardConfig(expansion=config['intermediate_size'] / width, activation='silu', gated=True),
        norm_epsilon=norm_epsilon(config, mixer.qk_norm),
        read_in='tokens',
        input_size=config['vocab_size'],
        output_size=config['vocab_size'],
        embed_scale=1.0,
        tied=config.get('tie_word_embeddings', False),
    )


def norm_epsilon(config: Config, of_heads: bool) -> float:
    """Of all norms, those of queries and keys too where there are any."""
    epsilon = config.get('rms_norm_eps', 1e-6)
    if of_heads and epsilon != 1e-6:
        raise ConfigError(f'config: rms_norm_eps={epsilon} with norms of heads, which have 1e-6 here')
    return epsilon


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
    mixer, each = cfg.mixers()[0], of_layers(LAYER, cfg.layers)
    queries, keys = mixer.heads, mixer.num_key_heads
    table = [
        Rule('model.embed_tokens.weight', 'embedding'),
        Rule('model.norm.weight', 'final_norm.scale'),
        read_out('lm_head.weight', cfg),
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


def read_out(name: str, cfg: DecoderConfig) -> Rule:
    """The rule of the read-out; where it is tied, some files have a copy of the embedding by its name."""
    return Rule(name, (), UNUSED, optional=True) if cfg.tied else Rule(name, 'read_out.kernel', TRANSPOSED)


def describe(cfg: DecoderConfig) -> dict[str, Any]:
    """The config of a decoder that a Llama can hold.

    Raises:
        ConfigError: it cannot; names the field, its value and what it must be.
    """
    plain = _plain(cfg)
    mixer = plain.mixer[0]
    said = {
        'model_type': 'llama',
        'architectures': ['LlamaForCausalLM'],
        'hidden_act': 'silu',
        'hidden_size': cfg.width,
        'intermediate_size': round(cfg.feed_forward.expansion * cfg.width),
        'num_hidden_layers': cfg.layers,
        'num_attention_heads': mixer.heads,
        'num_key_value_heads': mixer.num_key_heads,
        'head_dim': mixer.channels,
        'attention_bias': mixer.bias != 'none',
        'rms_norm_eps': cfg.norm_epsilon,
        'rope_theta': mixer.rotary_base,
        'vocab_size': cfg.input_size,
        'tie_word_embeddings': cfg.tied,
        'torch_dtype': 'float32',
        'bos_token_id': None,  # else readers take Llama's own
        'eos_token_id': None,
    }
    if scaling := mixer.rotary_scaling:
        linear = {'rope_type': 'linear', 'factor': scaling.factor}
        turns = {'low_freq_factor': scaling.low, 'high_freq_factor': scaling.high}
        llama3 = {'rope_type': 'llama3', 'factor': scaling.factor, **turns}
        llama3['original_max_position_embeddings'] = scaling.original
        said['rope_scaling'] = linear if scaling.original is None else llama3
    for field, (own, legal) in difference(plain, _plain(trunk(said))).items():
        if field.endswith('.type'):  # of a part where a Llama has none
            field, own, legal = field.removesuffix('.type'), own.partition(':')[2], None
        raise ConfigError(f'{field}={own!r} must be {legal!r} in a Llama')
    return said


def _plain(cfg: DecoderConfig) -> DecoderConfig:
    """A decoder without the choices that change nothing of what it computes, one mixer a layer."""
    for layer, mixer in enumerate(cfg.mixers()):
        if type(mixer) is not SoftmaxConfig:
            raise ConfigError(f'mixer.{layer}={type(mixer).__name__} must be SoftmaxConfig in a Llama')
        if mixer.rotary_base is None:
            raise ConfigError(f'mixer.{layer}.rotary_base=None must be a number in a Llama')
    if cfg.feed_forward is None:
        raise ConfigError('feed_forward=None must be FeedForwardConfig in a Llama')
    full = lambda mixer: dataclasses.replace(
        mixer,
        key_heads=mixer.num_key_heads,
        head_dim=mixer.channels,
        cache=None if mixer.cache == PlainCache() else mixer.cache,
        implementation=None,
    )
    hidden = round(cfg.feed_forward.expansion * cfg.width)
    return dataclasses.replace(
        cfg,
        mixer=tuple(map(full, cfg.mixers())),
        feed_forward=dataclasses.replace(cfg.feed_forward, expansion=hidden / cfg.width),
        scan=True,
        remat='block',
        dtype='float32',
    )


LLAMA = Family(trunk, rules, describe=describe, ignored=[r'.*rotary_emb\.inv_freq'])  # a buffer of older files
