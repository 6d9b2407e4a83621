"""FIT, Far-reaching Interleaved Transformers (Chen and Li 2023): groups of tokens, and latents that link the groups.

    x = norm(W inputs) + p_slot           T = G n tokens in G groups of n; p knows the place inside the group alone
    z = p_group                           m latents a group, learned
    x, z = block(x, z) for every block    `fit_blocks.py`; layers='(a)b(a)b(a)' are a local and b global layers a block
    outputs = read_out(norm(x)), or of the pooled norm(x); the same of norm(z) with reads='latents'

Attention costs O(T n) in the groups and O((T m / n)^2) over the latents: O(T^(4/3)) where n grows as T^(1/3). This is
the encoder; `fit_decoder.py` is the autoregressive form, `fit_denoiser.py` the one for diffusion, of the same blocks.

Inputs are tokens or vectors, whose number the group divides, or with `patch` images: a group is then a square tile of
patches. The taps of local layers have a group a row, [B G, n, .]. Where we differ from the authors' code: attention has
no biases, and GELU is the tanh form (`feed_forward.activation=gelu_exact`, `feed_forward.use_bias=true` for theirs).
"""

import dataclasses
import math
from typing import ClassVar, Self

import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, divide, locate
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.decoder import READ_IN, REMAT
from jattn.models.fit_blocks import FITBlock, Grid, as_grid
from jattn.models.fit_layout import Layout, parse_layers
from jattn.models.image_tiles import tiled_patches
from jattn.models.trunk import TrunkConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.nn.linear import Linear
from jattn.nn.norm import NORMS
from jattn.poolers.pooler import PoolerConfig
from jattn.poolers.simple import MeanConfig
from jattn.taps import tap
from jattn.typing import Array, Bool, Float, PyTree

