"""What every token mixer is: a frozen config that makes a linen module, called the same way in training and decoding.

    cfg = SoftmaxConfig(width=128, heads=4)
    mixer = cfg.make()                                  # a linen module with the single field `cfg`
    y, _ = mixer(x)                                     # training: the whole sequence, x [B, T, D] -> y [B, T, D]
    state = cfg.init_state(batch, capacity)             # decoding: fixed shapes, one row a sequence
    y, state = mixer(x_next, context, state)            # the next T tokens (T may be 1)

The law of every causal mixer: any split of a sequence into calls gives the same outputs.

**Rows.** A row of a call holds documents one after another. `Context.segments` gives each token its document's id: 0 is
padding, the ids of the real tokens never decrease, and the tokens of one document are contiguous within a call.
Padding may lead, trail or stand between documents; it changes no state and takes no cache slot. Every state holds a
`Cursor`: the document it belongs to and the position that document's next token takes. When the next real token has
another id, the state is set back to its initial value. Without `segments` a call is one document: the state's own.

**Precision.** Parameters are float32 and are cast to the activations' dtype where they are used; softmax, recurrent
states, decays and losses are float32 at least.
"""

import abc
import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.ops import segments as documents
from jattn.typing import Array, Bool, Float, Int32, Key, PyTree


@struct.dataclass
class Context:
    """What a mixer may know of its tokens beside their values; every field is optional, `Context()` is legal.

    Attributes:
        positions: [B, T] int32, the place of each token in its document. None: counted within each document, from 0 or
            from where the state's document stands. They never decrease within a document.
        segments: [B, T] int32 document ids, 0 = padding. None: one document (with a state: the state's own).
        first_value: [B, T, H, V], the values of the first layer that shares them (RWKV-7); the trunk puts them here.
        landmarks: [B, T] bool, the tokens that close a block and stand for it (Landmark). None: every block of a
            document ends after the length that the mixer names.
        coordinates: [B, T, 3] int32, the place (z, y, x) of each token in a scene of voxels (ScatterFormer); the
            segments are then its windows, and a row is a scene.
        source: [B, S, D], what cross-attention reads. An encoder-decoder is handed what its encoder reads, tokens
            [B, S] or vectors. With a state the first call has it: later ones find its keys and values in the state.
        source_segments: [B, S] int32, the document that each source token belongs to, 0 = padding. None: document 1.
        train: static; whether dropout and the like are on, and slow state is updated.
        axis: static; the name of the devices' axis under pmap, over which batch statistics are averaged. Under jit they
            are those of the whole batch already.
    """

    positions: Int32[Array, 'B T'] | None = None
    segments: Int32[Array, 'B T'] | None = None
    first_value: Float[Array, 'B T H V'] | None = None
    landmarks: Bool[Array, 'B T'] | None = None
    coordinates: Int32[Array, 'B T 3'] | None = None
    source: Array | None = None
    source_segments: Int32[Array, 'B S'] | None = None
    train: bool = struct.field(pytree_node=False, default=False)
    axis: str | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class Cursor:
    """Where each row of a state stands; part of every state.

    Attributes:
        segment: [B] int32, the document of the last real token; -1 when fresh.
        position: [B] int32, the position that the document's next token takes.
    """

    segment: Int32[Array, 'B']
    position: Int32[Array, 'B']

    @classmethod
    def fresh(cls, batch: int) -> 'Cursor':
        """The cursor before the first token."""
        return cls(segment=jnp.full(batch, -1, jnp.int32), position=jnp.zeros(batch, jnp.int32))


@struct.dataclass
class Rows:
    """The tokens of one call, placed: what `locate` makes of a context and a cursor.

    Attributes:
        segments: [B, T]; None only without a state, when the call is one whole document without padding.
        positions: [B, T]; None only where segments is.
        index: [B, T], how many earlier tokens of the same document stand in this call. None where segments is.
        carried: [B, T], whether the token's document is the state's. None without a state.
        continues: [B], whether the call's first document is the state's: the state counts. None without a state.
        cursor: where the rows stand after the call. None without a state.
    """

    segments: Int32[Array, 'B T'] | None = None
    positions: Int32[Array, 'B T'] | None = None
    index: Int32[Array, 'B T'] | None = None
    carried: Bool[Array, 'B T'] | None = None
    continues: Bool[Array, 'B'] | None = None
    cursor: Cursor | None = None

    def enter(self, state: PyTree, initial: PyTree) -> PyTree:
        """The state at the call's start: each row's own where its document goes on, else its initial value."""

        def choose(old: Array, new: Array) -> Array:
            keep = self.continues.reshape(-1, *[1] * (old.ndim - 1))
            return jnp.where(keep, old, jnp.broadcast_to(new, old.shape).astype(old.dtype))

        return jax.tree.map(choose, state, initial)


