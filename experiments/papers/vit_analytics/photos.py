"""Windows of the one photo that everybody has who draws pictures, and how far heads look on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from matplotlib import cbook, image

from experiments.papers.real_encoder import RealEncoder
from jattn.interop.vit import standardise
from jattn.typing import Array, Float, PyTree
from jattn.understanding import capture

PHOTO = 'grace_hopper.jpg'  # of matplotlib, 606 x 512


def windows(count: int, pixels: int) -> Float[np.ndarray, 'N Y X 3']:
    """Square windows of a photo in two columns from top to bottom, in 0 .. 1."""
    with cbook.get_sample_data(PHOTO) as file:
        photo = image.imread(file, format='jpg').astype(np.float32) / 255
    rows = np.linspace(0, photo.shape[0] - pixels, -(-count // 2)).astype(int)
    corners = [(row, column) for row in rows for column in (0, photo.shape[1] - pixels)][:count]
    return np.stack([photo[row : row + pixels, column : column + pixels] for row, column in corners])


def patterns(encoder: RealEncoder, images: Float[np.ndarray, 'N Y X 3']) -> Float[np.ndarray, 'N L H T T']:
    """The attention of every layer on every image, one image after the other."""
    return np.stack([np.asarray(_pattern(encoder.model, encoder.params, one[None])) for one in images])


def untrained(encoder: RealEncoder, key: Array, pixels: int) -> RealEncoder:
    """The same encoder with parameters as at the start of a training."""
    start = jax.jit(encoder.model.init)(key, jnp.zeros((1, pixels, pixels, 3)))
    return RealEncoder(encoder.model, nn.unbox(start)['params'])


@functools.partial(jax.jit, static_argnums=0)
def _pattern(model: nn.Module, params: PyTree, images: Float[Array, '1 Y X 3']) -> Float[Array, 'L H T T']:
    return capture.run(model, params, standardise(images), sites=['pattern']).stack('pattern')[:, 0]
