"""The vision encoder (Dosovitskiy et al. 2020): patches of an image as tokens, beside a class token and registers.

    tokens = [cls, registers, W patch_ij + p_ij];   outputs = read_out(pooler(norm(x_L)))

Registers (Darcet et al. 2023) are learned tokens that only the layers use: poolers do not see them. Patches stand in
raster order; p_ij is learned, a vector a place, so that a model belongs to one size of image, or is read from a square
table that is resized to the image's places (`grid`), as published models do: bicubic, a = -0.75, centres of places at
1/2, the last places repeated past the edges, no antialiasing.
"""

import dataclasses
from typing import Self

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jattn.contract import Context, MixerConfig, divide
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.encoder import Encoder, EncoderConfig
from jattn.nn.linear import Linear
from jattn.typing import Array, Float, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(EncoderConfig):
    """The vision encoder; the fields of `EncoderConfig`, and

    Attributes:
        patch: pixels of a patch's side; it divides the image's height and width.
        patch_bias: whether the map from patches to tokens has a bias.
        cls: whether a learned token leads the patches, for the poolers `cls` and others that read it.
        registers: learned tokens that no pooler sees.
        grid: places of a side of the table of positions, which is resized to the image; None: the image has as many
            places as the table, so that all images have one size.

    >>> import jax
    >>> cfg = VisionConfig(width=16, layers=1, patch=4, registers=1, read_in='linear', input_size=1, output_size=10)
    >>> model, x = cfg.make(), jnp.ones((2, 8, 8, 1))
    >>> params = jax.jit(model.init)(jax.random.key(0), x)['params']
    >>> model.apply({'params': params}, x)[0].shape, params['positions'].value.shape
    ((2, 10), (4, 16))
    """

    mixer: tuple[MixerConfig, ...] = (SoftmaxConfig(causal=False, rotary_base=None),)
    patch: int = 4
    patch_bias: bool = False
    cls: bool = True
    registers: int = 0
    grid: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch < 1 or self.registers < 0:
            raise ValueError(f'patch={self.patch} must be at least 1 and registers={self.registers} at least 0')
        if self.grid is not None and self.grid < 1:
            raise ValueError(f'grid={self.grid} must be at least 1, or None for one size of image')
        if self.read_in == 'tokens' or self.max_positions is not None or self.stem is not None:
            raise ValueError('a vision encoder reads images: read_in is linear, max_positions and stem None')

    @property
    def prefix(self) -> int:
        """How many learned tokens stand before the patches."""
        return self.registers + self.cls

    def make(self, **flax_kwargs: object) -> 'Vision':
        return Vision(self, **flax_kwargs)

    def tiny(self) -> Self:
        return dataclasses.replace(super().tiny(), registers=min(self.registers, 1))


class Vision(Encoder):
    """The module of `VisionConfig`: `outputs, _ = model(images [B, Y, X, F])`; pixels of unit scale."""

    cfg: VisionConfig

    def _embed(
        self, inputs: Float[Array, 'B Y X F'], embedding: Array | None, context: Context, state: PyTree | None
    ) -> tuple[Float[Array, 'B T D'], PyTree | None]:
        del embedding, context
        if state is not None:
            raise ValueError('a vision encoder reads whole images and has no state')
        cfg = self.cfg
        pixels = patches(inputs.astype(cfg.dtype), cfg.patch)
        x = Linear((cfg.width,), ('features', 'embed'), cfg.patch_bias, name='read_in')(pixels)
        places = tuple(side // cfg.patch for side in inputs.shape[1:3])
        table = self._learned('positions', x.shape[1] if cfg.grid is None else cfg.grid**2)
        x = x + (table if cfg.grid is None else resize(table, cfg.grid, places)).astype(x.dtype)[None]
        if cfg.prefix:
            learned = self._learned('prefix', cfg.prefix).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(learned[None], (len(x), *learned.shape)), x], axis=1)
        return x, None

    def _read_out(self, x: Float[Array, 'B T D'], embedding: Array | None, context: Context) -> Array:
        # Registers come first, then the class token: what a pooler sees is one slice.
        return super()._read_out(x[:, self.cfg.registers :], embedding, context)

    def _learned(self, name: str, count: int) -> Float[Array, 'N D']:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ('position', 'embed'))
        return self.param(name, init, (count, self.cfg.width), jnp.float32)


def patches(images: Float[Array, 'B Y X F'], size: int) -> Float[Array, 'B T P']:
    """The square patches of images in raster order, each as one vector (rows, columns, features).

    >>> patches(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    batch, height, width, features = images.shape
    rows, columns = divide('image height', height, 'patch', size), divide('image width', width, 'patch', size)
    x = images.reshape(batch, rows, size, columns, size, features)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, size * size * features)


def resize(table: Float[Array, 'P D'], grid: int, places: tuple[int, int]) -> Float[Array, 'N D']:
    """A square table of `grid` rows, each of `grid` places, as one of other rows and columns, all in raster order.

    >>> resize(jnp.arange(4.0)[:, None], 2, (1, 2)).ravel().tolist()
    [1.0, 2.0]
    """
    rows, columns = (jnp.asarray(resize_matrix(grid, side), table.dtype) for side in places)
    square = table.reshape(grid, grid, -1)
    return jnp.einsum('yi,xj,ijd->yxd', rows, columns, square).reshape(places[0] * places[1], -1)


def resize_matrix(old: int, new: int) -> Float[np.ndarray, 'N P']:
    """What bicubic resampling of a row of `old` places to `new` ones multiplies it with.

    >>> resize_matrix(2, 3).round(3).tolist()
    [[1.087, -0.087], [0.5, 0.5], [-0.087, 1.087]]
    """
    matrix, own = np.zeros((new, old)), np.arange(new)
    at = (own + 0.5) * old / new - 0.5
    first = np.floor(at).astype(int)
    for place in range(-1, 3):
        np.add.at(matrix, (own, np.clip(first + place, 0, old - 1)), _cubic(np.abs(at - first - place)))
    return matrix


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel (1981)."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
