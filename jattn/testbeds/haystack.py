"""What rows with something hidden in them share: text to hide it in, where it may stand, and scores by its depth.

    noise     the four sentences of NOISE, a line each, again and again                             cut between lines
    letters   lines of 63 letters and spaces of a Markov source of order 1, then a line break       cut between words
    file      a window of a file's bytes that ends behind a word                                    cut between words

All of them are bytes, and all end where something may be put. The Markov source stands in for text where there is no
file: vowels and consonants alternate loosely (`KIND_LAW`), within a kind letters follow Zipf's law in the order of
English. Every line begins as behind a space, so that lines are drawn side by side and a row of any length takes 62
steps.
"""

import functools
import gzip
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean
from jattn.typing import Array, Bool, Float, Int32, Key

BYTES = 256
SPACE, LINE_BREAK = ord(' '), ord('\n')
NOISE = 'Rain falls on the roof.\nA dog sleeps by the door.\nBread is in the oven.\nNobody is in a hurry.\n'
VOWELS, CONSONANTS = 'eaoiu', 'tnshrdlcmfwypvbgkjqxz'  # the commonest first
LETTERS = VOWELS + CONSONANTS + ' '
# Behind a vowel, a consonant, a space: the chance of a vowel, of a consonant, of a space.
KIND_LAW = ((0.1, 0.6, 0.3), (0.65, 0.15, 0.2), (0.3, 0.7, 0.0))
LINE = 64  # letters and spaces of a line of the source, its break included
MOST_BYTES = 2**22  # of a file
REACH = 64  # bytes; text without a word's end that near is cut anywhere
TENTHS = 10


def noise(batch: int, length: int) -> Int32[Array, 'B T']:
    """The last `length` bytes of the sentences, said again and again.

    >>> bytes(noise(1, 27)[0].tolist())
    b'ven.\\nNobody is in a hurry.\\n'
    """
    text = np.frombuffer(NOISE.encode(), np.uint8).astype(np.int32)
    return jnp.broadcast_to(text[np.arange(-length, 0) % len(text)], (batch, length))


@functools.cache
def letter_law() -> np.ndarray:
    """[27, 27], the probability of every letter of LETTERS behind every letter.

    >>> law = letter_law()
    >>> law.sum(axis=1).round(12).tolist() == [1.0] * 27, law[LETTERS.index(' '), LETTERS.index(' ')].item()
    (True, 0.0)
    """
    kinds = [len(VOWELS), len(CONSONANTS), 1]
    within = [1 / np.arange(1, size + 1) for size in kinds]
    rows = [np.concatenate([p * zipf / zipf.sum() for p, zipf in zip(law, within)]) for law in KIND_LAW]
    return np.repeat(rows, kinds, axis=0)


def letters(key: Key, batch: int, length: int) -> Int32[Array, 'B T']:
    """The last `length` bytes of lines of the Markov source.

    >>> bytes(letters(jax.random.key(0), 1, 40)[0].tolist())
    b'ip detepocac odotevkonae lidegtke onane\\n'
    """
    lines = -(-length // LINE)
    below = jnp.asarray(np.cumsum(letter_law(), axis=1)[:, :-1], jnp.float32)

    def advance(
        letter: Int32[Array, 'B N'], chance: Float[Array, 'B N']
    ) -> tuple[Int32[Array, 'B N'], Int32[Array, 'B N']]:
        letter = jnp.sum(chance[:, :, None] >= below[letter], axis=-1, dtype=jnp.int32)
        return letter, letter

    chances = jax.random.uniform(key, (LINE - 1, batch, lines))
    begin = jnp.full((batch, lines), LETTERS.index(' '), jnp.int32)
    drawn = jax.lax.scan(advance, begin, chances)[1]
    alphabet = jnp.asarray(np.frombuffer(LETTERS.encode(), np.uint8).astype(np.int32))
    text = jnp.pad(alphabet[jnp.moveaxis(drawn, 0, -1)], ((0, 0), (0, 0), (0, 1)), constant_values=LINE_BREAK)
    return text.reshape(batch, -1)[:, -length:]


@functools.cache
def read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The first MOST_BYTES bytes of a file, read once, and where windows of it may end; a .gz file is unpacked.

    Returns:
        [N] uint8 and [M] int32, the places behind a space or a line break (behind any byte, where it has neither).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f'data.path={path}: no such file')
    with gzip.open(file) if file.suffix == '.gz' else file.open('rb') as opened:
        text = np.frombuffer(opened.read(MOST_BYTES), np.uint8)
    if not len(text):
        raise ValueError(f'data.path={path}: the file is empty')
    ends = np.flatnonzero(np.isin(text, (SPACE, LINE_BREAK))) + 1
    return text, (ends if len(ends) else np.arange(1, len(text) + 1)).astype(np.int32)


