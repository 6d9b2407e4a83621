"""FIT as a denoiser: the velocity of a flow, or any target a token, given noisy tokens and a condition.

    v = W_out norm(x)          at every token, as many outputs as `output_size`; images for images

The condition is `context.source` [B, S, E]: vectors of the time (`nn/time_features.py`), a class, a text. The latents
of every block read it before their layers, after W gelu(W source). With `self_condition` they begin where those of the
step before ended, z = p_group + norm(z_before), whose norm starts at zero: the state is these latents, and in training
half of the rows are handed those of a first pass through the blocks, without a gradient (Chen et al. 2022).

`testbeds/flow_matching.py` is what it may learn: x_t = (1 - t) noise + t data, and the target data - noise.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.models.fit import FIT, FITConfig
from jattn.models.fit_blocks import Grid
from jattn.models.image_tiles import untiled_patches
from jattn.nn.linear import Linear
from jattn.nn.norm import NORMS
from jattn.poolers.pooler import PoolerConfig
from jattn.taps import tap
from jattn.typing import Array, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FITDenoiserConfig(FITConfig):
    """The denoiser; the fields of `FITConfig`, of which it has no pooler and reads tokens, and

    Attributes:
        self_condition: whether latents go on from those of the step before.

    >>> from jattn.nn.time_features import time_features
    >>> cfg = FITDenoiserConfig(width=16, group=4, groups=3, read_in='linear', input_size=3, output_size=3)
    >>> model, x, context = cfg.make(), jnp.ones((2, 12, 3)), Context(source=time_features(jnp.array([0.0, 0.5]), 8))
    >>> params = jax.jit(model.init)(jax.random.key(0), x, context)['params']
    >>> model.apply({'params': params}, x, context)[0].shape
    (2, 12, 3)
    """

    is_conditioned: ClassVar[bool] = True

    pooler: PoolerConfig | None = None
    self_condition: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, only in (('pooler', None), ('reads', 'tokens'), ('read_out', True)):
            if getattr(self, name) != only:
                raise ValueError(f'{name}={getattr(self, name)!r} must be {only!r} in a FIT denoiser')
        if self.read_in == 'tokens':
            raise ValueError("read_in='tokens', but a denoiser reads vectors or images")

    def make(self, **flax_kwargs: object) -> 'FITDenoiser':
        return FITDenoiser(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> Float[Array, 'B G M D']:
        """No latents yet, for rows of `capacity` tokens."""
        if not self.self_condition:
            raise ValueError('self_condition=False: a denoiser without it has no state')
        return jnp.zeros((batch, capacity // self.group, self.latents, self.layout.latent_width), self.dtype)


class FITDenoiser(FIT):
    """The module of `FITDenoiserConfig`: `outputs, state = model(inputs, context, state)`."""

    cfg: FITDenoiserConfig

    def _setup_ends(self) -> None:
        cfg = self.cfg
        self.input_norm = NORMS[cfg.norm]()
        width = cfg.layout.latent_width
        self.condition_in = Linear((width,), ('features', 'mlp'))
        self.condition_out = Linear((width,), ('mlp', 'embed'))
        self.output = Linear((cfg.output_size * (cfg.patch or 1) ** 2,), ('embed', 'features'))
        if cfg.self_condition:
            # A norm of scale 0 and bias 0: at first nothing is handed on.
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('channel',))
            self.before_norm = nn.LayerNorm(1e-6, scale_init=zeros, bias_init=zeros, use_fast_variance=False)

    def __call__(
        self, inputs: Array, context: Context = Context(), state: Float[Array, 'B G M D'] | None = None
    ) -> tuple[Array, Float[Array, 'B G M D'] | None]:
        cfg = self.cfg
        if context.source is None:
            raise ValueError('a FIT denoiser needs context.source: the time, and what else it is conditioned on')
        x, grid, wrong = self._enter(inputs, context)
        condition = self.condition_out(jax.nn.gelu(self.condition_in(context.source.astype(x.dtype))))
        before = state
        if cfg.self_condition and (self.is_initializing() or before is None):
            before = self._first_pass(x, grid, condition)
        x, z = self._run(x, self._begin(grid, before).astype(x.dtype), grid, condition)
        y = self.output(self.final_norm(x))
        y = y.reshape(len(y), -1, y.shape[-1])
        if wrong is not None:
            y = jnp.where(wrong[:, None, None], jnp.nan, y)
        y = tap(self, 'logits', y)
        if cfg.patch is not None:
            y = untiled_patches(y, cfg.patch, math.isqrt(cfg.group), inputs.shape[1:3])
        return y, z.astype(state.dtype) if state is not None else None

    def _begin(self, grid: Grid, before: Float[Array, 'B G M D'] | None) -> Float[Array, 'B G M D']:
        z = self._first_latents(grid)
        return z if before is None else z + self.before_norm(before)

    def _first_pass(self, x: Array, grid: Grid, condition: Array) -> Float[Array, 'B G M D']:
        """What latents go on from without a state: nothing, or in training for half of the rows a first pass."""
        nothing = jnp.zeros((*grid.index.shape, *self.latents.shape[1:]), x.dtype)
        if not grid.context.train:
            return nothing
        _, z = self._run(x, self._begin(grid, nothing).astype(x.dtype), grid, condition)
        half = jax.random.bernoulli(self.make_rng('dropout'), 0.5, (len(x), 1, 1, 1))
        return jnp.where(half, jax.lax.stop_gradient(z), nothing)
