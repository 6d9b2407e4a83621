"""Selective S4 (Wang et al. 2023, S5): a video classifier of state spaces that reads the tokens worth reading.

    x = W inputs (+ position)           tokens of frames in temporal, then raster order: T = frames x rows x columns
    x, m = the tokens kept              `selection`; m = 1 for a token that counts, else 0
    for every block of width D, D/2, ...:
        x = x + dropout(S4D(m norm(x)))
        x, m = the mean of two tokens next to each other, weighed by m; whether either counts
        x = gelu(W x)                   half as wide
    outputs = W mean(x) + bias          over what was kept: each token counts once, however it was pooled

The blocks are ViS4mer's (Islam and Bertasius 2022) with S4D, which is causal: the paper's features are read both ways.
selection='none' is ViS4mer itself. With 'generator' (`nn/token_selection.py`) tokens are dropped by a mask in training,
so that gradients reach the generator; otherwise by `evaluation`: 'gather' takes the best tokens out as a shorter
sequence, which is what saves time and memory, and 'mask' multiplies as in training. A token that is masked still lets
the state fade by a step, which one that is not there does not, but with `s4.use_gaps`. 'random' keeps as many at
random, the same for every row in evaluation. Padding counts as dropped.

The generator reads `context.source` [B, T, D], which should be `model.apply(momentum, inputs, method='features')` of a
momentum copy of the parameters (`training/contrast.py`); without it, the read-in tokens. It has no gradient there.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, divide, locate
from jattn.mixers.s4d import S4DConfig
from jattn.models.decoder import LAYERED, READ_IN
from jattn.models.trunk import TrunkConfig
from jattn.nn.linear import Linear
from jattn.nn.norm import LayerNorm
from jattn.nn.token_selection import MaskGeneratorConfig, best_tokens, sow_ratio, straight_through
from jattn.taps import tap
from jattn.typing import Array, Bool, Float, Int32, PyTree

SELECTIONS, EVALUATIONS = ('none', 'generator', 'random'), ('gather', 'mask')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveS4Config(TrunkConfig):
    """The classifier.

    Attributes:
        width: D, of the first block; 2^layers divides it.
        layers: L, blocks.
        s4: of every block; its width is filled in.
        grid: (rows, columns), tokens of a frame.
        selection: 'generator', 'random' or 'none'.
        keep: r, the share of the tokens that is to be kept.
        generator: of the mask.
        evaluation: 'gather' or 'mask'.
        dropout: of what S4 adds, in training.
        max_positions: learned positions 0 .. max_positions-1, added to the read-in; None: none, S4 knows the order.
        read_in: 'linear'; None: as the data says.
        input_size, output_size: features of a token, and outputs; None: as the data says.
        dtype: of the activations.

    >>> cfg = SelectiveS4Config(width=8, grid=(2, 2), read_in='linear', input_size=3, output_size=5)
    >>> model, x = cfg.make(), jnp.ones((2, 24, 3))
    >>> params = jax.jit(model.init)(jax.random.key(0), x)['params']
    >>> model.apply({'params': params}, x)[0].shape, cfg.kept(24)
    ((2, 5), 12)
    """

    width: int = 32
    layers: int = 2
    s4: S4DConfig = S4DConfig(state_size=16)
    grid: tuple[int, int] = (4, 4)
    selection: str = 'generator'
    keep: float = 0.5
    generator: MaskGeneratorConfig = MaskGeneratorConfig()
    evaluation: str = 'gather'
    dropout: float = 0.0
    max_positions: int | None = None
    read_in: str | None = None
    input_size: int | None = None
    output_size: int | None = None
    dtype: str = 'float32'

    def __post_init__(self) -> None:
        for name, legal in (('selection', SELECTIONS), ('evaluation', EVALUATIONS), ('read_in', (*READ_IN, None))):
            if getattr(self, name) not in legal:
                raise ValueError(f'{name}={getattr(self, name)!r} must be one of {", ".join(map(str, legal))}')
        if self.read_in == 'tokens':
            raise ValueError("read_in='tokens', but a video's tokens are vectors")
        if len(self.grid) != 2 or min(self.grid) < 1 or self.layers < 1:
            raise ValueError(f'grid={self.grid} must be rows and columns, and layers={self.layers} at least 1')
        if not 0 < self.keep <= 1 or not 0 <= self.dropout < 1:
            raise ValueError(f'keep={self.keep} must lie in (0, 1], and dropout={self.dropout} in [0, 1)')
        divide('width', self.width, '2^layers', 2**self.layers)

    @property
    def widths(self) -> tuple[int, ...]:
        """D of every block, and of what leaves the last."""
        return tuple(self.width // 2**block for block in range(self.layers + 1))

    @property
    def document_align(self) -> int:
        return 1

    def kept(self, tokens: int) -> int:
        """How many tokens evaluation keeps of `tokens`: round(r T), halves up, at least 1."""
        return tokens if self.selection == 'none' else max(int(self.keep * tokens + 0.5), 1)

    def for_data(self, read_in: str, input_size: int, output_size: int) -> Self:
        given = {'read_in': read_in, 'input_size': input_size, 'output_size': output_size}
        return dataclasses.replace(self, **{k: v for k, v in given.items() if getattr(self, k) is None})

    def make(self, **flax_kwargs: object) -> 'SelectiveS4':
        return SelectiveS4(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> PyTree:
        raise ValueError('a selective S4 classifier reads whole rows and has no state')

    def layer_sites(self) -> list[tuple[tuple[str, ...], int]]:
        return [((f'blocks_{block}', 'layer'), 0) for block in range(self.layers)]

    def flops(self, tokens: int) -> int:
        """Of evaluation, which gathers; what guides the generator is not counted."""
        total = 2 * tokens * self.width * self.input_size
        if self.selection == 'generator':
            total += self.generator.flops(self.width, tokens)
        tokens = self.kept(tokens) if self.evaluation == 'gather' else tokens
        for wide, narrow in zip(self.widths, self.widths[1:]):
            total += dataclasses.replace(self.s4, width=wide).flops(tokens)
            tokens = -(-tokens // 2)
            total += 2 * tokens * wide * narrow
        return total + 2 * self.widths[-1] * self.output_size

    def describe(self) -> str:
        kept = '' if self.selection == 'none' else f', {self.selection} keeps {self.keep:g} of the tokens'
        return f'{self.layers} blocks of S4D from width {self.width} on{kept}'

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32, layers=min(self.layers, 2), s4=self.s4.tiny(), grid=(1, 1))


@struct.dataclass
class Kept:
    """Which of T slots count.

    Attributes:
        mask: 1 for a slot that counts, else 0; in training with a gradient.
        weight: how many tokens of the input a slot stands for.
        positions: of the slots in time, where S4 is to know the gaps between them.
    """

    mask: Float[Array, 'B T']
    weight: Float[Array, 'B T']
    positions: Int32[Array, 'B T'] | None = None

    def pooled(self, x: Float[Array, 'B T D']) -> tuple[Float[Array, 'B U D'], 'Kept']:
        """Two slots in one: their mean by weight, 0 where neither counts."""
        pairs = lambda a: jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), *[(0, 0)] * (a.ndim - 2))).reshape(
            len(a), -1, 2, *a.shape[2:]
        )
        weights = pairs(self.weight)
        total = jnp.sum(weights, axis=2)
        shares = weights / jnp.where(total > 0, total, 1)[:, :, None]
        x = jnp.sum(pairs(x) * shares[..., None].astype(x.dtype), axis=2)
        positions = None if self.positions is None else pairs(self.positions)[:, :, 0] // 2
        return x, Kept(jnp.max(pairs(self.mask), axis=2), total, positions)

    def mean(self, x: Float[Array, 'B T D']) -> Float[Array, 'B D']:
        """The mean over the tokens that count; 0 where there are none."""
        total = jnp.sum(self.weight, axis=1)
        shares = self.weight / jnp.where(total > 0, total, 1)[:, None]
        return jnp.einsum('btd,bt->bd', x, shares.astype(x.dtype))


class S4Layer(nn.Module):
    """x + dropout(S4D(mask norm(x)))."""

    cfg: SelectiveS4Config
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, 'B T D'], kept: Kept, train: bool) -> tuple[Float[Array, 'B T D'], None]:
        x = tap(self, 'resid_pre', x)
        normed = LayerNorm(name='mixer_norm')(x) * kept.mask[:, :, None].astype(x.dtype)
        mixer = dataclasses.replace(self.cfg.s4, width=self.width).make(name='mixer')
        y, _ = mixer(normed, Context(positions=kept.positions, train=train))
        y = nn.Dropout(self.cfg.dropout, deterministic=not train)(y)
        return tap(self, 'resid_post', x + tap(self, 'attn_out', y)), None


class S4Block(nn.Module):
    """S4, then half the slots, half as wide; `mix` is the first half alone."""

    cfg: SelectiveS4Config
    number: int

    def setup(self) -> None:
        wide, narrow = self.cfg.widths[self.number : self.number + 2]
        # Widths differ from block to block; each is scanned once, so that it has the layer axis of every trunk.
        self.layer = nn.scan(
            S4Layer,
            variable_axes=LAYERED,
            split_rngs={'params': True, 'dropout': True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=1,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )(self.cfg, wide)
        self.narrow = Linear((narrow,), ('embed', 'mlp'), use_bias=True)

    def mix(self, x: Float[Array, 'B T D'], kept: Kept, train: bool) -> Float[Array, 'B T D']:
        """The tokens after S4."""
        return self.layer(x, kept, train)[0]

    def __call__(self, x: Float[Array, 'B T D'], kept: Kept, train: bool) -> tuple[Float[Array, 'B U E'], Kept]:
        x, kept = kept.pooled(self.mix(x, kept, train))
        return jax.nn.gelu(self.narrow(x)), kept


class SelectiveS4(nn.Module):
    """The module of `SelectiveS4Config`: `outputs [B, E], _ = model(inputs [B, T, F], context)`."""

    cfg: SelectiveS4Config

    def setup(self) -> None:
        cfg = self.cfg
        self.read_in = Linear((cfg.width,), ('features', 'embed'))
        if cfg.max_positions is not None:
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ('position', 'embed'))
            self.positions = self.param('positions', init, (cfg.max_positions, cfg.width), jnp.float32)
        if cfg.selection == 'generator':
            self.generator = cfg.generator.make()
        self.blocks = [S4Block(cfg, number) for number in range(cfg.layers)]
        self.output = Linear((cfg.output_size,), ('embed', 'vocab'), use_bias=True)

    def __call__(
        self, inputs: Float[Array, 'B T F'], context: Context = Context(), state: PyTree | None = None
    ) -> tuple[Float[Array, 'B E'], None]:
        if state is not None:
            raise ValueError('a selective S4 classifier reads whole rows and has no state')
        x, real = self._read(inputs, context)
        x, kept = self._select(x, real, context)
        for block in self.blocks:
            x, kept = block(x, kept, context.train)
        return tap(self, 'logits', self.output(kept.mean(x))), None

    def features(self, inputs: Float[Array, 'B T F'], context: Context = Context()) -> Float[Array, 'B T D']:
        """What a momentum copy tells the generator: every token after the first block's S4, nothing dropped."""
        x, real = self._read(inputs, context)
        return self.blocks[0].mix(x, counted(real), train=False)

    def _read(self, inputs: Array, context: Context) -> tuple[Float[Array, 'B T D'], Bool[Array, 'B T']]:
        """The tokens, and which are no padding; a row is one video."""
        divide('tokens of a row', inputs.shape[1], 'rows * columns of grid', self.cfg.grid[0] * self.cfg.grid[1])
        segments = locate(context, inputs.shape[:2]).segments
        real = jnp.ones(inputs.shape[:2], bool) if segments is None else segments > 0
        x = self.read_in(inputs.astype(self.cfg.dtype))
        if self.cfg.max_positions is not None:
            if x.shape[1] > self.cfg.max_positions:
                raise ValueError(f'a row of {x.shape[1]} tokens does not fit in max_positions={self.cfg.max_positions}')
            x = x + self.positions[None, : x.shape[1]].astype(x.dtype)
        return tap(self, 'embed', jnp.where(real[:, :, None], x, 0)), real

    def _select(
        self, x: Float[Array, 'B T D'], real: Bool[Array, 'B T'], context: Context
    ) -> tuple[Float[Array, 'B U D'], Kept]:
        """The tokens that are kept, all of them or a shorter sequence."""
        cfg = self.cfg
        if cfg.selection == 'none':
            return x, counted(real)
        if cfg.selection == 'random':
            key = self.make_rng('dropout') if context.train else jax.random.key(0)
            scores = jax.random.uniform(key, (len(x) if context.train else 1, x.shape[1]))
            scores = jnp.broadcast_to(scores, real.shape)
        else:
            logits = tap(self, 'keep_logits', self._logits(x, real, context))
            scores = logits[..., 0] - logits[..., 1]
            if context.train:
                noise = jax.random.gumbel(self.make_rng('dropout'), logits.shape, jnp.float32)
                mask = straight_through(logits, noise, cfg.generator.temperature) * real
                sow_ratio(self, mask, cfg.keep, context)
                return x, Kept(tap(self, 'kept', mask), mask)
        places = best_tokens(scores, real, cfg.kept(x.shape[1]))
        row = jnp.arange(len(x))[:, None]
        chosen = jnp.zeros_like(real).at[row, places].set(True) & real
        kept = counted(tap(self, 'kept', chosen.astype(jnp.float32)))
        if context.train or cfg.evaluation == 'mask':
            return x, kept
        taken = lambda a: jnp.take_along_axis(a, places, axis=1)
        positions = places if cfg.s4.use_gaps else None
        return x[row, places], Kept(taken(kept.mask), taken(kept.weight), positions)

    def _logits(self, x: Float[Array, 'B T D'], real: Bool[Array, 'B T'], context: Context) -> Float[Array, 'B T 2']:
        guide = x if context.source is None else context.source
        if guide.shape != x.shape:
            raise ValueError(f'context.source has shape {guide.shape}, but the features of every token {x.shape}')
        return self.generator(jax.lax.stop_gradient(guide), real, self.cfg.grid)


def counted(real: Array) -> Kept:
    """All real tokens."""
    mask = real.astype(jnp.float32)
    return Kept(mask, mask)
