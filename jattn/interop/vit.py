"""ViT and DINOv2 (Hugging Face's forms): patches with a bias, a class token, learned positions, norms first.

    h_0 = [cls + p_cls, W patch_ij + b + p_ij]     h = h + s_1 * attention(LN(h))     h = h + s_2 * feed_forward(LN(h))

The scales of channels s are DINOv2's. The outputs are the tokens behind the last norm, the class token first. Positions
are resized to the image (`VisionConfig.grid`). The class token and its position are one parameter here; the way back
writes their sum as the token and zeros as the position. Images are [B, Y, X, 3], as `standardise` makes them.
"""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jattn.config import ConfigError
from jattn.contract import Context
from jattn.interop.family import Config, Family, need
from jattn.interop.rules import TRANSPOSED, Operation, Rule, join_heads, of_layers, one, split_bias, split_heads
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.vision import VisionConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.typing import Array, Float

# Their names of a layer's parts.
VIT_LAYER = {
    'mixer_norm': 'layernorm_before',
    'feed_forward_norm': 'layernorm_after',
    'in_proj': 'intermediate.dense',
    'out_proj': 'output.dense',
}
DINOV2_LAYER = {'mixer_norm': 'norm1', 'feed_forward_norm': 'norm2', 'in_proj': 'mlp.fc1', 'out_proj': 'mlp.fc2'}
EPSILON = {'vit': 1e-12, 'dinov2': 1e-6}  # of norms, where a config does not say
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue


def standardise(images: Float[Array, 'B Y X 3']) -> Float[Array, 'B Y X 3']:
    """Images of red, green and blue in 0 .. 1 as DINOv2 reads them: less ImageNet's mean, over its deviation.

    >>> standardise(jnp.full((1, 1, 1, 3), 0.485)).round(2)
    Array([[[[0.  , 0.13, 0.35]]]], dtype=float32)
    """
    mean, deviation = (jnp.array([[[of]]], images.dtype) for of in (MEAN, DEVIATION))
    return (images - mean) / deviation


def trunk(config: Config) -> VisionConfig:
    """The encoder of a config with model_type vit or dinov2."""
    kind, width = config['model_type'], config['hidden_size']
    need(config, 'hidden_act', ['gelu'])
    need(config, 'qkv_bias', [True])
    need(config, 'use_swiglu_ffn', [False])
    patch, size = config['patch_size'], config['image_size']
    for name, value in (('patch_size', patch), ('image_size', size)):
        if not isinstance(value, int):
            raise ConfigError(f'config: {name}={value!r} must be one number: squares are read')
    hidden = config['intermediate_size'] if kind == 'vit' else int(width * config.get('mlp_ratio', 4))
    return VisionConfig(
        width=width,
        layers=config['num_hidden_layers'],
        norm='layer',
        norm_epsilon=config.get('layer_norm_eps', EPSILON[kind]),
        mixer=(SoftmaxConfig(heads=config['num_attention_heads'], causal=False, rotary_base=None, bias='all'),),
        feed_forward=FeedForwardConfig(expansion=hidden / width, activation='gelu_exact', use_bias=True),
        layer_scale=None if kind == 'vit' else config.get('layerscale_value', 1.0),
        read_in='linear',
        input_size=config.get('num_channels', 3),
        output_size=width,
        patch=patch,
        patch_bias=True,
        grid=size // patch,
        pooler=None,
        read_out=False,
    )


def example(cfg: VisionConfig) -> tuple[Array, Context]:
    """An image of one patch."""
    return jnp.zeros((1, cfg.patch, cfg.patch, cfg.input_size)), Context()


def rules(cfg: VisionConfig, layer: Mapping[str, str]) -> list[Rule]:
    """Their tensors and ours."""
    heads, each = cfg.mixers()[0].heads, of_layers('encoder.layer.{i}.', cfg.layers)
    table = [
        Rule(('embeddings.cls_token', 'embeddings.position_embeddings'), ('prefix', 'positions'), WITH_POSITION),
        Rule('embeddings.patch_embeddings.projection.weight', 'read_in.kernel', flat_patches(cfg.patch)),
        Rule('embeddings.patch_embeddings.projection.bias', 'read_in.bias'),
        Rule('layernorm.weight', 'final_norm.scale'),
        Rule('layernorm.bias', 'final_norm.bias'),
        each('attention.output.dense.weight', 'mixer.o_proj.kernel', join_heads(heads)),
        each('attention.output.dense.bias', 'mixer.o_proj.bias'),
    ]
    for name in ('query', 'key', 'value'):
        table.append(each(f'attention.attention.{name}.weight', f'mixer.{name[0]}_proj.kernel', split_heads(heads)))
        table.append(each(f'attention.attention.{name}.bias', f'mixer.{name[0]}_proj.bias', split_bias(heads)))
    for name in ('mixer_norm', 'feed_forward_norm'):
        table.append(each(f'{layer[name]}.weight', f'{name}.scale'))
        table.append(each(f'{layer[name]}.bias', f'{name}.bias'))
    for name in ('in_proj', 'out_proj'):
        table.append(each(f'{layer[name]}.weight', f'feed_forward.{name}.kernel', TRANSPOSED))
        table.append(each(f'{layer[name]}.bias', f'feed_forward.{name}.bias'))
    if cfg.layer_scale is not None:
        table.append(each('layer_scale1.lambda1', 'mixer_scale'))
        table.append(each('layer_scale2.lambda1', 'feed_forward_scale'))
    return table


# (1, 1, D) and (1, 1 + N, D) <-> [1, D] and [N, D].
WITH_POSITION = Operation(
    lambda token, table: (token[0] + table[0, :1], table[0, 1:]),
    lambda token, table: (token[None], np.concatenate([np.zeros_like(token), table])[None]),
)


def flat_patches(side: int) -> Operation:
    """The map from patches: (D, F, P, P) <-> [P P F, D], rows, columns, features.

    >>> flat_patches(2).load(np.arange(8).reshape(1, 2, 2, 2))[0].ravel().tolist()
    [0, 4, 1, 5, 2, 6, 3, 7]
    """
    return one(
        lambda w: w.transpose(2, 3, 1, 0).reshape(-1, len(w)),
        lambda w: w.reshape(side, side, -1, w.shape[1]).transpose(3, 2, 0, 1),
    )


# Heads of the training: the map behind the class token, classes, what a masked patch is.
IGNORED = [r'pooler\..*', r'classifier\..*', r'embeddings\.mask_token']
VIT = Family(trunk, functools.partial(rules, layer=VIT_LAYER), example, prefix='vit.', ignored=IGNORED)
DINOV2 = Family(trunk, functools.partial(rules, layer=DINOV2_LAYER), example, prefix='dinov2.', ignored=IGNORED)
