"""The six tasks of MAD (Poli et al. 2024): how their rows are drawn, and what a table look-up answers.

    in-context recall   k v k v ... k            `plain` ids: the lower half keys, the upper half values, one map a row
    noisy recall        the same; a pair is two noise ids with probability `noise`, one pair at least is not
    fuzzy recall        keys and values are motifs of 1 to `motif` different ids; pads in front
    selective copying   . a . . b . c > . . .    blanks among the ids, the copy id, then blanks under which to write
    compression         a b c d > 0 1 2 3 4      ids, the compression id, then one query id for each of the places
    memorization        k ? k ? ...              one map for all rows

The ids of a vocabulary of E: plain ones, noise, specials (the last). What the published generators get wrong is not
repeated: sizes that leave no keys beside the noise are refused, everything follows from the key, a blank may also stand
behind the last copied id (all places of the ids are equally likely), compression does not ask for noise, and the
motif that fuzzy recall asks for last was always shown (theirs can miss it, where it should stand near the end).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jattn.testbeds.discrete import CERTAIN, certain_logits, choose
from jattn.typing import Array, Bool, Float, Int32, Key

MAP_SEED = 12345  # of the one map of memorization


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of one task; None: the task has no such size.

    Attributes:
        vocabulary: E, specials and noise included.
        tokens: T.
        specials: ids at the vocabulary's end that the layout uses.
        noise: probability of noise, of a pair or (compression) of an id.
        noise_vocabulary: noise ids, before the specials.
        copies: ids to copy.
        motif: most ids of a key or a value.
        scored: what training counts: 'all' next tokens, or 'answers'.
    """

    vocabulary: int
    tokens: int
    specials: int = 0
    noise: float | None = None
    noise_vocabulary: int | None = None
    copies: int | None = None
    motif: int | None = None
    scored: str = 'answers'

    @property
    def plain(self) -> int:
        """Ids that are neither noise nor special."""
        return self.vocabulary - self.specials - (self.noise_vocabulary or 0)

    @property
    def keys(self) -> int:
        """Ids 0 .. keys - 1 are keys, keys .. plain - 1 values."""
        return self.plain // 2


class Rows(NamedTuple):
    """Tokens, what is asked at each, and which of it are answers."""

    inputs: Int32[Array, 'B T']
    targets: Int32[Array, 'B T']
    mask: Float[Array, 'B T']


def draw_recall(key: Key, batch: int, sizes: Sizes) -> Rows:
    """Pairs of key and value, drawn with replacement, then a shown key; answers are the values of keys seen before.

    >>> rows = draw_recall(jax.random.key(0), 1, Sizes(vocabulary=6, tokens=8, noise=0.0))
    >>> rows.inputs.tolist(), rows.targets.tolist()
    ([[2, 5, 1, 4, 1, 4, 2]], [[5, 1, 4, 1, 4, 2, 5]])
    >>> rows.mask.tolist()
    [[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]]
    """
    clean_key, name_key, book_key, asked_key, noise_key = jax.random.split(key, 5)
    pairs, keys = sizes.tokens // 2 - 1, sizes.keys
    clean = _clean_pairs(clean_key, batch, pairs, sizes.noise)
    names = jax.random.randint(name_key, (batch, pairs), 0, keys, jnp.int32)
    book = jax.random.randint(book_key, (batch, keys), keys, sizes.plain, jnp.int32)
    shows = ((names[:, :, None] == jnp.arange(keys)[None, None]) & clean[:, :, None]).astype(jnp.int32)
    # The largest of random numbers at the shown keys: one of them, all equally likely.
    chance = jax.random.uniform(asked_key, (batch, keys))
    asked = jnp.argmax(jnp.where(jnp.any(shows > 0, axis=1), chance, -1), axis=1).astype(jnp.int32)[:, None]
    earlier = jnp.take_along_axis(jnp.cumsum(shows, axis=1) - shows, names[:, :, None], axis=2)[:, :, 0]

    shown = jnp.stack([names, jnp.take_along_axis(book, names, axis=1)], axis=-1)
    noise = _noise(noise_key, shown.shape, sizes)
    last = [asked, jnp.take_along_axis(book, asked, axis=1)]
    stream = jnp.concatenate([jnp.where(clean[:, :, None], shown, noise).reshape(batch, -1), *last], axis=1)
    seen = ((earlier > 0) & clean).astype(jnp.float32)
    answered = jnp.stack([seen, jnp.zeros_like(seen)], axis=-1).reshape(batch, -1)
    return Rows(stream[:, :-1], stream[:, 1:], jnp.pad(answered, ((0, 0), (0, 1)), constant_values=1.0))


