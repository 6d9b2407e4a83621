"""Which query sees which key: one rule on positions and segments, for whole sequences and for blocks of them.

Query t sees key s when all of these hold:

    segment_s = segment_t ≠ 0                           if segments are given (0 = padding: sees nobody, seen by nobody)
    position_s ≤ position_t                             if causal
    |position_t − position_s| < w  or  s is a sink      if there is a window w; sinks are a document's first n tokens

Positions that nobody gave are counted by index, and sinks then within each segment.
"""

import dataclasses
import functools
import math
import operator
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jattn.ops import segments as documents
from jattn.typing import Array, Bool, Float, Int32

INT32 = jnp.iinfo(jnp.int32)
FAR = 2**29  # beyond every position, while a difference of two such still fits int32

Pair = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Rule:
    """The static half of the mask: which tests there are.

    Attributes:
        causal: a key must not stand after its query.
        window: a key must stand fewer than this many positions from its query; None: any distance.
        sinks: so many first tokens of a document are seen beside the window.
        segmented: a key must be of its query's segment.
    """

    causal: bool = False
    window: int | None = None
    sinks: int = 0
    segmented: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f'attention: window={self.window}, but at least 1 was expected (a token sees itself)')
        if self.sinks < 0:
            raise ValueError(f'attention: sinks={self.sinks}, but 0 or more was expected')

    @property
    def ordered(self) -> bool:
        """Whether positions matter."""
        return self.causal or self.window is not None


class Places(NamedTuple):
    """Where the tokens of one side stand, each [B or 1, tokens]; cut into blocks [B or 1, blocks, size]."""

    positions: Int32[Array, 'B S']
    segments: Int32[Array, 'B S']
    sinks: Bool[Array, 'B S']

    def blocks(self, size: int) -> 'Places':
        """Cuts into blocks of `size` tokens, the last one filled up with tokens of segment 0."""
        missing = -self.segments.shape[1] % size
        padded = (jnp.pad(array, ((0, 0), (0, missing))) for array in self)
        return Places(*(array.reshape(array.shape[0], -1, size) for array in padded))

    def block(self, index: Array) -> 'Places':
        """One block of those that `blocks` cut."""
        return Places(*(lax.dynamic_index_in_dim(array, index, 1, keepdims=False) for array in self))

    @property
    def length(self) -> int:
        """How many tokens stand here."""
        return math.prod(self.segments.shape[1:])


def locate(
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'B S G K'],
    causal: bool,
    window: int | None,
    sinks: int,
    segments: Array | Pair | None,
    positions: Array | Pair | None,
) -> tuple[Rule, Places, Places]:
    """The arguments of `attention` as a rule and the places of queries and keys.

    Raises:
        ValueError: a wrong size, shape or dtype; no positions where the rule needs them and T differs from S.
    """
    rule = Rule(causal, window, sinks, segments is not None)
    if rule.ordered and positions is None and q.shape[1] != k.shape[1]:
        raise ValueError(
            f'attention: T={q.shape[1]} queries and S={k.shape[1]} keys need positions=(query, key): '
            'causal and window count by index only where T equals S'
        )
    sides = zip(('query', 'key'), (q, k), _pair('segments', segments), _pair('positions', positions))
    return rule, *(_places(rule, *side) for side in sides)


def _pair(name: str, arrays: Array | Pair | None) -> tuple[Array | None, Array | None]:
    pair = arrays if isinstance(arrays, tuple | list) else (arrays, arrays)
    if len(pair) != 2:
        raise ValueError(f'attention: {name} has {len(pair)} parts, but an array or a pair (query, key) was expected')
    return tuple(pair)


def _places(rule: Rule, side: str, tokens: Array, segments: Array | None, positions: Array | None) -> Places:
    shape = tokens.shape[:2]
    for name, array in (('segments', segments), ('positions', positions)):
        if array is not None and (array.shape != shape or not jnp.issubdtype(array.dtype, jnp.integer)):
            raise ValueError(
                f'attention: {side} {name} are {array.dtype}{array.shape}, but integers {shape} were expected'
            )
    index = jnp.arange(shape[1], dtype=jnp.int32)[None]
    if positions is None and segments is not None and rule.sinks:
        from_start = documents.positions(segments)
    else:
        from_start = index if positions is None else positions
    return Places(
        positions=jnp.asarray(index if positions is None or not rule.ordered else positions, jnp.int32),
        segments=jnp.ones_like(index) if segments is None else jnp.asarray(segments, jnp.int32),
        sinks=from_start < rule.sinks,
    )


def visible(rule: Rule, query: Places, key: Places) -> Bool[Array, 'B T S'] | None:
    """The mask [B or 1, T, S] between places; None where everybody sees everybody."""
    tests = []
    if rule.segmented:
        key_segments = key.segments[:, None, :]
        tests.append((query.segments[:, :, None] == key_segments) & (key_segments != 0))
    if rule.ordered:
        distance = query.positions[:, :, None] - key.positions[:, None, :]
        if rule.causal:
            tests.append(distance >= 0)
        if rule.window is not None:
            near = (distance if rule.causal else jnp.abs(distance)) < rule.window
            tests.append(near | key.sinks[:, None, :] if rule.sinks else near)
    return functools.reduce(operator.and_, tests) if tests else None


class Extremes(NamedTuple):
    """Of each block's real tokens: the lowest segment and its lowest position, the highest and its highest."""

    low_segment: Int32[Array, 'B N']
    low_position: Int32[Array, 'B N']
    high_segment: Int32[Array, 'B N']
    high_position: Int32[Array, 'B N']


def live_blocks(rule: Rule, query: Places, key: Places) -> tuple[Int32[Array, 'N M'], Int32[Array, 'N']]:
    """For each block of queries the key blocks that it may see in some row: their indices and their number.

    The places are cut into blocks. `order[i, :number[i]]` rises, what follows is filler. A pair is visible only within
    one segment, so in the order of a dictionary (segment, position_s) ≤ (segment, position_t), and a key block whose
    least such pair exceeds the queries' greatest is dead; likewise at the far side of a window. That proves a block
    dead for positions in any order, and misses few where segments and positions rise along the row.
    """
    q = Extremes(*(array[:, :, None] for array in _extremes(query)))
    k = Extremes(*(array[:, None, :] for array in _extremes(key)))
    live = (q.low_segment <= k.high_segment) & (k.low_segment <= q.high_segment)
    ahead = jnp.where(k.low_segment == q.high_segment, k.low_position - q.high_position, -FAR)
    behind = jnp.where(q.low_segment == k.high_segment, q.low_position - k.high_position, -FAR)
    if rule.causal:
        live &= ahead <= 0
    if rule.window is not None:
        near = behind < rule.window if rule.causal else jnp.maximum(ahead, behind) < rule.window
        live &= near | jnp.any(key.sinks, axis=-1)[:, None, :]
    live = jnp.any(live, axis=0)
    index = jnp.arange(live.shape[1], dtype=jnp.int32)[None]
    return jnp.sort(jnp.where(live, index, live.shape[1]), axis=1), jnp.sum(live, axis=1, dtype=jnp.int32)


def _extremes(places: Places) -> Extremes:
    segments, positions = places.segments, places.positions
    low = jnp.min(jnp.where(segments != 0, segments, INT32.max), axis=-1)
    high = jnp.max(jnp.where(segments != 0, segments, INT32.min), axis=-1)
    return Extremes(
        low,
        jnp.min(jnp.where(segments == low[:, :, None], positions, FAR), axis=-1),
        high,
        jnp.max(jnp.where(segments == high[:, :, None], positions, -FAR), axis=-1),
    )
