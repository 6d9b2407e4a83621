"""Density-adaptive attention (DAAM): a gate without queries or keys, from how likely each entry is among its axis.

    y = x a       a = softmax over a chunk of the axis of -sum_k (x - mu - delta_k)^2 / (2 s^2 c_k^2)

Heads are contiguous chunks of the axis, of N // H entries, the last with the remainder; each has K Gaussians, offsets
delta (from 0) and widths c (exp of a standard normal), and the mean mu and variance s^2 of its own entries: 2 H K
parameters (`nn/density.py`). Nothing passes between entries but those two moments and the normaliser.

    axis       chunks of                    per           causal
    features   the D features of a token    token         in either case
    time       the tokens of a document     feature       False; the document's length decides the chunks
    time       one chunk, H = 1             feature       True: running moments, running normaliser (ours)

With causal time mu and s^2 are those of the document so far, exactly; the normaliser sums exp(log a_s) of the earlier
tokens as each was scored when it came. To score them all anew at every token, as the full form on every prefix does,
takes the whole prefix: no state of fixed size holds it. A product is scored as the one Gaussian that it is, without the
factor that a group shares: here no two tokens share it. A chunk of one token has no deviation: its z is 0.

The authors' block adds x: here the trunk does. Weights sum to 1, so y is about x / n; `rescale` multiplies by n. Their
padding counts in the divisor of the moments and passes unchanged; ours is no entry at all, and its output is 0.

State of causal time: mean, sum of squares, largest log a and the sum, [B, D] each; else only where the rows stand.
Taps: gates (a, [B, T, D]), z (x a by heads: of features [B, T, H, V], V the longest chunk, filled up with 0; of time
[B, T, H, D], 0 but in the token's own head).
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from jattn.contract import Context, Cursor, MixerConfig, Rows, locate
from jattn.flops import traced_flops
from jattn.nn.density import (
    NORMALISERS,
    VARIANCE_FLOOR,
    Gaussians,
    collapse,
    density_weights,
    log_density,
    normalise,
)
from jattn.ops import linear_scan
from jattn.ops import segments as documents
from jattn.taps import tap
from jattn.typing import Array, Bool, Float, Int32, at_least_float32

AXES = ('features', 'time')
COMBINATIONS = ('product', 'mixture')
EMPTY = -1e30  # log a over no token: below every other, and differences of two stay finite


@struct.dataclass
class Running:
    """What a document so far is to its next token.

    Attributes:
        mean: mu.
        squares: the sum of (x - mu)^2.
        largest: the largest log a.
        total: the sum of exp(log a - largest).
    """

    mean: Float[Array, 'B D']
    squares: Float[Array, 'B D']
    largest: Float[Array, 'B D']
    total: Float[Array, 'B D']


@struct.dataclass
class DensityState:
    """The state of density-adaptive attention.

    Attributes:
        cursor: where the rows stand; its position counts the document's tokens.
        past: the document so far; None over features.
    """

    cursor: Cursor
    past: Running | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DensityAdaptiveConfig(MixerConfig):
    """Density-adaptive attention.

    Attributes:
        heads: H, chunks of the axis.
        gaussians: K, of a head.
        axis: over what the weights sum to 1: 'time' or 'features'.
        causal: whether a token sees the past alone; over features it does in either case, but only then has a state.
        combine: 'product' of the Gaussians, or a learned 'mixture' (ours: sum_k w_k g_k).
        normalise: 'softmax', or 'clamped_product' as published: the densities over max(their sum, 1e-8).
        rescale: whether to multiply by the number of entries of the chunk.
        implementation: of `ops.linear_scan`, which runs causal time; None: the fastest that serves.

    >>> cfg = DensityAdaptiveConfig(width=16, axis='features', heads=3)
    >>> mixer, x = cfg.make(), jnp.ones((1, 5, 16))
    >>> (y, _), variables = mixer.init_with_output(jax.random.key(0), x)
    >>> y.shape, (5 * y[0, 0, :2]).round().tolist(), cfg.longest_chunk
    ((1, 5, 16), [1.0, 1.0], 6)
    """

    sites: ClassVar[tuple[str, ...]] = ('gates', 'z')

    heads: int = 4
    gaussians: int = 5
    axis: str = 'time'
    causal: bool = False
    combine: str = 'product'
    normalise: str = 'softmax'
    rescale: bool = False
    implementation: str | None = None

    def __post_init__(self) -> None:
        for name, known in (('axis', AXES), ('combine', COMBINATIONS), ('normalise', NORMALISERS)):
            if getattr(self, name) not in known:
                raise ValueError(f'{name}={getattr(self, name)!r} must be one of {", ".join(known)}')
        if self.heads < 1 or self.gaussians < 1:
            raise ValueError(f'heads={self.heads} and gaussians={self.gaussians} must be at least 1')
        if self.combine == 'mixture' and self.gaussians == 1:
            raise ValueError("combine='mixture' weighs Gaussians: gaussians=1 must be at least 2")
        if self.axis == 'time' and self.causal and self.heads > 1:
            raise ValueError(
                f'heads={self.heads} are chunks of a document, whose length a causal mixer cannot know: with '
                "axis='time' and causal=True heads must be 1"
            )
        if self.axis == 'features' and self.width is not None and self.width // self.heads < 2:
            raise ValueError(
                f'width={self.width} over heads={self.heads} leaves chunks of {self.width // self.heads}: a variance '
                'takes at least 2 features'
            )

    @property
    def longest_chunk(self) -> int:
        """V, the features of the last head."""
        width = self.require_width()
        return width - (self.heads - 1) * (width // self.heads)

    def make(self, **flax_kwargs: object) -> nn.Module:
        return DensityAdaptive(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.bfloat16) -> DensityState:
        del capacity, dtype  # constant in the length, float32
        if not self.causal:
            raise ValueError('causal=False reads whole documents and has no state')
        if self.axis == 'features':
            return DensityState(Cursor.fresh(batch), None)
        zeros = jnp.zeros((batch, self.require_width()), jnp.float32)
        return DensityState(Cursor.fresh(batch), Running(zeros, zeros, jnp.full_like(zeros, EMPTY), zeros))

    def flops(self, tokens: int) -> int:
        return traced_flops(self, tokens)

    def tiny(self) -> Self:
        return dataclasses.replace(self, width=32)


class DensityAdaptive(nn.Module):
    """The module of `DensityAdaptiveConfig`."""

    cfg: DensityAdaptiveConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], context: Context = Context(), state: DensityState | None = None
    ) -> tuple[Float[Array, 'B T D'], DensityState | None]:
        cfg = self.cfg
        # Tokens are counted, wherever positions say that they stand.
        rows = locate(context.replace(positions=None), x.shape[:2], None if state is None else state.cursor)
        wide, past = x.astype(at_least_float32(x)), None
        gaussians = self._gaussians(wide.dtype)
        if cfg.axis == 'features':
            gates, count, heads = self._over_features(wide, gaussians)
        elif cfg.causal:
            gates, count, past = self._over_the_past(wide, gaussians, rows, state)
            heads = jnp.zeros(x.shape[:2], jnp.int32)
        else:
            gates, count, heads = self._over_documents(wide, gaussians, rows)
        gates = tap(self, 'gates', gates * count if cfg.rescale else gates)
        y = (wide * gates).astype(x.dtype)
        if cfg.axis == 'features':
            y = merge_heads(tap(self, 'z', split_heads(y, cfg.heads)), x.shape[-1])
        else:
            own = heads[..., None] == jnp.arange(cfg.heads)[None, None]
            y = jnp.sum(tap(self, 'z', jnp.where(own[..., None], y[:, :, None], 0)), axis=2)
        return y, None if state is None else DensityState(rows.cursor, past)

    def _gaussians(self, dtype: jnp.dtype) -> Gaussians:
        """Those of the heads, [H, K]; a product as the one Gaussian that it is to a softmax."""
        cfg, shape = self.cfg, (self.cfg.heads, self.cfg.gaussians)

        def learned(name: str, init: nn.initializers.Initializer) -> Float[Array, 'H K']:
            # Not the axis 'heads' of projections: chunks need not divide over the devices that those do.
            boxed = nn.with_logical_partitioning(init, ('chunks', 'gaussians'))
            return self.param(name, boxed, shape, jnp.float32).astype(dtype)

        zeros = nn.initializers.zeros
        gaussians = Gaussians(learned('offset', zeros), learned('log_width', nn.initializers.normal(1.0)))
        if cfg.combine == 'mixture':
            return gaussians.replace(log_weight=jax.nn.log_softmax(learned('mixture', zeros), axis=-1))
        return collapse(gaussians) if cfg.normalise == 'softmax' else gaussians

    def _over_features(self, x: Float[Array, 'B T D'], gaussians: Gaussians) -> tuple[Array, Array, None]:
        cfg, width = self.cfg, x.shape[-1]
        chunks = split_heads(x, cfg.heads)
        there = split_heads(jnp.ones((1, 1, width), bool), cfg.heads)
        gaussians = jax.tree.map(lambda leaf: leaf[None, None, :, None], gaussians)
        gates = density_weights(chunks, gaussians, where=there, form=cfg.normalise)
        count = jnp.broadcast_to(jnp.sum(there, axis=-1, keepdims=True), there.shape)
        return merge_heads(gates, width), merge_heads(count, width), None

    def _over_documents(
        self, x: Float[Array, 'B T D'], gaussians: Gaussians, rows: Rows
    ) -> tuple[Array, Array, Int32[Array, 'B T']]:
        cfg = self.cfg
        segments = jnp.ones(x.shape[:2], jnp.int32) if rows.segments is None else rows.segments
        chunk, heads = document_chunks(segments, cfg.heads)
        real = (segments > 0)[..., None]
        count = over_chunks(jax.ops.segment_sum, jnp.ones((*x.shape[:2], 1), x.dtype), chunk)
        centred = x - over_chunks(jax.ops.segment_sum, x, chunk) / count
        squares = over_chunks(jax.ops.segment_sum, jnp.square(centred), chunk)
        gaussians = jax.tree.map(lambda leaf: leaf[heads][:, :, None], gaussians)
        log_a = log_density(centred, inverse_variance(squares, count), gaussians)
        largest = lax.stop_gradient(over_chunks(jax.ops.segment_max, log_a, chunk))
        total = over_chunks(jax.ops.segment_sum, jnp.exp(log_a - largest), chunk)
        return jnp.where(real, normalise(log_a, largest, total, cfg.normalise), 0), count, heads

    def _over_the_past(
        self, x: Float[Array, 'B T D'], gaussians: Gaussians, rows: Rows, state: DensityState | None
    ) -> tuple[Array, Array, Running]:
        cfg = self.cfg
        past = jax.tree.map(lambda leaf: leaf.astype(x.dtype), cfg.init_state(len(x), 1).past)
        if state is not None:
            past = rows.enter(state.past, jax.tree.map(lambda leaf: leaf[:1], past))
        number = jnp.arange(x.shape[1])[None] if rows.positions is None else rows.positions
        count = jnp.broadcast_to((number + 1).astype(x.dtype)[..., None], x.shape)

        def scan(kept: Array, added: Array, start: Array) -> tuple[Array, Array]:
            return linear_scan(
                jnp.broadcast_to(kept, x.shape),
                added,
                initial_state=start,
                return_state=True,
                segments=rows.segments,
                implementation=cfg.implementation,
            )

        means, mean = scan((count - 1) / count, x / count, past.mean)
        # (x - the mean before) (x - the mean after), of the mean after alone; nothing at the first token.
        added = jnp.square(x - means) * jnp.where(count > 1, count / jnp.maximum(count - 1, 1), 0)
        sums, squares = scan(jnp.ones((), x.dtype), added, past.squares)
        gaussians = jax.tree.map(lambda leaf: leaf[0][None, None, None], gaussians)
        log_a = log_density(x - means, inverse_variance(sums, count), gaussians)
        if rows.segments is not None:
            log_a = jnp.where((rows.segments > 0)[..., None], log_a, EMPTY)
        before, largest = running_largest(lax.stop_gradient(log_a), past.largest, rows.segments)
        kept = jnp.exp(jnp.minimum(before - largest, 0))  # above 0 only where a document opens and nothing is kept
        totals, total = scan(kept, jnp.exp(log_a - largest), past.total)
        gates = normalise(log_a, largest, jnp.where(totals > 0, totals, 1), cfg.normalise)
        if rows.segments is not None:
            gates = jnp.where((rows.segments > 0)[..., None], gates, 0)
        return gates, count, Running(mean, squares, largest[:, -1], total)


def split_heads(x: Float[Array, 'B T D'], heads: int) -> Float[Array, 'B T H V']:
    """Chunks of D // H features, the last with the remainder; the others are filled up with zeros to its length.

    >>> split_heads(jnp.arange(1, 6)[None, None], 2).tolist()
    [[[[1, 2, 0], [3, 4, 5]]]]
    """
    size = x.shape[-1] // heads
    first, last = x[..., : (heads - 1) * size], x[..., (heads - 1) * size :]
    first = first.reshape(*x.shape[:2], heads - 1, size)
    first = jnp.pad(first, ((0, 0), (0, 0), (0, 0), (0, last.shape[-1] - size)))
    return jnp.concatenate([first, last[:, :, None]], axis=2)


def merge_heads(chunks: Float[Array, 'B T H V'], width: int) -> Float[Array, 'B T D']:
    """What `split_heads` made, put together again."""
    heads = chunks.shape[2]
    first = chunks[:, :, :-1, : width // heads].reshape(*chunks.shape[:2], -1)
    return jnp.concatenate([first, chunks[:, :, -1]], axis=-1)


def document_chunks(segments: Int32[Array, 'B T'], heads: int) -> tuple[Int32[Array, 'B T'], Int32[Array, 'B T']]:
    """The number of each token's chunk in its row (padding: T), and which chunk of its document it is.

    A document shorter than H tokens is the last chunk alone, as floor(N / H) = 0 entries leave nothing to the others.

    >>> chunk, head = document_chunks(jnp.array([[1, 1, 1, 1, 1, 0, 2]]), heads=2)
    >>> chunk.tolist(), head.tolist()
    ([[0, 0, 1, 1, 1, 7, 2]], [[0, 0, 1, 1, 1, 1, 1]])
    """
    real, index = segments > 0, documents.positions(segments)
    document = jnp.cumsum(documents.openings(segments), axis=1) - 1
    document = jnp.where(real, document, segments.shape[1])
    size = over_chunks(jax.ops.segment_sum, real.astype(jnp.int32)[..., None], document)[..., 0] // heads
    head = jnp.where(size > 0, jnp.minimum(index // jnp.maximum(size, 1), heads - 1), heads - 1)
    opens = real & (index == head * size)
    return jnp.where(real, jnp.cumsum(opens, axis=1) - 1, segments.shape[1]), jnp.int32(head)


def over_chunks(reduce: Callable, x: Array, chunk: Int32[Array, 'B T']) -> Array:
    """A reduction over the tokens of every chunk [B, T, F], given back to each of them."""
    table = jax.vmap(lambda x, chunk: reduce(x, chunk, num_segments=len(chunk) + 1))(x, chunk)
    return jnp.take_along_axis(table, chunk[..., None], axis=1)


def inverse_variance(squares: Array, count: Array) -> Array:
    """1 / s^2; 0, so that z is 0, where there is one number only."""
    variance = squares / jnp.maximum(count - 1, 1)
    return jnp.where(count > 1, 1 / (variance + VARIANCE_FLOOR), 0)


def running_largest(
    scores: Float[Array, 'B T D'], past: Float[Array, 'B D'], segments: Int32[Array, 'B T'] | None
) -> tuple[Float[Array, 'B T D'], Float[Array, 'B T D']]:
    """The largest of a document's scores before each token and up to it."""
    whole = jnp.concatenate([past[:, None], scores], axis=1)
    opens = jnp.zeros(whole.shape[:2], bool)
    if segments is not None:
        opens = jnp.pad(documents.resets(segments), ((0, 0), (1, 0)))

    def within_document(
        earlier: tuple[Bool[Array, 'B N 1'], Array], later: tuple[Bool[Array, 'B N 1'], Array]
    ) -> tuple[Bool[Array, 'B N 1'], Array]:
        return earlier[0] | later[0], jnp.where(later[0], later[1], jnp.maximum(earlier[1], later[1]))

    _, largest = lax.associative_scan(within_document, (opens[..., None], whole), axis=1)
    return largest[:, :-1], largest[:, 1:]
