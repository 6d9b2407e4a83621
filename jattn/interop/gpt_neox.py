"""GPT-NeoX and Pythia: LayerNorm, biases, a part of each head rotated, feed-forward beside the attention or behind it.

Queries, keys and values are one projection whose rows stand head by head: (H, 3, K). Weights are (out, in).
"""

import numpy as np

from jattn.interop.family import Config, Family, need
from jattn.interop.llama import read_out, rotary_base, rotary_scaling
from jattn.interop.rules import TRANSPOSED, Operation, Rule, join_heads, of_layers
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.nn.feed_forward import FeedForwardConfig


def trunk(config: Config) -> DecoderConfig:
    """The decoder of a config with model_type gpt_neox."""
    need(config, 'hidden_act', ['gelu'])
    rotary = config.get('rope_parameters') or {}
    mixer = SoftmaxConfig(
        heads=config['num_attention_heads'],
        rotary_base=rotary_base({'rope_theta': config.get('rotary_emb_base', 10_000.0), **config}),
        rotary_fraction=rotary.get('partial_rotary_factor', config.get('rotary_pct', 0.25)),
        rotary_scaling=rotary_scaling(config),
        bias='all' if need(config, 'attention_bias', [True, False]) else 'none',
    )
    width = config['hidden_size']
    return DecoderConfig(
        width=width,
        layers=config['num_hidden_layers'],
        mixer=(mixer,),
        feed_forward=FeedForwardConfig(
            expansion=config['intermediate_size'] / width, activation='gelu_exact', use_bias=True
        ),
        norm='layer',
        norm_epsilon=config.get('layer_norm_eps', 1e-5),
        block='parallel' if config.get('use_parallel_residual', True) else 'pre',
        read_in='tokens',
        input_size=config['vocab_size'],
        output_size=config['vocab_size'],
        embed_scale=1.0,
        tied=config.get('tie_word_embeddings', False),
    )


def rules(cfg: DecoderConfig) -> list[Rule]:
    """Their tensors and ours."""
    mixer = cfg.mixers()[0]
    heads, each = mixer.heads, of_layers('layers.{i}.', cfg.layers)

    table = [
        Rule('embed_in.weight', 'embedding'),
        Rule('final_layer_norm.weight', 'final_norm.scale'),
        Rule('final_layer_norm.bias', 'final_norm.bias'),
        read_out('embed_out.weight', cfg),
        each('input_layernorm.weight', 'mixer_norm.scale'),
        each('input_layernorm.bias', 'mixer_norm.bias'),
        each('attention.query_key_value.weight', tuple(f'mixer.{name}_proj.kernel' for name in 'qkv'), by_head(heads)),
        each('attention.dense.weight', 'mixer.o_proj.kernel', join_heads(heads)),
        each('post_attention_layernorm.weight', 'feed_forward_norm.scale'),
        each('post_attention_layernorm.bias', 'feed_forward_norm.bias'),
        each('mlp.dense_h_to_4h.weight', 'feed_forward.in_proj.kernel', TRANSPOSED),
        each('mlp.dense_h_to_4h.bias', 'feed_forward.in_proj.bias'),
        each('mlp.dense_4h_to_h.weight', 'feed_forward.out_proj.kernel', TRANSPOSED),
        each('mlp.dense_4h_to_h.bias', 'feed_forward.out_proj.bias'),
    ]
    if mixer.bias == 'all':
        biases = tuple(f'mixer.{name}_proj.bias' for name in 'qkv')
        table.append(each('attention.query_key_value.bias', biases, by_head(heads)))
        table.append(each('attention.dense.bias', 'mixer.o_proj.bias'))
    return table


def by_head(heads: int) -> Operation:
    """Queries, keys and values, or their biases: (H 3 K, ...) <-> three of [..., H, K].

    >>> [part.tolist() for part in by_head(2).load(np.arange(6))]
    [[[0], [3]], [[1], [4]], [[2], [5]]]
    """
    return Operation(
        lambda x: tuple(np.moveaxis(x.T.reshape(*x.T.shape[:-1], heads, 3, -1), -2, 0)),
        lambda *xs: (np.stack(xs, axis=-2).reshape(*xs[0].shape[:-2], -1).T,),
    )


# Buffers of older files: the causal mask, what masked scores are, frequencies.
BUFFERS = r'layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)'
GPT_NEOX = Family(trunk, rules, prefix='gpt_neox.', ignored=[BUFFERS])
