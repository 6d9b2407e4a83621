"""Corpora of labelled rows: a series, a sentence or an image, and the one class that it has.

A batch has `targets` and `mask` [B]; rows of several lengths are padded at their end with zeros of segment 0. The model
must give one output a row: an encoder that ends in a pooler, or a vision encoder.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import jax.numpy as jnp
import numpy as np

from jattn.data.corpus import TEST, TRAIN, VALIDATION, Corpus
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.task import Batch
from jattn.typing import Array, Float, Int32


@dataclasses.dataclass(frozen=True)
class ClassRows:
    """Labelled rows held as arrays; a random-access source.

    Attributes:
        inputs: tokens [N, T] int32, vectors [N, T, F] or images [N, Y, X, F] float32.
        labels: [N] int32.
        lengths: [N], how many tokens of a row are real; None: all.

    >>> rows = ClassRows.of([np.array([5, 6]), np.array([7, 8, 9, 10])], [1, 0], tokens=3)
    >>> rows[0].inputs.tolist(), int(rows[0].targets), rows[0].segments.tolist(), rows[1].inputs.tolist()
    ([5, 6, 0], 1, [1, 1, 0], [7, 8, 9])
    """

    inputs: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray | None = None

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], labels: Sequence[int], tokens: int) -> Self:
        """Sequences of any lengths, cut to `tokens` or padded."""
        inputs = np.zeros((len(sequences), tokens, *sequences[0].shape[1:]), sequences[0].dtype)
        for row, sequence in zip(inputs, sequences):
            row[: len(sequence)] = sequence[:tokens]
        lengths = np.array([min(len(sequence), tokens) for sequence in sequences], np.int32)
        return cls(inputs, np.array(labels, np.int32), lengths)

    @property
    def tokens(self) -> int:
        """T; of images their height."""
        return self.inputs.shape[1]

    def pick(self, chosen: np.ndarray) -> Self:
        """The rows of these numbers, or where a mask [N] is true."""
        lengths = None if self.lengths is None else self.lengths[chosen]
        return type(self)(self.inputs[chosen], self.labels[chosen], lengths)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Batch:
        real = None if self.lengths is None else (np.arange(self.tokens) < self.lengths[row]).astype(np.int32)
        return Batch(inputs=self.inputs[row], targets=self.labels[row], mask=np.float32(1), segments=real)

    def fingerprint(self) -> str:
        """What a position counts in."""
        lengths = None if self.lengths is None else self.lengths.tolist()
        facts = json.dumps([self.inputs.shape, self.labels.tolist(), lengths])
        return hashlib.sha256(facts.encode() + self.inputs.tobytes()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCorpus(Corpus):
    """The base of labelled sets.

    Attributes:
        origin: the set's name and where it comes from, for who lacks it. A class constant.
        splits: what evaluation may read. A class constant.
        path: of the set; None: rows of the same shapes and classes, drawn from a fixed seed.
        split: what evaluation reads.
    """

    origin: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = (VALIDATION, TEST)

    path: str | None = None
    split: str = TEST

    def __post_init__(self) -> None:
        if self.split not in self.splits:
            raise ValueError(f'split={self.split!r} must be one of {", ".join(self.splits)}')

    @property
    @abc.abstractmethod
    def classes(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def read(self) -> dict[str, ClassRows]:
        """The rows of every split, from the disk."""

    @abc.abstractmethod
    def make(self) -> dict[str, ClassRows]:
        """Synthetic rows of every split."""

    @property
    def output_size(self) -> int:
        return self.classes

    @property
    def held_out(self) -> str:
        return self.split

    def rows(self, split: str, align: int = 1) -> ClassRows:
        """The rows of a split; a row is one document from its first token, so `align` asks nothing of it.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: it holds something else, or nothing for the split.
        """
        rows = _every_split(self)[split]
        if not len(rows):
            raise ValueError(f'data.path={self.path}: has no rows for the {split} split')
        if rows.labels.min() < 0 or rows.labels.max() >= self.classes:
            raise ValueError(f'data.path={self.path}: every label must lie in 0..{self.classes - 1}')
        return rows

    def loss(self, outputs: Float[Array, 'B E'], batch: Batch) -> Mean:
        """Cross-entropy of the class, in nats."""
        self._check(outputs)
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Float[Array, 'B E'], batch: Batch) -> dict[str, Mean]:
        """loss in nats, accuracy."""
        return {'loss': self.loss(outputs, batch), 'accuracy': Mean.of(hits(outputs, batch.targets), batch.mask)}

    def facts(self) -> dict[str, float]:
        """The accuracy, on the held-out rows, of the class that most training rows have."""
        most = np.bincount(self.rows(TRAIN).labels).argmax()
        return {'majority_accuracy': float(np.mean(self.rows(self.split).labels == most))}

    def tiny(self) -> Self:
        """The same: a subclass that can be shorter says how."""
        return self

    def find(self, *names: str) -> pathlib.Path:
        """The path itself, or the first file of these names in the folder that it is.

        Raises:
            FileNotFoundError: there is none.
        """
        root = pathlib.Path(self.path).expanduser()
        places = [root / name for name in names] or [root]
        for place in places:
            if place.is_file():
                return place
        what = f'no file {" or ".join(names)} in it' if names else 'no such file'
        raise FileNotFoundError(f'data.path={self.path}: {what}; needed is {self.origin}')

    def arrays(self, path: pathlib.Path, *names: str) -> list[np.ndarray]:
        """The arrays of these names of an .npz file.

        Raises:
            ValueError: it is none, or lacks one.
        """
        try:
            with np.load(path) as file:
                return [file[name] for name in names]
        except (KeyError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f'data.path={self.path}: must be an .npz file with {", ".join(names)}') from error

    def _check(self, outputs: Array) -> None:
        if outputs.ndim != 2:
            raise ValueError(
                f'{type(self).__name__} has a class a row, but the model has outputs of shape {outputs.shape}: give it '
                'an end with a pooler, as --set model=encoder has'
            )


@functools.lru_cache(maxsize=4)
def _every_split(corpus: ClassCorpus) -> dict[str, ClassRows]:
    """Training, evaluation and facts of one set read it once."""
    return corpus.make() if corpus.path is None else corpus.read()


def hits(outputs: Float[Array, '*B E'], targets: Int32[Array, '*B']) -> Float[Array, '*B']:
    """1 where the largest output is the target's."""
    return (jnp.argmax(outputs, axis=-1) == targets).astype(jnp.float32)


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many earlier rows have a row's class.

    >>> rank_in_class(np.array([3, 5, 3, 3, 5])).tolist()
    [0, 0, 1, 2, 1]
    """
    ranks = np.zeros(len(labels), int)
    for label in np.unique(labels):
        of_class = labels == label
        ranks[of_class] = np.arange(of_class.sum())
    return ranks


def cut(rows: ClassRows, place: np.ndarray, borders: Mapping[str, tuple[float, float]]) -> dict[str, ClassRows]:
    """Splits by a number of each row: split -> the rows whose number lies in [first, last).

    >>> rows = ClassRows(np.zeros((4, 2, 1)), np.arange(4))
    >>> [own.labels.tolist() for own in cut(rows, np.arange(4), {'train': (0, 3), 'test': (3, 4)}).values()]
    [[0, 1, 2], [3]]
    """
    return {split: rows.pick((first <= place) & (place < last)) for split, (first, last) in borders.items()}
