"""The blocks of FIT: layers inside the groups, latents that read their group, layers over all latents, and back.

    x = a local layers (x)                                     in every group of n tokens
    z = z + W_o attention(q: norm(z), k and v: norm(x))        the m latents of a group read its tokens     `up`
    z = z + W_o attention(q: norm(z), k and v: condition)      denoisers                                    `ask`
    z = b global layers (z)                                    over the latents of all groups
    x = x + W_o attention(q: norm(x), k and v: norm(z))        tokens read the latents of their group       `down`

A block without global layers is its local layers alone, and the last block has no `down`. In an autoregressive stack
the local layers are causal, a latent sees those of its own and of earlier groups (the group is its position), and
tokens read the latents of the group *before* theirs: those of their own group have seen all of it. A document's first
group reads zeros, which the norm makes a constant. Layers are those of `decoder.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context, divide
from jattn.mixers.softmax import SoftmaxConfig
from jattn.models.decoder import LAYERED, DecoderConfig, Group, Stream
from jattn.models.fit_layout import Layout
from jattn.nn.linear import Linear
from jattn.nn.norm import NORMS
from jattn.ops import attention
from jattn.taps import EDITS, tap
from jattn.typing import Array, Bool, Float, Int32, PyTree

Ids = tuple[Int32[Array, 'R N'], Int32[Array, 'R M']] | None  # documents of tokens and latents, a group a row


@struct.dataclass
class Grid:
    """Which document the tokens and latents of rows in G groups belong to.

    Attributes:
        tokens: [B, G, n], 0 = padding; None: all of one.
        groups: [B, G], 0: a group without tokens. None where tokens is.
        index: [B, G], which group of its document each is.
        context: the flags of the call.
    """

    tokens: Int32[Array, 'B G N'] | None
    groups: Int32[Array, 'B G'] | None
    index: Int32[Array, 'B G']
    context: Context = Context()

    def ids(self, latents: int) -> Ids:
        """The documents of the tokens [B G, n] and of the latents [B G, m]."""
        if self.tokens is None:
            return None
        return merged(self.tokens), jnp.broadcast_to(merged(self.groups)[:, None], (self.groups.size, latents))


@struct.dataclass
class Slots:
    """Tokens of at most one group a row, in decoding; [B, W] or [B].

    Attributes:
        real: [B, W].
        place: [B, W], the token's place in its group.
        opened: [B], how many groups the row has opened: a number for the local layers' caches to know groups by.
        document, group: [B], the row's document, and which of its groups this is.
        opens: [B], whether a document opens here.
        closes: [B], whether the group's last token is here.
    """

    real: Bool[Array, 'B W']
    place: Int32[Array, 'B W']
    opened: Int32[Array, 'B']
    document: Int32[Array, 'B']
    group: Int32[Array, 'B']
    opens: Bool[Array, 'B']
    closes: Bool[Array, 'B']


@struct.dataclass
class BlockState:
    """What a block knows of the past, in decoding.

    Attributes:
        local: of the local layers: the keys of the open group.
        tokens: [B, n, c], the open group's tokens after the local layers. None in a block without global layers.
        previous: [B, m, d], the latents of the group before; 0 in a document's first.
        latent: of the global layers: the keys of the latents of all closed groups.
    """

    local: PyTree
    tokens: Float[Array, 'B N C'] | None = None
    previous: Float[Array, 'B M D'] | None = None
    latent: PyTree = None


class Layers(nn.Module):
    """Layers of one kind, scanned: `x, states = layers(x [B, T, D], context, states)`."""

    layout: Layout
    mixer: SoftmaxConfig
    count: int

    @nn.compact
    def __call__(self, x: Float[Array, 'B T D'], context: Context, states: PyTree = None) -> tuple[Array, PyTree]:
        layout = self.layout
        cfg = DecoderConfig(width=x.shape[-1], norm=layout.norm, feed_forward=layout.feed_forward)
        group = nn.scan(
            Group,
            variable_axes=LAYERED,
            split_rngs={'params': True, 'dropout': True},
            in_axes=(nn.broadcast, nn.broadcast if states is None else 0),
            length=self.count,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )(cfg, (self.mixer,), self.count, remat=layout.remat == 'block' and states is None, name='body')
        stream, after = group(Stream(x), context, None if states is None else (states,))
        return stream.x, None if states is None else after[0]


class Exchange(nn.Module):
    """x + cross-attention from x to a source, each behind a norm, perhaps + feed_forward(norm(x))."""

    layout: Layout

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'B T C'],
        source: Float[Array, 'B S D'],
        segments: tuple[Array, Array] | None = None,
    ) -> Float[Array, 'B T C']:
        layout, norm, axes = self.layout, NORMS[self.layout.norm], ('embed', 'heads', 'head')
        keys = norm(name='source_norm')(source)
        q = tap(self, 'q', Linear(layout.heads, axes, name='q_proj')(norm(name='query_norm')(x)))
        k, v = (Linear(layout.heads, axes, name=f'{name}_proj')(keys) for name in 'kv')
        z = tap(self, 'z', attention(q, k, v, segments=segments))
        x = x + Linear(x.shape[-1:], ('heads', 'head', 'embed'), name='o_proj')(z)
        if layout.cross_feed_forward is None:
            return x
        return x + layout.cross_feed_forward.make(name='feed_forward')(norm(name='feed_forward_norm')(x))


class FITBlock(nn.Module):
    """One block, over whole rows (`__call__`) or group by group (`read`, then `close`)."""

    layout: Layout
    number: int

    def setup(self) -> None:
        layout = self.layout
        local, latent = layout.blocks[self.number]
        exchange = nn.remat(Exchange) if layout.remat == 'block' else Exchange
        self.local = Layers(layout, layout.local, local)
        if latent:
            self.up = exchange(layout)
            self.latent = Layers(layout, layout.latent, latent)
            if layout.conditioned:
                self.ask = exchange(layout)
            if not layout.is_last(self.number):
                self.down = exchange(layout)

    @property
    def has_latents(self) -> bool:
        """Whether there are global layers."""
        return self.layout.blocks[self.number][1] > 0

    def __call__(
        self,
        x: Float[Array, 'B G N C'],
        z: Float[Array, 'B G M D'],
        grid: Grid,
        condition: Float[Array, 'B S D'] | None = None,
    ) -> tuple[Float[Array, 'B G N C'], Float[Array, 'B G M D']]:
        flags = Context(train=grid.context.train, axis=grid.context.axis)
        ids = grid.ids(z.shape[2])
        if not self.has_latents:
            (inside,) = self._by_group(lambda block, x, ids: (block.inside(x, ids, flags),), merged(x), ids)
            return inside.reshape(x.shape), z
        inside, up = self._by_group(
            lambda block, x, z, ids: block.inside_and_up(x, z, ids, flags), merged(x), merged(z), ids
        )
        rows = up.reshape(len(z), -1, z.shape[-1])
        if self.layout.conditioned:
            rows = self.ask(rows, condition)
        each = lambda of_group: None if of_group is None else jnp.repeat(of_group, z.shape[2], axis=1)
        context = flags.replace(segments=each(grid.groups), positions=each(grid.index))
        z = self.latent(rows, context)[0].reshape(z.shape)
        if self.layout.is_last(self.number):
            return inside.reshape(x.shape), z
        read = merged(shifted(z, grid.index) if self.layout.shifted else z)
        (down,) = self._by_group(lambda block, *args: (block.back(*args),), inside, read, ids)
        return down.reshape(x.shape), z

    def inside(self, x: Float[Array, 'R N C'], ids: Ids, flags: Context) -> Float[Array, 'R N C']:
        """Groups, each a row, through the local layers."""
        return self.local(x, flags.replace(segments=None if ids is None else ids[0]))[0]

    def inside_and_up(
        self, x: Float[Array, 'R N C'], z: Float[Array, 'R M D'], ids: Ids, flags: Context
    ) -> tuple[Float[Array, 'R N C'], Float[Array, 'R M D']]:
        """The same, and their latents after they have read them."""
        x = self.inside(x, ids, flags)
        return x, self.up(z, x, None if ids is None else ids[::-1])

    def back(self, x: Float[Array, 'R N C'], z: Float[Array, 'R M D'], ids: Ids) -> Float[Array, 'R N C']:
        """Groups after they have read latents."""
        return self.down(x, z, ids)

    def _by_group(self, function: Callable[..., tuple], *rows: PyTree) -> tuple:
        """A function of groups, `chunk` of them at a time, so that no more stand in memory."""
        size, count = self.layout.chunk, len(rows[0])
        if size is None or size >= count or self.is_initializing():
            return function(self, *rows)
        chunks = divide('rows * groups', count, 'chunk', size)
        cut = jax.tree.map(lambda leaf: leaf.reshape(chunks, size, *leaf.shape[1:]), rows)
        _, found = nn.scan(
            lambda block, _, rows: (None, function(block, *rows)),
            variable_broadcast=('params', EDITS),
            split_rngs={'params': False, 'dropout': True},
            length=chunks,
        )(self, None, cut)
        return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), found)

    def read(
        self, x: Float[Array, 'B W C'], state: BlockState, slots: Slots
    ) -> tuple[Float[Array, 'B W C'], BlockState]:
        """The tokens of a group, or some of them, through the local layers and what the group before left."""
        ids = jnp.where(slots.real, slots.opened[:, None], 0)
        x, local = self.local(x, Context(segments=ids, positions=slots.place), state.local)
        state = state.replace(local=local)
        if not self.has_latents:
            return x, state
        row, slot = jnp.arange(len(x))[:, None], jnp.where(slots.real, slots.place, state.tokens.shape[1])
        tokens = state.tokens.at[row, slot].set(x.astype(state.tokens.dtype), mode='drop')
        previous = jnp.where(slots.opens[:, None, None], 0, state.previous)
        if not self.layout.is_last(self.number):
            seen = jnp.ones(previous.shape[:2], jnp.int32)
            x = self.down(x, previous.astype(x.dtype), (slots.real.astype(jnp.int32), seen))
        return x, state.replace(tokens=tokens, previous=previous)

    def close(
        self, z: Float[Array, 'B M D'], state: BlockState, slots: Slots
    ) -> tuple[Float[Array, 'B M D'], BlockState]:
        """The latents of a group whose last token is in `state.tokens`; of other rows nothing changes."""
        if not self.has_latents:
            return z, state
        z = self.up(z, state.tokens.astype(z.dtype))
        wide = lambda of_row: jnp.broadcast_to(of_row[:, None], z.shape[:2])
        context = Context(segments=wide(jnp.where(slots.closes, slots.document, 0)), positions=wide(slots.group))
        z, latent = self.latent(z, context, state.latent)
        previous = jnp.where(slots.closes[:, None, None], z.astype(state.previous.dtype), state.previous)
        return z, state.replace(latent=latent, previous=previous)


def as_grid(segments: Int32[Array, 'B G N'], index: Int32[Array, 'B G N'], context: Context) -> Grid:
    """The documents of tokens in groups; `index` counts the tokens of each document.

    >>> grid = as_grid(jnp.array([[[1, 1], [1, 0], [2, 2]]]), jnp.array([[[0, 1], [2, 0], [0, 1]]]), Context())
    >>> grid.groups.tolist(), grid.index.tolist()
    ([[1, 1, 2]], [[0, 1, 0]])
    """
    groups = jnp.max(segments, axis=2)
    # The first real token of a group says which of its document it is; one in a group without tokens says nothing.
    first = jnp.min(jnp.where(segments > 0, index, jnp.iinfo(jnp.int32).max), axis=2)
    return Grid(segments, groups, jnp.where(groups > 0, first // segments.shape[2], 0), context)


def merged(x: Array) -> Array:
    """[B, G, ...] to [B G, ...]: every group is a row. The rows of a device stay its own."""
    return x.reshape(-1, *x.shape[2:])


def shifted(z: Float[Array, 'B G M D'], index: Int32[Array, 'B G']) -> Float[Array, 'B G M D']:
    """The latents of the group before; zeros in a document's first.

    >>> shifted(jnp.arange(3.0).reshape(1, 3, 1, 1), jnp.array([[0, 1, 2]])).ravel().tolist()
    [0.0, 0.0, 1.0]
    """
    before = jnp.pad(z[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return jnp.where((index == 0)[:, :, None, None], 0, before)


def stacked(state: PyTree, count: int) -> PyTree:
    """The state of `count` layers."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (count, *leaf.shape)), state)
