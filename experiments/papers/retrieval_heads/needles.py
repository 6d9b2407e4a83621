"""Needles in the text of a book: a sentence that no book has, somewhere in it, and its beginning again as the question.

    book ... The best thing to do in Oslo is to hide a hollow teapot near the library. ... book
    The best thing to do in Oslo is to         answer:  hide a hollow teapot near the library

Rows are tokens put together from pieces, all of one length, with answers of one length; the answer is teacher-forced.
"""

import itertools
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import struct

from experiments.papers.contract import ClaimContext
from experiments.papers.real_model import Real
from jattn.data.corpus import read_bytes
from jattn.typing import Array, Bool, Int32
from jattn.understanding.retrieval import RetrievalScores, score_retrieval

CITIES = ('Lisbon', 'Oslo', 'Cairo', 'Lima', 'Dublin', 'Vienna', 'Boston', 'Geneva')
VERBS = ('paint', 'carry', 'count', 'hide', 'draw', 'wash', 'lift', 'watch')
ADJECTIVES = ('purple', 'wooden', 'golden', 'frozen', 'broken', 'yellow', 'silver', 'tiny')
NOUNS = ('piano', 'ladder', 'bottle', 'candle', 'turtle', 'basket', 'rocket', 'mirror')
PLACES = ('near the library', 'behind the station', 'under the bridge', 'beside the river')
QUESTION = ' The best thing to do in {} is to'


@struct.dataclass
class Needles:
    """Rows with a needle each.

    Attributes:
        tokens: [B, T], the answers at their ends.
        needle: [B, T], where the sentence's answer stands in the book.
        answer: how many tokens an answer has.
    """

    tokens: Int32[Array, 'B T']
    needle: Bool[Array, 'B T']
    answer: int = struct.field(pytree_node=False)

    @property
    def answers(self) -> Bool[Array, 'B T']:
        """Where the answers stand at the end."""
        at = jnp.arange(self.tokens.shape[1])[None] >= self.tokens.shape[1] - self.answer
        return jnp.broadcast_to(at, self.tokens.shape)


def draw(encode: Callable[[str], list[int]], book: list[int], rows: int, tokens: int, seed: int) -> Needles:
    """Rows with evenly spread depths and windows of the book drawn at random.

    Args:
        encode: of the model.
        book: its tokens.
        rows: B.
        tokens: T, of a row.
        seed: of everything random.

    Raises:
        ValueError: a row has no room for a needle, its question and its answer.
    """
    generator = np.random.default_rng(seed)
    sentences = _of_one_length(encode, generator, rows)
    built, marks = [], []
    for depth, (city, said) in zip(np.linspace(0.05, 0.95, rows), sentences):
        question, answer = encode(QUESTION.format(city)), encode(said)
        room = tokens - 2 * len(question) - 2 * len(answer) - 1
        if room < 1:
            raise ValueError(f'needles: tokens={tokens} leaves no room beside a needle and its question')
        start = int(generator.integers(0, len(book) - room))
        before = round(depth * room)
        window = book[start : start + room]
        fact = [*question, *answer, *encode('.')]
        row = [*window[:before], *fact, *window[before:], *question, *answer]
        row = row[len(row) - tokens :]
        mark = np.zeros(tokens, bool)
        first = tokens - len(answer) - len(question) - len(window[before:]) - len(fact) + len(question)
        mark[first : first + len(answer)] = True
        built.append(row)
        marks.append(mark)
    return Needles(jnp.array(built, jnp.int32), jnp.array(np.stack(marks)), len(answer))


def read_book(encode: Callable[[str], list[int]], path: str | None, characters: int = 200_000) -> list[int]:
    """Tokens of a novel behind its first pages, lines unwrapped; None: sentences of our own, again and again."""
    if path is None:
        return encode('It rained all day, and nobody came to the door. The road was empty. ' * 40)
    file = pathlib.Path(path) / 'sherlock_holmes.txt.gz'
    text = read_bytes(file).decode(errors='replace')[10_000 : 10_000 + characters]
    return encode(' '.join(text.split()))


def find_heads(context: ClaimContext, real: Real, rows: int, tokens: int) -> tuple[Needles, RetrievalScores]:
    """Needles in a book, and the retrieval scores that a model's heads have on them; all 0 where no answer is right."""
    drawn = draw(real.encode, read_book(real.encode, context.data('books')), rows, tokens, seed=0)
    scores = score_retrieval(real.model, real.params, drawn.tokens, drawn.needle, drawn.answers)
    if not bool(jnp.any(jnp.isfinite(scores.scores))):  # size tiny
        scores = scores.replace(scores=jnp.zeros_like(scores.scores))
    return drawn, scores


def _of_one_length(
    encode: Callable[[str], list[int]], generator: np.random.Generator, rows: int
) -> list[tuple[str, str]]:
    """(city, what to do there) with equally many tokens: the commonest number."""
    every = list(itertools.product(CITIES, VERBS, ADJECTIVES, NOUNS, PLACES))
    drawn = [every[n] for n in generator.permutation(len(every))[: 20 * rows]]
    said = [(city, f' {verb} a {kind} {thing} {place}') for city, verb, kind, thing, place in drawn]
    lengths = [len(encode(text)) for _, text in said]
    most = max(set(lengths), key=lengths.count)
    return [one for one, length in zip(said, lengths) if length == most][:rows]
