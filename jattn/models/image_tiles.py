"""Patches of images tile by tile, so that a run of tokens is a square of the image; and back."""

from jattn.contract import divide
from jattn.models.vision import patches
from jattn.typing import Array, Float


def tiled_patches(images: Float[Array, 'B Y X F'], patch: int, side: int) -> Float[Array, 'B T P']:
    """The patches of images, tile after tile of side x side patches; in a tile, and the tiles, in raster order.

    >>> import jax.numpy as jnp
    >>> tiled_patches(jnp.arange(16.0).reshape(1, 4, 4, 1), 1, 2)[0, :, 0].tolist()[:8]
    [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]
    """
    pixels = patch * side
    for name, size in (('image height', images.shape[1]), ('image width', images.shape[2])):
        divide(name, size, 'patch * sqrt(group)', pixels)
    tiles = patches(images, pixels).reshape(-1, pixels, pixels, images.shape[3])
    return patches(tiles, patch).reshape(len(images), -1, patch * patch * images.shape[3])


def untiled_patches(x: Float[Array, 'B T P'], patch: int, side: int, shape: tuple[int, int]) -> Float[Array, 'B Y X F']:
    """The images whose patches `tiled_patches` gives.

    >>> import jax.numpy as jnp
    >>> images = jnp.arange(64.0).reshape(1, 4, 8, 2)
    >>> bool(jnp.all(untiled_patches(tiled_patches(images, 2, 2), 2, 2, (4, 8)) == images))
    True
    """
    pixels = patch * side
    rows, columns, features = shape[0] // pixels, shape[1] // pixels, x.shape[-1] // patch**2
    x = x.reshape(len(x), rows, columns, side, side, patch, patch, features)
    # tile row, row of the tile, row of the patch; then the same of columns
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(len(x), *shape, features)