READS = ('tokens', 'latents')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FITConfig(TrunkConfig):
    """The encoder.

    Attributes:
        width: c, of the tokens.
        latent_width: d; None: c.
        group: n, tokens of a group.
        latents: m of a group.
        groups: the most groups of a document; each has its own learned latents.
        layers: '(a)b(a)b...', the local and global layers of every block.
        local, latent: attention inside the groups and over the latents. A causal `latent` sees its own and earlier
            groups alone.
        chunk: groups at a time whose local layers stand in memory, for very long rows; divides the groups of a batch.
            Their taps are then out of reach. None: all at once.
        feed_forward, norm, remat, dtype: of every layer, as in `DecoderConfig`; remat also of the exchanges.
        cross_feed_forward: behind the exchanges between tokens and latents; None: none.
        reads: what leaves: 'tokens', or 'latents', [B, G m, .] without a pooler.
        pooler: what makes one vector of a row; None: an output each.
        read_out: whether the last map follows, to `output_size`; else the outputs are features.
        patch: pixels of a patch's side, for images; None: sequences.
        read_in, input_size, output_size: as in `DecoderConfig`.

    >>> import jax
    >>> cfg = FITConfig(width=16, group=4, latents=2, groups=3, read_in='linear', input_size=3, output_size=10)
    >>> model, x = cfg.make(), jnp.ones((2, 12, 3))
    >>> params = jax.jit(model.init)(jax.random.key(0), x)['params']
    >>> model.apply({'params': params}, x)[0].shape
    (2, 10)
    """

    is_shifted: ClassVar[bool] = False
    is_conditioned: ClassVar[bool] = False

    latent_width: int | None = None
    group: int = 64
    latents: int = 8
    groups: int = 64
    layers: str = '(1)2(1)2(1)'
    local: SoftmaxConfig = SoftmaxConfig(causal=False, rotary_base=None)
    latent: SoftmaxConfig = SoftmaxConfig(causal=False, rotary_base=None)
    chunk: int | None = None
    feed_forward: FeedForwardConfig | None = FeedForwardConfig()
    norm: str = 'layer'
    remat: str = 'block'
    dtype: str = 'float32'
    cross_feed_forward: FeedForwardConfig | None = None
    reads: str = 'tokens'
    pooler: PoolerConfig | None = MeanConfig()
    read_out: bool = True
    patch: int | None = None
    read_in: str | None = None
    input_size: int | None = None
    output_size: int | None = None

    def __post_init__(self) -> None:
        for name, legal in (('norm', tuple(NORMS)), ('remat', REMAT), ('read_in', (*READ_IN, None)), ('reads', READS)):
            if getattr(self, name) not in legal:
                raise ValueError(f'{name}={getattr(self, name)!r} must be one of {", ".join(map(str, legal))}')
        for name in ('group', 'latents', 'groups'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
        if self.latent.window is not None or self.latent.cache is not None:
            raise ValueError('latent.window and latent.cache must be None: the latents of a group share a position')
        if self.chunk is not None and (self.chunk < 1 or type(self.local) is not SoftmaxConfig):
            raise ValueError(f'chunk={self.chunk} must be at least 1, with plain softmax attention as local')
        if self.patch is not None and (self.patch < 1 or math.isqrt(self.group) ** 2 != self.group):
            raise ValueError(f'patch={self.patch} must be at least 1, and group={self.group} a square of patches')
        if self.patch is not None and self.read_in == 'tokens':
            raise ValueError("patch cuts images, but read_in='tokens'")
        self._check_ends()

    def _check_ends(self) -> None:
        """Layers whose outputs nobody reads would never learn."""
        *_, (_, last) = self.blocks
        if self.reads == 'tokens' and last:
            raise ValueError(f"layers={self.layers!r} end in global layers, but reads='tokens' takes none of them")
        if self.reads == 'latents' and not last:
            raise ValueError(f"layers={self.layers!r} end in local layers, but reads='latents' takes none of them")

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """The numbers of local and global layers of every block."""
        return parse_layers(self.layers)

    @property
    def layout(self) -> Layout:
        """The sizes of the blocks."""
        latent_width = self.latent_width or self.width
        return Layout(
            blocks=self.blocks,
            width=self.width,
            latent_width=latent_width,
            local=dataclasses.replace(self.local, width=self.width),
            latent=dataclasses.replace(self.latent, width=latent_width),
            feed_forward=self.feed_forward,
            norm=self.norm,
            remat=self.remat,
            cross_feed_forward=self.cross_feed_forward,
            shifted=self.is_shifted,
            conditioned=self.is_conditioned,
            chunk=self.chunk,
        )

    @property
    def document_align(self) -> int:
        return self.group

    def for_data(self, read_in: str, input_size: int, output_size: int) -> Self:
        given = {'read_in': read_in, 'input_size': input_size, 'output_size': output_size}
        return dataclasses.replace(self, **{k: v for k, v in given.items() if getattr(self, k) is None})

    def make(self, **flax_kwargs: object) -> 'FIT':
        return FIT(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> PyTree:
        raise ValueError('a FIT encoder reads whole rows and has no state')

    def layer_sites(self) -> list[tuple[tuple[str, ...], int]]:
        """layer -> (path, repeat): block after block, the local layers and then the global ones."""
        return [
            ((f'blocks_{block}', kind, 'body', 'block_0'), repeat)
            for block, counts in enumerate(self.blocks)
            for kind, count in zip(('local', 'latent'), counts)
            for repeat in range(count)
        ]

    def flops(self, tokens: int) -> int:
        """Those of a pooler and of a condition are not counted; images have `tokens` patches."""
        groups = -(-tokens // self.group)
        return self.layout.flops(groups, self.group, self.latents) + self._end_flops(groups)

    def _end_flops(self, groups: int) -> int:
        """Of the read-in and the read-out."""
        area = (self.patch or 1) ** 2
        read_in = 2 * groups * self.group * self.width * self.input_size * area if self.read_in == 'linear' else 0
        width, each = (self.width, self.group) if self.reads == 'tokens' else (self.layout.latent_width, self.latents)
        outputs = 0 if not self.read_out else groups * each if self.pooler is None else 1
        return read_in + 2 * outputs * width * self.output_size

    def describe(self) -> str:
        return f'FIT {self.layers} of width {self.width}, groups of {self.group} tokens and {self.latents} latents'

    def tiny(self) -> Self:
        """A copy of width 32 whose documents may be as long."""
        return dataclasses.replace(
            self,
            width=32,
            latent_width=None if self.latent_width is None else 16,
            group=4,
            latents=min(self.latents, 2),
            groups=-(-self.groups * self.group // 4),
            local=self.local.tiny(),
            latent=self.latent.tiny(),
            pooler=None if self.pooler is None else self.pooler.tiny(),
        )


class FIT(nn.Module):
    """The module of `FITConfig`: `outputs, _ = model(inputs, context)`."""

    cfg: FITConfig

    def setup(self) -> None:
        cfg = self.cfg
        learned = lambda scale, axes: nn.with_logical_partitioning(nn.initializers.normal(scale), axes)
        if cfg.read_in == 'tokens':
            init, shape = learned(1.0 / cfg.width**0.5, ('vocab', 'embed')), (cfg.input_size, cfg.width)
            self.embedding = self.param('embedding', init, shape, jnp.float32)
        else:
            self.read_in = Linear((cfg.width,), ('features', 'embed'))
        self.positions = self.param(
            'positions', learned(0.02, ('position', 'embed')), (cfg.group, cfg.width), jnp.float32
        )
        # Vectors, not a map: no axis is named as a matrix' is, so that the optimizer treats them as embeddings.
        shape = (cfg.groups, cfg.latents, cfg.layout.latent_width)
        self.latents = self.param('latents', learned(0.02, ('position', 'latent', 'channel')), shape, jnp.float32)
        self.blocks = [FITBlock(cfg.layout, number) for number in range(len(cfg.blocks))]
        self.final_norm = NORMS[cfg.norm]()
        self._setup_ends()

    def _setup_ends(self) -> None:
        cfg = self.cfg
        self.input_norm = NORMS[cfg.norm]()
        if cfg.pooler is not None:
            width = cfg.width if cfg.reads == 'tokens' else cfg.layout.latent_width
            self.pooler = dataclasses.replace(cfg.pooler, width=width).make()
        if cfg.read_out:
            self.output = Linear((cfg.output_size,), ('embed', 'vocab'))

    def __call__(
        self, inputs: Array, context: Context = Context(), state: PyTree | None = None
    ) -> tuple[Float[Array, 'B *T E'], None]:
        if state is not None:
            raise ValueError('a FIT encoder reads whole rows and has no state')
        x, grid, wrong = self._enter(inputs, context)
        x, z = self._run(x, self._first_latents(grid).astype(x.dtype), grid)
        reads_tokens = self.cfg.reads == 'tokens'
        y = self.final_norm(x if reads_tokens else z)
        y = y.reshape(len(y), -1, y.shape[-1])
        if wrong is not None:
            y = jnp.where(wrong[:, None, None], jnp.nan, y)
        if self.cfg.pooler is not None:
            segments = grid.tokens if reads_tokens else grid.groups
            if segments is not None:
                each = 1 if reads_tokens else self.cfg.latents
                segments = jnp.repeat(segments.reshape(len(y), -1), each, axis=1)
            y, _ = self.pooler(y, Context(segments=segments, train=context.train, axis=context.axis))
        return tap(self, 'logits', self.output(y) if self.cfg.read_out else y), None

    def _enter(self, inputs: Array, context: Context) -> tuple[Float[Array, 'B G N C'], Grid, Bool[Array, 'B'] | None]:
        """The tokens in groups, their documents, and which rows have a document that opens inside a group."""
        cfg = self.cfg
        if cfg.patch is not None:
            if context.segments is not None:
                raise ValueError('context.segments: an image is one document')
            inputs = tiled_patches(inputs, cfg.patch, math.isqrt(cfg.group))
        tokens = inputs.shape[1]
        groups = divide('tokens of a row', tokens, 'group', cfg.group)
        rows = locate(context.replace(positions=None), inputs.shape[:2])
        shape = (len(inputs), groups, cfg.group)
        if rows.segments is None:
            self._check_groups(groups)
            index = jnp.broadcast_to(jnp.arange(groups, dtype=jnp.int32)[None], shape[:2])
            grid, wrong = Grid(None, None, index, context), None
        else:
            grid = as_grid(rows.segments.reshape(shape), rows.index.reshape(shape), context)
            at = jnp.arange(tokens)[None] % cfg.group
            wrong = jnp.any((rows.segments > 0) & (rows.index % cfg.group != at), axis=1)
        x = self.input_norm(self._embed(inputs)).reshape(*shape, -1)
        x = x + self.positions[None, None].astype(x.dtype)
        return tap(self, 'embed', x), grid, wrong

    def _embed(self, inputs: Array) -> Float[Array, '*T C']:
        cfg = self.cfg
        if cfg.read_in != 'tokens':
            return self.read_in(inputs.astype(cfg.dtype))
        # Unit variance at the start, as in a decoder.
        return self.embedding.astype(cfg.dtype)[inputs] * cfg.width**0.5

    def _check_groups(self, groups: int) -> None:
        if groups > self.cfg.groups:
            raise ValueError(f'a row of {groups} groups does not fit in groups={self.cfg.groups}')

    def _first_latents(self, grid: Grid) -> Float[Array, 'B G M D']:
        """The learned latents of every group; NaN past the last, as past any capacity."""
        if grid.tokens is None:
            return jnp.broadcast_to(
                self.latents[None, : grid.index.shape[1]], (*grid.index.shape, *self.latents.shape[1:])
            )
        found = self.latents.at[grid.index].get(mode='fill', fill_value=jnp.nan)
        return jnp.where((grid.groups > 0)[:, :, None, None], found, 0)

    def _run(self, x: Array, z: Array, grid: Grid, condition: Array | None = None) -> tuple[Array, Array]:
        """Tokens and latents through all blocks."""
        for block in self.blocks:
            x, z = block(x, z, grid, condition)
        return x, tap(self, 'latents_out', z)