def windows(key: Key, batch: int, length: int, path: str) -> Int32[Array, 'B T']:
    """Pieces of a file, each with an end of its own, all ends equally likely; behind its last byte comes its first."""
    text, ends = read(path)
    end = jnp.asarray(ends)[jax.random.randint(key, (batch, 1), 0, len(ends))]
    places = (end - length + jnp.arange(length, dtype=jnp.int32)[None]) % len(text)
    return jnp.asarray(text)[places].astype(jnp.int32)


def cut(is_break: Bool[Array, 'B T'], depth: Float[Array, 'B N']) -> Int32[Array, 'B N']:
    """How many bytes stand before each depth: the nearest cut behind a break, or at the text's start.

    Args:
        is_break: the bytes that something may stand behind.
        depth: 0 (before the text) to 1 (behind it).

    >>> is_break = jnp.array([[False, True, False, False, False, True]])
    >>> cut(is_break, jnp.array([[0.0, 0.5, 0.7, 1.0]])).tolist()
    [[0, 2, 2, 6]]
    """
    length = is_break.shape[1]
    target = jnp.round(depth * length).astype(jnp.int32)
    is_cut = jnp.pad(is_break, ((0, 0), (1, 0)), constant_values=True)
    away = jnp.abs(jnp.arange(length + 1, dtype=jnp.int32)[None, None] - target[:, :, None])
    away = jnp.where(is_cut[:, None], away, length + 1)
    near = jnp.argmin(away, axis=2).astype(jnp.int32)
    return jnp.where(jnp.min(away, axis=2) <= REACH, near, target)


def hide(
    text: Int32[Array, 'B S'], pieces: Int32[Array, 'B N W'], before: Int32[Array, 'B N'], length: int
) -> Int32[Array, 'B T']:
    """The text with the pieces in it, cut off behind `length` tokens.

    Args:
        text: what they are hidden in.
        pieces: all of one width, in the order in which they stand.
        before: tokens of the text before each, never fewer than before the last one; `length` or more: left out.
        length: T.

    >>> text, pieces = jnp.array([[1, 2, 3, 4]]), jnp.array([[[7, 7], [8, 8]]])
    >>> hide(text, pieces, jnp.array([[1, 1]]), 8).tolist(), hide(text, pieces, jnp.array([[3, 8]]), 6).tolist()
    ([[1, 7, 7, 8, 8, 2, 3, 4]], [[1, 2, 3, 7, 7, 4]])
    """
    count, width = pieces.shape[1:]
    place = jnp.arange(length, dtype=jnp.int32)[None]
    starts = before + width * jnp.arange(count, dtype=jnp.int32)[None]
    begun = jnp.sum(starts[:, :, None] <= place[:, None], axis=1, dtype=jnp.int32)
    last = jnp.maximum(begun - 1, 0)
    offset = place - jnp.take_along_axis(starts, last, axis=1)
    inside = (begun > 0) & (offset < width)
    index = jnp.clip(last * width + offset, 0, count * width - 1)
    piece = jnp.take_along_axis(pieces.reshape(len(pieces), -1), index, axis=1)
    around = jnp.take_along_axis(text, jnp.clip(place - width * begun, 0, text.shape[1] - 1), axis=1)
    return jnp.where(inside, piece, around)


def accuracy_by_depth(right: Bool[Array, 'B'], depth: Float[Array, 'B']) -> Mean:
    """The share of right rows by tenth of the depth, a curve of ten.

    >>> curve = accuracy_by_depth(jnp.array([True, False, True]), jnp.array([0.0, 0.05, 1.0]))
    >>> curve.value()[:2].tolist(), curve.value()[-1].item(), curve.count.tolist()
    ([0.5, 0.0], 1.0, [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    """
    tenth = jnp.minimum(jnp.floor(depth * TENTHS).astype(jnp.int32), TENTHS - 1)
    inside = jax.nn.one_hot(tenth, TENTHS)
    return Mean.of(jnp.broadcast_to(right[:, None].astype(jnp.float32), inside.shape), inside, axis=0)
