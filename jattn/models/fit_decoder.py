"""FIT as a decoder: tokens see their group's past, and what the latents of the group before made of all earlier ones.

    outputs = norm(x) E^T + bias        E: the embedding, or a read-out of its own

What `fit_blocks.py` calls autoregressive. Whole rows run in parallel; with a state a call goes through its groups one
after another: their tokens, and where a group's last token is there, its latents. State, for a document of T tokens:
the keys of the open group in every local layer, its tokens in every block, the latents of the group before in every
block, and the keys of T m / n latents in every global layer.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, Cursor, Rows, locate
from jattn.memories.tiles import lay, misplaced, pick
from jattn.memories.tokens import Places, place
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.fit import FIT, FITConfig
from jattn.models.fit_blocks import BlockState, Grid, Slots, as_grid, stacked
from jattn.nn.linear import Linear
from jattn.poolers.pooler import PoolerConfig
from jattn.taps import EDITS, tap
from jattn.typing import Array, Float, Int32


@struct.dataclass
class FITState:
    """The state of a FIT decoder.

    Attributes:
        cursor: where the rows stand.
        place: [B], the place of the next token in its group.
        group: [B], which group of its document the last token stood in.
        opened: [B], groups that the row has opened, over all its documents.
        blocks: of every block.
    """

    cursor: Cursor
    place: Int32[Array, 'B']
    group: Int32[Array, 'B']
    opened: Int32[Array, 'B']
    blocks: tuple[BlockState, ...]


@struct.dataclass
class Piece:
    """Tokens of at most one group a row: embedded, their documents (0: no token), and their places in the group."""

    x: Float[Array, 'B W C']
    segments: Int32[Array, 'B W']
    place: Int32[Array, 'B W']


@dataclasses.dataclass(frozen=True, kw_only=True)
class FITDecoderConfig(FITConfig):
    """The decoder; the fields of `FITConfig`, of which it has no pooler, no patches and reads tokens, and

    Attributes:
        tied: the read-out is the transposed embedding (tokens only).

    >>> cfg = FITDecoderConfig(width=16, group=4, latents=2, groups=3, read_in='tokens', input_size=8, output_size=8)
    >>> model, tokens = cfg.make(), jnp.zeros((2, 10), jnp.int32)
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> model.apply({'params': params}, tokens)[0].shape, cfg.max_positions
    ((2, 10, 8), 12)
    """

    is_shifted: ClassVar[bool] = True

    local: SoftmaxConfig = SoftmaxConfig(rotary_base=None)
    latent: SoftmaxConfig = SoftmaxConfig(rotary_base=None)
    pooler: PoolerConfig | None = None
    tied: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.local.causal and self.latent.causal):
            raise ValueError('local.causal and latent.causal must be True in a FIT decoder')
        for name, only in (('pooler', None), ('patch', None), ('reads', 'tokens'), ('read_out', True)):
            if getattr(self, name) != only:
                raise ValueError(f'{name}={getattr(self, name)!r} must be {only!r} in a FIT decoder')

    @property
    def max_positions(self) -> int:
        """The longest document."""
        return self.groups * self.group

    def make(self, **flax_kwargs: object) -> 'FITDecoder':
        return FITDecoder(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> FITState:
        layout, dtype = self.layout, jnp.dtype(self.dtype)
        closed = max(capacity // self.group, 1)

        def block(local: int, latent: int) -> BlockState:
            state = BlockState(stacked(layout.local.init_state(batch, self.group, dtype), local))
            if not latent:
                return state
            return state.replace(
                tokens=jnp.zeros((batch, self.group, layout.width), dtype),
                previous=jnp.zeros((batch, self.latents, layout.latent_width), dtype),
                latent=stacked(layout.latent.init_state(batch, closed * self.latents, dtype), latent),
            )

        zeros = jnp.zeros(batch, jnp.int32)
        return FITState(Cursor.fresh(batch), zeros, zeros, zeros, tuple(block(*counts) for counts in self.blocks))


class FITDecoder(FIT):
    """The module of `FITDecoderConfig`: `outputs, state = model(inputs, context, state)`."""

    cfg: FITDecoderConfig

    def _setup_ends(self) -> None:
        cfg = self.cfg
        if not (cfg.tied and cfg.read_in == 'tokens'):
            self.output = Linear((cfg.output_size,), ('embed', self._outputs))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self._outputs,))
        self.bias = self.param('bias', zeros, (cfg.output_size,), jnp.float32)

    @property
    def _outputs(self) -> str:
        return 'vocab' if self.cfg.read_in == 'tokens' else 'features'

    def __call__(
        self, inputs: Array, context: Context = Context(), state: FITState | None = None
    ) -> tuple[Float[Array, 'B T E'], FITState | None]:
        context = context.replace(positions=None)  # places are counted: groups have a fixed length
        rows = locate(context, inputs.shape[:2], None if state is None else state.cursor)
        x = self._embed(inputs)
        if state is None or self.is_initializing():
            x = self._whole(x, rows, context)
        else:
            x, state = self._through(x, rows, state)
        return tap(self, 'logits', self._read_out(self.final_norm(x))), state

    def _whole(self, x: Float[Array, 'B T C'], rows: Rows, context: Context) -> Float[Array, 'B T C']:
        """Rows from their start, all groups at once."""
        size, (batch, tokens) = self.cfg.group, x.shape[:2]
        if rows.segments is None:
            shift, count = None, -(-tokens // size)
            self._check_groups(count)
            # What fills the last group up comes after every token, and nobody reads that group's latents.
            index = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], (batch, count))
            grid = Grid(None, None, index, context)
        else:
            places = place(rows, (batch, tokens), size, None)
            shift, count = -jnp.argmax(places.real, axis=1) % size, -(-(tokens + size - 1) // size)
            segments, index = (groups(leaf, shift, count, size) for leaf in (rows.segments, rows.index))
            grid = as_grid(segments, index, context)
        x = tap(self, 'embed', groups(x, shift, count, size) + self._places(grid.index).astype(x.dtype))
        x, _ = self._run(x, self._first_latents(grid).astype(x.dtype), grid)
        x = pick(jnp.moveaxis(x, 1, 0), shift, tokens)
        return x if shift is None else jnp.where(misplaced(places, size)[:, :, None], jnp.nan, x)

    def _through(self, x: Float[Array, 'B T C'], rows: Rows, state: FITState) -> tuple[Float[Array, 'B T C'], FITState]:
        """The next tokens of every row, group after group; a group's latents when its last token has come."""
        size, tokens = self.cfg.group, x.shape[1]
        places: Places = place(rows, x.shape[:2], size, state.place)
        width = 1 if tokens == 1 else size
        first = jnp.argmax(places.real, axis=1)
        start = jnp.take_along_axis(places.place, first[:, None], axis=1)[:, 0]
        shift, count = (start - first) % width, 1 if width == 1 else -(-(tokens + width - 1) // width)
        pieces = jax.tree.map(lambda leaf: lay(leaf, shift, count, width), Piece(x, rows.segments, places.place))
        after, y = nn.scan(
            lambda model, state, piece: model._piece(state, piece),
            variable_broadcast=('params', EDITS),
            split_rngs={'params': False},
            length=count,
        )(self, state, pieces)
        y = jnp.where(misplaced(places, size)[:, :, None], jnp.nan, pick(y, shift, tokens))
        return y, after.replace(cursor=rows.cursor, place=places.after)

    def _piece(self, state: FITState, piece: Piece) -> tuple[FITState, Float[Array, 'B W C']]:
        """At most one group of every row."""
        slots, state = self._slots(state, piece)
        x = piece.x + self._places(slots.group, piece.place).astype(piece.x.dtype)
        blocks = []
        for block, own in zip(self.blocks, state.blocks):
            x, own = block.read(x, own, slots)
            blocks.append(own)
        # Most single tokens close no group, and then nobody pays for its latents.
        blocks = nn.cond(
            jnp.any(slots.closes),
            lambda model, blocks: model._close(blocks, slots, x.dtype),
            lambda model, blocks: blocks,
            self,
            tuple(blocks),
        )
        return state.replace(blocks=blocks), x

    def _places(self, group: Int32[Array, 'B *G'], place: Int32[Array, 'B W'] | None = None) -> Float[Array, '...']:
        """What tokens are told of their place in the group; NaN in groups past the last, as past any capacity."""
        table = self.positions[None] if place is None else self.positions[place]
        table = table[None] if place is None else table
        return jnp.where((group < self.cfg.groups)[..., None, None], table, jnp.nan)

    def _slots(self, state: FITState, piece: Piece) -> tuple[Slots, FITState]:
        """What the blocks are told of a piece, and the state's counters after it."""
        real = piece.segments > 0
        document = jnp.where(jnp.any(real, axis=1), jnp.max(piece.segments, axis=1), state.cursor.segment)
        opens_group = jnp.any(real & (piece.place == 0), axis=1)
        opens = opens_group & (document != state.cursor.segment)
        group = jnp.where(opens, 0, state.group + opens_group)
        opened = state.opened + opens_group
        closes = jnp.any(real & (piece.place == self.cfg.group - 1), axis=1)
        slots = Slots(real, piece.place, opened, document, group, opens, closes)
        cursor = state.cursor.replace(segment=document)
        return slots, state.replace(cursor=cursor, group=group, opened=opened)

    def _close(self, blocks: tuple[BlockState, ...], slots: Slots, dtype: jnp.dtype) -> tuple[BlockState, ...]:
        """The latents of the groups that are complete, through all blocks."""
        z = self.latents.at[slots.group].get(mode='fill', fill_value=jnp.nan).astype(dtype)
        after = []
        for block, own in zip(self.blocks, blocks):
            z, own = block.close(z, own, slots)
            after.append(own)
        return tuple(after)

    def _read_out(self, x: Float[Array, 'B T C']) -> Float[Array, 'B T E']:
        cfg = self.cfg
        if cfg.tied and cfg.read_in == 'tokens':
            y = jnp.einsum('btc,ec->bte', x, self.embedding.astype(x.dtype))
        else:
            y = self.output(x)
        return y + self.bias.astype(y.dtype)[None, None]


def groups(x: Array, shift: Int32[Array, 'B'] | None, count: int, size: int) -> Array:
    """[B, T, ...] in groups, [B, count, size, ...], every row shifted right by its own amount."""
    return jnp.moveaxis(lay(x, shift, count, size), 0, 1)
