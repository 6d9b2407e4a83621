"""GPT-2: learned positions, LayerNorm, biases everywhere, the read-out tied to the embedding.

Their projections are (in, out), so nothing is transposed; queries, keys and values are one, (D, 3 H K), a third each.
"""

import numpy as np

from jattn.interop.family import Config, Family, need
from jattn.interop.llama import read_out
from jattn.interop.rules import Operation, Rule, of_layers, one
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.nn.feed_forward import FeedForwardConfig


def trunk(config: Config) -> DecoderConfig:
    """The decoder of a config with model_type gpt2."""
    need(config, 'activation_function', ['gelu_new', 'gelu_pytorch_tanh'])
    need(config, 'scale_attn_weights', [True])
    need(config, 'scale_attn_by_inverse_layer_idx', [False])
    width = config['n_embd']
    return DecoderConfig(
        width=width,
        layers=config['n_layer'],
        mixer=(SoftmaxConfig(heads=config['n_head'], rotary_base=None, bias='all'),),
        feed_forward=FeedForwardConfig(expansion=(config.get('n_inner') or 4 * width) / width, use_bias=True),
        norm='layer',
        norm_epsilon=config.get('layer_norm_epsilon', 1e-5),
        read_in='tokens',
        input_size=config['vocab_size'],
        output_size=config['vocab_size'],
        max_positions=config['n_positions'],
        embed_scale=1.0,
        tied=config.get('tie_word_embeddings', True),
    )


def rules(cfg: DecoderConfig) -> list[Rule]:
    """Their tensors and ours."""
    heads, each = cfg.mixers()[0].heads, of_layers('h.{i}.', cfg.layers)

    return [
        Rule('wte.weight', 'embedding'),
        Rule('wpe.weight', 'positions'),
        Rule('ln_f.weight', 'final_norm.scale'),
        Rule('ln_f.bias', 'final_norm.bias'),
        read_out('lm_head.weight', cfg),
        each('ln_1.weight', 'mixer_norm.scale'),
        each('ln_1.bias', 'mixer_norm.bias'),
        each('attn.c_attn.weight', tuple(f'mixer.{name}_proj.kernel' for name in 'qkv'), split_thirds(heads)),
        each('attn.c_attn.bias', tuple(f'mixer.{name}_proj.bias' for name in 'qkv'), split_thirds(heads)),
        each('attn.c_proj.weight', 'mixer.o_proj.kernel', split_rows(heads)),
        each('attn.c_proj.bias', 'mixer.o_proj.bias'),
        each('ln_2.weight', 'feed_forward_norm.scale'),
        each('ln_2.bias', 'feed_forward_norm.bias'),
        each('mlp.c_fc.weight', 'feed_forward.in_proj.kernel'),
        each('mlp.c_fc.bias', 'feed_forward.in_proj.bias'),
        each('mlp.c_proj.weight', 'feed_forward.out_proj.kernel'),
        each('mlp.c_proj.bias', 'feed_forward.out_proj.bias'),
    ]


def split_thirds(heads: int) -> Operation:
    """Queries, keys and values, or their biases: (..., 3 H K) <-> three of [..., H, K].

    >>> [part.tolist() for part in split_thirds(1).load(np.arange(6))]
    [[[0, 1]], [[2, 3]], [[4, 5]]]
    """
    return Operation(
        lambda x: tuple(part.reshape(*part.shape[:-1], heads, -1) for part in np.split(x, 3, axis=-1)),
        lambda *xs: (np.concatenate([x.reshape(*x.shape[:-2], -1) for x in xs], axis=-1),),
    )


def split_rows(heads: int) -> Operation:
    """A projection from heads: (H K, D) <-> [H, K, D]."""
    return one(lambda w: w.reshape(heads, -1, w.shape[-1]), lambda w: w.reshape(-1, w.shape[-1]))


# Buffers of older files: the causal mask, and what masked scores are.
GPT2 = Family(trunk, rules, prefix='transformer.', ignored=[r'h\.\d+\.attn\.(masked_)?bias'])