def draw_fuzzy(key: Key, batch: int, sizes: Sizes, longest_keys: bool = False) -> Rows:
    """The same with motifs of different ids; with `longest_keys` every key has all `motif` ids.

    >>> rows = draw_fuzzy(jax.random.key(3), 1, Sizes(vocabulary=7, tokens=14, specials=1, motif=2), longest_keys=True)
    >>> rows.inputs.tolist(), rows.targets[0, -2:].tolist(), rows.mask[0, -2:].tolist()    # 6: pad
    ([[6, 6, 6, 2, 1, 4, 5, 2, 1, 4, 5, 2, 1, 4]], [4, 5], [1.0, 1.0])
    """
    name_key, value_key, length_key, asked_key = jax.random.split(key, 4)
    motif, keys, pairs, tokens = sizes.motif, sizes.keys, sizes.tokens // 2, sizes.tokens
    names = choose(name_key, batch * pairs, motif, keys).reshape(batch, pairs, motif)
    values = keys + choose(value_key, batch * pairs, motif, sizes.plain - keys).reshape(batch, pairs, motif)
    lengths = jax.random.randint(length_key, (2, batch, pairs), 1, motif + 1, jnp.int32)
    name_length = jnp.full_like(lengths[0], motif) if longest_keys else lengths[0]
    within = jnp.arange(motif)[None, None] < name_length[:, :, None]
    powers = np.array([(keys + 1) ** place for place in range(motif)], np.int32)[None, None]
    code = jnp.sum(jnp.where(within, names + 1, 0) * powers, axis=-1, dtype=jnp.int32)
    first = jnp.argmax(code[:, :, None] == code[:, None, :], axis=2)
    values = jnp.take_along_axis(values, first[:, :, None], axis=1)
    value_length = jnp.take_along_axis(lengths[1], first, axis=1)

    # Pairs are taken as long as one of any size and the last one still fit; the last repeats one of them.
    starts = jnp.cumsum(name_length + value_length, axis=1) - name_length - value_length
    count = jnp.sum(starts <= tokens - 4 * motif, axis=1, keepdims=True, dtype=jnp.int32)
    asked = jnp.floor(jax.random.uniform(asked_key, (batch, 1)) * count).astype(jnp.int32)
    index = jnp.arange(pairs)[None]
    order = jnp.where(index == count, asked, index)
    starts = jnp.where(index <= count, starts, tokens + 1)
    answered = (index == count) | (first < index)

    # Where a pair begins, its number rises by one; what follows is found by gathers.
    end = jnp.take_along_axis(starts, count, axis=1) + jnp.take_along_axis(name_length + value_length, asked, axis=1)
    place = jnp.arange(tokens + 1)[None] - (tokens + 1 - end)
    begins = jnp.zeros((batch, tokens + 2), jnp.int32).at[np.arange(batch)[:, None], starts].set(1, mode='drop')
    number = jnp.cumsum(begins, axis=1)[np.arange(batch)[:, None], jnp.maximum(place, 0)] - 1
    pair, offset = jnp.take_along_axis(order, number, axis=1), place - jnp.take_along_axis(starts, number, axis=1)
    in_value = offset - jnp.take_along_axis(name_length, pair, axis=1)
    rows, clip = np.arange(batch)[:, None], lambda x: jnp.clip(x, 0, motif - 1)
    stream = jnp.where(in_value < 0, names[rows, pair, clip(offset)], values[rows, pair, clip(in_value)])
    stream = jnp.where(place < 0, sizes.vocabulary - 1, stream)
    is_answer = (place >= 0) & (in_value >= 0) & jnp.take_along_axis(answered, number, axis=1)
    return Rows(stream[:, :-1], stream[:, 1:], is_answer[:, 1:].astype(jnp.float32))


