"""The published language model that claims on a real model are shown on, and a tiny random one that stands in for it.

Size tiny reads no weights: a decoder of two layers on bytes, not trained, shows that everything runs.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.papers.contract import ClaimContext
from jattn.interop import PRETRAINED, pretrained
from jattn.mixers import SoftmaxConfig
from jattn.models import DecoderConfig
from jattn.typing import PyTree

NAME = 'smollm2'
NEEDS = 'needs the weights: make models'


@dataclasses.dataclass(frozen=True)
class Real:
    """A language model, opened.

    Attributes:
        model, params: a decoder.
        encode: text -> ids.
        vocabulary: how many ids there are.
    """

    model: nn.Module
    params: PyTree
    encode: Callable[[str], list[int]]
    vocabulary: int


def open_real(context: ClaimContext) -> Real | None:
    """SmolLM2; None where its package is not installed."""
    if context.size == 'tiny':
        cfg = DecoderConfig(
            width=16, layers=2, mixer=(SoftmaxConfig(heads=4),), read_in='tokens', input_size=256, output_size=256
        )
        params = nn.unbox(jax.jit(cfg.make().init)(context.key(0), jnp.zeros((1, 2), jnp.int32)))['params']
        return Real(cfg.make(), params, lambda text: list(text.encode()), 256)
    try:
        PRETRAINED[NAME].path()
    except FileNotFoundError:
        return None
    found = pretrained.load(NAME)
    return Real(found.model, found.params, found.tokenizer.encode, found.tokenizer.size)
