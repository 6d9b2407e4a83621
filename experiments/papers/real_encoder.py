"""The published encoder of images that claims are shown on, and a tiny random one that stands in for it.

Size tiny reads no weights: an encoder of two layers, not trained, shows that everything runs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.papers.contract import ClaimContext
from jattn.interop import PRETRAINED, pretrained
from jattn.interop.vit import standardise
from jattn.mixers import SoftmaxConfig
from jattn.models.vision import VisionConfig
from jattn.typing import Array, Float, PyTree

NAME = 'vit_s'
NEEDS = 'needs the weights: make models'


@dataclasses.dataclass(frozen=True)
class RealEncoder:
    """An encoder of images, opened.

    Attributes:
        model, params: a trunk whose outputs are the class token and then the patches.
    """

    model: nn.Module
    params: PyTree

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        return self.model.cfg.patch

    def tokens(self, images: Float[np.ndarray, 'N Y X'], rows: int = 20) -> Float[np.ndarray, 'N T D']:
        """The tokens of grey images in 0 .. 1, some at a time."""
        pieces = [images[at : at + rows] for at in range(0, len(images), rows)]
        return np.concatenate([np.asarray(_tokens(self.model, self.params, piece)) for piece in pieces])


def open_encoder(context: ClaimContext) -> RealEncoder | None:
    """The ViT-S/14; None where its package is not installed."""
    if context.size == 'tiny':
        cfg = VisionConfig(
            width=16,
            layers=2,
            mixer=(SoftmaxConfig(causal=False, rotary_base=None, heads=2),),
            patch=14,
            grid=4,
            input_size=3,
            read_in='linear',
            pooler=None,
            read_out=False,
        )
        params = nn.unbox(jax.jit(cfg.make().init)(context.key(0), jnp.zeros((1, 56, 56, 3))))['params']
        return RealEncoder(cfg.make(), params)
    try:
        PRETRAINED[NAME].path()
    except FileNotFoundError:
        return None
    found = pretrained.load(NAME)
    return RealEncoder(found.model, found.params)


def enlarged(images: Float[np.ndarray, 'N Y X 1'], pixels: int) -> Float[np.ndarray, 'N Y X']:
    """Grey images at another size."""
    return np.asarray(jax.image.resize(jnp.asarray(images[..., 0]), (len(images), pixels, pixels), 'linear'))


def in_colour(images: Float[Array, 'N Y X']) -> Float[Array, 'N Y X 3']:
    """Grey images in 0 .. 1 as the encoder reads them."""
    return standardise(jnp.broadcast_to(images[..., None], (*images.shape, 3)))


@functools.partial(jax.jit, static_argnums=0)
def _tokens(model: nn.Module, params: PyTree, images: Float[Array, 'N Y X']) -> Float[Array, 'N T D']:
    return model.apply({'params': params}, in_colour(images))[0]