def draw_copying(key: Key, batch: int, sizes: Sizes) -> Rows:
    """Ids at random places among blanks, the copy id, then as many blanks as ids, which are the answers there.

    >>> rows = draw_copying(jax.random.key(0), 1, Sizes(vocabulary=6, tokens=10, specials=2, copies=3))
    >>> rows.inputs.tolist(), rows.targets[0, -3:].tolist()
    ([[2, 4, 2, 4, 4, 0, 5, 4, 4, 4]], [2, 2, 0])
    """
    place_key, token_key = jax.random.split(key)
    blank, copies = sizes.vocabulary - 2, sizes.copies
    context = sizes.tokens - copies - 1
    places = jnp.sort(choose(place_key, batch, copies, context), axis=1)
    tokens = jax.random.randint(token_key, (batch, copies), 0, sizes.plain, jnp.int32)
    shown = jnp.full((batch, context), blank, jnp.int32).at[np.arange(batch)[:, None], places].set(tokens)
    inputs = jnp.pad(shown, ((0, 0), (0, copies + 1)), constant_values=blank).at[:, context].set(blank + 1)
    behind = ((0, 0), (context + 1, 0))
    return Rows(inputs, jnp.pad(tokens, behind), jnp.pad(jnp.ones(tokens.shape), behind))


def draw_compression(key: Key, batch: int, sizes: Sizes) -> Rows:
    """T - 1 ids and the compression id, then the T query ids E .. E + T - 1; noise is shown but not asked for.

    >>> rows = draw_compression(jax.random.key(0), 1, Sizes(vocabulary=6, tokens=4, specials=1, noise=0.0))
    >>> rows.inputs.tolist(), rows.targets.tolist()
    ([[2, 2, 1, 5, 6, 7, 8, 9]], [[0, 0, 0, 0, 2, 2, 1, 5]])
    """
    hit_key, token_key, noise_key = jax.random.split(key, 3)
    shape = (batch, sizes.tokens - 1)
    hit = jax.random.bernoulli(hit_key, sizes.noise, shape)
    tokens = jax.random.randint(token_key, shape, 0, sizes.plain, jnp.int32)
    shown = jnp.where(hit, _noise(noise_key, shape, sizes), tokens)
    shown = jnp.pad(shown, ((0, 0), (0, 1)), constant_values=sizes.vocabulary - 1)
    queries = jnp.broadcast_to(sizes.vocabulary + jnp.arange(sizes.tokens, dtype=jnp.int32), shown.shape)
    asked = jnp.pad(~hit, ((0, 0), (0, 1)), constant_values=True)
    behind = ((0, 0), (sizes.tokens, 0))
    targets = jnp.pad(jnp.where(asked, shown, 0), behind)
    return Rows(jnp.concatenate([shown, queries], axis=1), targets, jnp.pad(asked.astype(jnp.float32), behind))


def draw_memorization(key: Key, batch: int, sizes: Sizes) -> Rows:
    """Keys, each with the question id behind it, under which its value is the answer; the map is `fixed_map`.

    >>> rows = draw_memorization(jax.random.key(0), 1, Sizes(vocabulary=8, tokens=6, specials=1, noise=0.0))
    >>> rows.inputs.tolist(), rows.targets.tolist(), fixed_map(Sizes(vocabulary=8, tokens=6, specials=1)).tolist()
    ([[2, 7, 1, 7, 1, 7]], [[0, 6, 0, 3, 0, 3]], [5, 3, 6])
    """
    clean_key, name_key, noise_key = jax.random.split(key, 3)
    pairs = sizes.tokens // 2
    clean = _clean_pairs(clean_key, batch, pairs, sizes.noise)
    names = jax.random.randint(name_key, (batch, pairs), 0, sizes.keys, jnp.int32)
    shown = jnp.stack([names, jnp.full_like(names, sizes.vocabulary - 1)], axis=-1)
    inputs = jnp.where(clean[:, :, None], shown, _noise(noise_key, shown.shape, sizes)).reshape(batch, -1)
    values = jnp.where(clean, jnp.asarray(fixed_map(sizes))[names], 0)
    second = lambda x: jnp.stack([jnp.zeros_like(x), x], axis=-1).reshape(batch, -1)
    return Rows(inputs, second(values), second(clean.astype(jnp.float32)))


def fixed_map(sizes: Sizes) -> np.ndarray:
    """The value of every key, all different, int32; the same for all rows and seeds."""
    values = np.random.default_rng(MAP_SEED).permutation(np.arange(sizes.keys, sizes.plain))
    return values[: sizes.keys].astype(np.int32)