def locate(context: Context, shape: tuple[int, int], cursor: Cursor | None = None) -> Rows:
    """Places the tokens of a call [B, T]: the document and position of each, and the cursor after the call.

    >>> rows = locate(Context(segments=jnp.array([[0, 3, 3, 4]])), (1, 4), Cursor.fresh(1))
    >>> rows.positions.tolist(), rows.cursor.segment.tolist(), rows.cursor.position.tolist()
    ([[0, 0, 1, 0]], [4], [1])
    """
    segments, positions = context.segments, context.positions
    for name, array in (('segments', segments), ('positions', positions)):
        if array is not None and array.shape != tuple(shape):
            raise ValueError(f'context.{name} has shape {array.shape}, but the call has [B, T] = {tuple(shape)}')
    if cursor is None and segments is None and positions is None:
        return Rows()
    if segments is None:
        own = 1 if cursor is None else jnp.where(cursor.segment > 0, cursor.segment, 1)[:, None]
        segments = jnp.broadcast_to(jnp.int32(own), shape)

    index = documents.positions(segments)
    if cursor is None:
        return Rows(segments, index if positions is None else positions, index)
    real = segments > 0
    carried = real & (segments == cursor.segment[:, None])
    if positions is None:
        positions = index + jnp.where(carried, cursor.position[:, None], 0)

    some = jnp.any(real, axis=1)
    first = jnp.argmax(real, axis=1)
    last = shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)

    def at(place: Int32[Array, 'B'], values: Int32[Array, 'B T']) -> Int32[Array, 'B']:
        return jnp.take_along_axis(values, place[:, None], axis=1)[:, 0]

    after = Cursor(
        segment=jnp.where(some, at(last, segments), cursor.segment),
        position=jnp.where(some, at(last, positions) + 1, cursor.position),
    )
    return Rows(segments, positions, index, carried, ~some | (at(first, segments) == cursor.segment), after)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig(abc.ABC):
    """The base of every mixer's config: frozen, hashable, keyword-only; `make()` gives the linen module.

    Attributes:
        width: D, the model's width; the trunk fills it in.
        causal: whether outputs depend on the past alone; only causal mixers have a state. A class constant, or a field
            where a mixer can be both.
        document_align: packed documents must start at multiples of it (1: anywhere).
        sites: the taps that every call offers, and `pattern_sites` those of the reference path.
        shares_first_value: whether the module has `first_value(x, context, state) -> [B, T, H, V]`, which a trunk calls
            at the first such layer and hands to the later ones in `Context.first_value`.
    """

    causal: ClassVar[bool] = True
    document_align: ClassVar[int] = 1
    sites: ClassVar[tuple[str, ...]] = ()
    pattern_sites: ClassVar[tuple[str, ...]] = ()
    shares_first_value: ClassVar[bool] = False

    width: int | None = None

    @abc.abstractmethod
    def make(self, **flax_kwargs: object) -> nn.Module:
        """The linen module; call it inside the parent's block, so that its parameters are filed there."""

    @abc.abstractmethod
    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> PyTree:
        """A fresh state for `batch` rows of at most `capacity` tokens; `dtype` is that of caches and convolution
        tails, recurrent states are float32."""

    @abc.abstractmethod
    def flops(self, tokens: int) -> int:
        """Operations of the matrix products of one row's forward pass (2 for a multiply-add), on the reference path."""

    @abc.abstractmethod
    def tiny(self) -> Self:
        """A copy of width 32 that keeps the entry's choices, for tests."""

    def state_bytes(self, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> int:
        """Bytes of one row's state."""
        state = jax.eval_shape(lambda: self.init_state(1, capacity, dtype))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    def example_context(self, key: Key, batch: int, tokens: int) -> Context:
        """A context that fills every field the mixer needs; the contract suite calls it."""
        del key, batch, tokens
        return Context()

    def require_width(self) -> int:
        """The width, or an error that says who should have set it."""
        if self.width is None:
            raise ValueError(f'{type(self).__name__}.width is None: the trunk fills it in; alone, give it yourself')
        return self.width


def divide(name: str, value: int, by_name: str, by: int) -> int:
    """value // by, or an error that names both fields.

    >>> divide('width', 128, 'heads', 3)
    Traceback (most recent call last):
    ...
    ValueError: width=128 must be a multiple of heads=3
    """
    if value % by:
        raise ValueError(f'{name}={value} must be a multiple of {by_name}={by}')
    return value // by
