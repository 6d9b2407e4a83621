"""What stands in the place of attention where there is none: a convolution over 3 x 3 x 3 voxels between two maps."""

import dataclasses
from typing import ClassVar, NoReturn, Self

import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, MixerConfig
from jattn.mixers.scattered_linear import voxel_convolution
from jattn.nn.linear import Linear
from jattn.typing import Array, Float, PyTree

TAPS = 27


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalConfig(MixerConfig):
    """y = W_o conv(W_v x), channel by channel, from the voxels that there are to the same ones.

    Attributes:
        grid: the scene's voxels along z, y and x.
    """

    causal: ClassVar[bool] = False

    grid: tuple[int, int, int]

    def make(self, **flax_kwargs: object) -> nn.Module:
        return Local(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> NoReturn:
        raise ValueError('a convolution over a scene sees all sides and has no state')

    def flops(self, tokens: int) -> int:
        width = self.require_width()
        return 4 * tokens * width**2 + 2 * tokens * TAPS * width

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, grid=(2, 8, 8))


class Local(nn.Module):
    """The module of `LocalConfig`."""

    cfg: LocalConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: PyTree | None = None
    ) -> tuple[Float[Array, 'B T D'], None]:
        if state is not None:
            raise ValueError('a convolution over a scene sees all sides and has no state')
        v = Linear(x.shape[-1:], ('embed', 'mlp'), name='v_proj')(x)
        init = nn.with_logical_partitioning(nn.initializers.normal(TAPS**-0.5), ('tap_z', 'tap_y', 'tap_x', 'mlp'))
        kernel = self.param('kernel', init, (3, 3, 3, x.shape[-1]), jnp.float32).astype(x.dtype)
        real = None if context.segments is None else context.segments > 0
        z = voxel_convolution(v, kernel, context.coordinates, real, self.cfg.grid)
        return Linear(x.shape[-1:], ('mlp', 'embed'), name='o_proj')(z), None