def _clean_pairs(key: Key, batch: int, pairs: int, noise: float) -> Bool[Array, 'B N']:
    """Which pairs are no noise: each with probability 1 - noise, and one, anywhere, for sure."""
    clean_key, sure_key = jax.random.split(key)
    sure = jax.random.randint(sure_key, (batch, 1), 0, pairs, jnp.int32)
    return jax.random.bernoulli(clean_key, 1 - noise, (batch, pairs)) | (jnp.arange(pairs)[None] == sure)


def _noise(key: Key, shape: tuple[int, ...], sizes: Sizes) -> Int32[Array, '...']:
    """Uniform noise ids (without any: numbers that are not used)."""
    return jax.random.randint(key, shape, sizes.plain, sizes.plain + max(sizes.noise_vocabulary or 0, 1), jnp.int32)


def recall_logits(inputs: Int32[Array, 'B T'], sizes: Sizes) -> Float[Array, 'B T E']:
    """What followed the key at hand where it was first seen; nothing (equal logits) if it was not. Any motif.

    >>> jnp.argmax(recall_logits(jnp.array([[2, 3, 1, 4, 2]]), Sizes(vocabulary=6, tokens=6)), axis=-1)[0, -1].tolist()
    3
    """
    at = jnp.arange(inputs.shape[1])[None]
    is_key, is_value = inputs < sizes.keys, (inputs >= sizes.keys) & (inputs < sizes.plain)
    # The ids of the key so far, the latest first, as one number; a key is a run of key ids.
    code, in_run = jnp.zeros_like(inputs), is_key
    for back in range(sizes.motif or 1):
        earlier = jnp.pad(inputs, ((0, 0), (back, 0)), constant_values=sizes.plain)[:, : inputs.shape[1]]
        in_run &= earlier < sizes.keys
        code += jnp.where(in_run, earlier + 1, 0) * (sizes.keys + 1) ** back
    last = jax.lax.cummax(jnp.where(is_key, at, 0), axis=1)
    current = jnp.take_along_axis(code, last, axis=1)
    ends = is_key & jnp.pad(is_value[:, 1:], ((0, 0), (0, 1)))
    same = ends[:, None, :] & (code[:, None, :] == current[:, :, None]) & (at[:, None, :] < last[:, :, None])
    answer = jnp.argmax(same, axis=2) + 1 + at - last
    token = jnp.take_along_axis(inputs, jnp.minimum(answer, inputs.shape[1] - 1), axis=1)
    found = jnp.any(same, axis=2) & (is_key | is_value)
    return CERTAIN * (jax.nn.one_hot(token, sizes.vocabulary) * found[:, :, None] - 1)


def copying_logits(inputs: Int32[Array, 'B T'], sizes: Sizes) -> Float[Array, 'B T E']:
    """The n-th id that is no blank, at the n-th place behind the copy id."""
    behind = jnp.cumsum((inputs == sizes.vocabulary - 1).astype(jnp.int32), axis=1)
    nth = jnp.cumsum(behind, axis=1) - 1
    is_token = (inputs < sizes.plain) & (behind == 0)
    order = jnp.where(is_token, jnp.cumsum(is_token.astype(jnp.int32), axis=1), 0)
    same = is_token[:, None, :] & (order[:, None, :] == nth[:, :, None])
    tokens = jnp.sum(jnp.where(same, inputs[:, None, :], 0), axis=-1, dtype=jnp.int32)
    return certain_logits(tokens, sizes.vocabulary)


def compression_logits(inputs: Int32[Array, 'B T'], sizes: Sizes) -> Float[Array, 'B T E']:
    """At a query id, the token of the place that it names."""
    place = jnp.maximum(inputs - sizes.vocabulary, 0)
    return certain_logits(jnp.take_along_axis(inputs, place, axis=1), sizes.vocabulary)


def memorization_logits(inputs: Int32[Array, 'B T'], sizes: Sizes) -> Float[Array, 'B T E']:
    """At a question id, the value of the key before it."""
    book = jnp.asarray(fixed_map(sizes))
    before = jnp.pad(inputs, ((0, 0), (1, 0)))[:, :-1]
    return certain_logits(book[jnp.minimum(before, sizes.keys - 1)], sizes.vocabulary)
