"""BERT: learned positions, a norm after every sum, exact gelu, biases everywhere; its mean of tokens is a sentence.

    h_0 = LN(word + position + type_0)      h = LN(h + attention(h))      h = LN(h + feed_forward(h))

One text a row, so every token is of type 0, whose row is added to the positions. The way back cannot tell the two
apart: it writes the sum as the positions and zeros as the types, the same function for rows of type 0 only.
"""

import numpy as np

from jattn.interop.family import Config, Family, need
from jattn.interop.rules import TRANSPOSED, Operation, Rule, join_heads, of_layers, split_bias, split_heads
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.encoder import EncoderConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.poolers.simple import MeanConfig

TYPES = 2  # rows of the table of token types
WITH_TYPE = Operation(
    lambda positions, types: (positions + types[0],),
    lambda positions: (positions, np.zeros((TYPES, positions.shape[1]), np.float32)),
)


def trunk(config: Config) -> EncoderConfig:
    """The encoder of a config with model_type bert; its output is the unit mean of the last layer."""
    need(config, 'hidden_act', ['gelu'])
    need(config, 'position_embedding_type', ['absolute'])
    need(config, 'type_vocab_size', [TYPES])
    width = config['hidden_size']
    mixer = SoftmaxConfig(heads=config['num_attention_heads'], causal=False, rotary_base=None, bias='all')
    return EncoderConfig(
        width=width,
        layers=config['num_hidden_layers'],
        block='post',
        norm='layer',
        norm_epsilon=config.get('layer_norm_eps', 1e-12),
        mixer=(mixer,),
        feed_forward=FeedForwardConfig(
            expansion=config['intermediate_size'] / width, activation='gelu_exact', gated=False, use_bias=True
        ),
        read_in='tokens',
        input_size=config['vocab_size'],
        output_size=width,
        embed_scale=1.0,
        embed_norm=True,
        max_positions=config['max_position_embeddings'],
        tied=False,
        pooler=MeanConfig(unit=True),
        read_out=False,
    )


def rules(cfg: EncoderConfig) -> list[Rule]:
    """Their tensors and ours."""
    heads, each = cfg.mixers()[0].heads, of_layers('encoder.layer.{i}.', cfg.layers)
    table = [
        Rule('embeddings.word_embeddings.weight', 'embedding'),
        Rule(
            ('embeddings.position_embeddings.weight', 'embeddings.token_type_embeddings.weight'),
            'positions',
            WITH_TYPE,
        ),
        Rule('embeddings.LayerNorm.weight', 'embed_norm.scale'),
        Rule('embeddings.LayerNorm.bias', 'embed_norm.bias'),
        each('attention.output.dense.weight', 'mixer.o_proj.kernel', join_heads(heads)),
        each('attention.output.dense.bias', 'mixer.o_proj.bias'),
        each('attention.output.LayerNorm.weight', 'mixer_norm.scale'),
        each('attention.output.LayerNorm.bias', 'mixer_norm.bias'),
        each('intermediate.dense.weight', 'feed_forward.in_proj.kernel', TRANSPOSED),
        each('intermediate.dense.bias', 'feed_forward.in_proj.bias'),
        each('output.dense.weight', 'feed_forward.out_proj.kernel', TRANSPOSED),
        each('output.dense.bias', 'feed_forward.out_proj.bias'),
        each('output.LayerNorm.weight', 'feed_forward_norm.scale'),
        each('output.LayerNorm.bias', 'feed_forward_norm.bias'),
    ]
    for name in ('query', 'key', 'value'):
        table.append(each(f'attention.self.{name}.weight', f'mixer.{name[0]}_proj.kernel', split_heads(heads)))
        table.append(each(f'attention.self.{name}.bias', f'mixer.{name[0]}_proj.bias', split_bias(heads)))
    return table


IGNORED = [
    r'pooler\.dense\..*',  # a head of the training on pairs of sentences; the mean does not use it
    r'embeddings\.position_ids',  # a buffer: 0, 1, 2 ...
]
BERT = Family(trunk, rules, prefix='bert.', ignored=IGNORED)
