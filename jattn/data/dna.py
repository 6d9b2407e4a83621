"""Nucleotides: the next base of a genome, or the class of a stretch of DNA.

The letters are A C G T and N, which stands for every other one; small letters count as capitals.

- `task='lm'`: a FASTA file. The first 80% of its bases are the training text, the rest is held out; each record is a
  document. Without a file the genome is synthetic, `make_genome`.
- `task='classify'`: a table `sequence <tab> label` with labels 0 and 1. A row is one sequence; the label stands at its
  last base, and nothing else is scored. Five folds, each with its share of every label; `fold` is held out. Without a
  file the sequences are synthetic, `make_labelled`.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jattn.data.corpus import TRAIN, Corpus, read_bytes
from jattn.data.markov import markov_bits
from jattn.data.packing import PackedRows
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.task import Batch
from jattn.typing import Array

LETTERS = b'ACGTN'
CODES = bytes(LETTERS.find(letter) if letter in b'ACGT' else 4 for letter in range(256))
MOTIFS = (b'TATAAAGGCCTA', b'GGGCGGGACTCC', b'CACGTGTTGACA', b'ATTTGCATGAAC')
TASKS = ('lm', 'classify')
TRAIN_SHARE, FOLDS = 0.8, 5
ORDERS = (0, 3, 5)  # of the Markov baselines


def encode(sequence: bytes) -> bytes:
    """Letters to tokens.

    >>> list(encode(b'ACgtnR'))
    [0, 1, 2, 3, 4, 4]
    """
    return sequence.upper().translate(CODES)


def make_genome(bases: int = 50_000) -> bytes:
    """A synthetic genome: uniform bases, and in every 48 of them one of four motifs of 12 at a random place.

    >>> len(make_genome()), any(motif in make_genome(480) for motif in MOTIFS)
    (50000, True)
    """
    draws = np.random.default_rng(0)
    genome = bytearray(LETTERS[i] for i in draws.integers(0, 4, bases))
    for start in range(0, bases - 47, 48):
        at = start + draws.integers(0, 37)
        genome[at : at + 12] = MOTIFS[draws.integers(0, len(MOTIFS))]
    return bytes(genome)


def make_labelled(count: int = 400, bases: int = 64) -> tuple[list[bytes], list[int]]:
    """Synthetic sequences and labels: uniform bases, and in every second one the first motif, label 1.

    >>> sequences, labels = make_labelled()
    >>> len(sequences), sum(labels), all(MOTIFS[0] in s for s, label in zip(sequences, labels) if label)
    (400, 200, True)
    """
    draws = np.random.default_rng(0)
    sequences = []
    for i in range(count):
        sequence = bytearray(LETTERS[i] for i in draws.integers(0, 4, bases))
        if i % 2:
            at = draws.integers(0, bases - 11)
            sequence[at : at + 12] = MOTIFS[0]
        sequences.append(bytes(sequence))
    return sequences, [i % 2 for i in range(count)]


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """A sequence a row, padded at its end to the longest; the label is the target of the last base.

    >>> rows = LabelledRows((b'AC', b'GGT'), (1, 0))
    >>> rows[0].inputs.tolist(), rows[0].targets.tolist(), rows[0].mask.tolist(), rows[0].segments.tolist()
    ([0, 1, 0], [0, 1, 0], [0.0, 1.0, 0.0], [1, 1, 0])
    """

    sequences: tuple[bytes, ...]
    labels: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """T, of the longest sequence."""
        return max(map(len, self.sequences))

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, row: int) -> Batch:
        bases = np.frombuffer(encode(self.sequences[row]), np.uint8).astype(np.int32)
        place = np.arange(self.tokens)
        is_last = place == len(bases) - 1
        return Batch(
            inputs=np.pad(bases, (0, self.tokens - len(bases))),
            targets=(self.labels[row] * is_last).astype(np.int32),
            mask=is_last.astype(np.float32),
            segments=(place < len(bases)).astype(np.int32),
        )

    def fingerprint(self) -> str:
        """What a position counts in."""
        facts = json.dumps([self.labels, [sequence.decode('latin1') for sequence in self.sequences]])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DnaConfig(Corpus):
    """Nucleotides as tokens.

    Attributes:
        path: a FASTA file ('lm') or a table of sequences and labels ('classify'); .gz is unpacked. None: synthetic.
        task: 'lm' or 'classify'.
        tokens: T, of a row of 'lm'; a row of 'classify' is a sequence.
        fold: of 'classify', 0 to 4: what is held out.

    >>> DnaConfig().output_size, DnaConfig(task='classify').output_size
    (5, 2)
    """

    kind: ClassVar[str] = 'discrete'
    input_size: ClassVar[int] = len(LETTERS)

    path: str | None = None
    task: str = 'lm'
    tokens: int = 256
    fold: int = 0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f'task={self.task!r} must be one of {", ".join(TASKS)}')
        if self.tokens < 2:
            raise ValueError(f'tokens={self.tokens} must be at least 2')
        if not 0 <= self.fold < FOLDS:
            raise ValueError(f'fold={self.fold} must lie in 0..{FOLDS - 1}')

    @property
    def output_size(self) -> int:
        return len(LETTERS) if self.task == 'lm' else 2

    def rows(self, split: str, align: int = 1) -> PackedRows | LabelledRows:
        """The rows of a split.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: it is no FASTA file, or no table of sequences and labels.
        """
        if self.task == 'classify':
            return self._labelled(split == TRAIN)
        return PackedRows.of(self._genome()[split != TRAIN], self.tokens, align)

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the next base, or of the label, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss in nats, accuracy; bits_per_base where the next base is predicted."""
        loss = self.loss(outputs, batch)
        hits = (jnp.argmax(outputs, axis=-1) == batch.targets).astype(jnp.float32)
        bits = {'bits_per_base': Mean(loss.total / math.log(2), loss.count)} if self.task == 'lm' else {}
        return {'loss': loss, 'accuracy': Mean.of(hits, batch.mask)} | bits

    def facts(self) -> dict[str, float]:
        """'lm': bits a base of a uniform guess among A C G T, and of Markov models of order 0, 3, 5 counted on the
        training text, over all of the held-out text. 'classify': the accuracy of the training labels' majority."""
        if self.task == 'classify':
            train, held_out = self._labelled(True), self._labelled(False)
            majority = int(2 * sum(train.labels) > len(train))
            return {'majority_accuracy': held_out.labels.count(majority) / len(held_out)}
        train, held_out = self._genome()
        bits = {k: markov_bits(train, held_out, k, len(LETTERS)) for k in ORDERS}
        return {'uniform_bits_per_base': 2.0} | {f'markov_{k}_bits_per_base': value for k, value in bits.items()}

    def tiny(self) -> 'DnaConfig':
        """A copy with short rows."""
        return dataclasses.replace(self, tokens=32)

    def _genome(self) -> tuple[list[bytes], list[bytes]]:
        """(train, held-out) documents of tokens."""
        documents = [make_genome()] if self.path is None else self._records()
        documents = [encode(document) for document in documents]
        ends = [0, *itertools.accumulate(map(len, documents))]
        cut = round(ends[-1] * TRAIN_SHARE)
        train = [document[: max(cut - start, 0)] for document, start in zip(documents, ends)]
        held_out = [document[max(cut - start, 0) :] for document, start in zip(documents, ends)]
        return [document for document in train if document], [document for document in held_out if document]

    def _labelled(self, train: bool) -> LabelledRows:
        """The sequences of the fold, or of all others. The n-th sequence of a label is in fold n mod 5."""
        sequences, labels = make_labelled() if self.path is None else self._table()
        seen, chosen = [0, 0], []
        for sequence, label in zip(sequences, labels):
            if (seen[label] % FOLDS != self.fold) == train:
                chosen.append((sequence, label))
            seen[label] += 1
        return LabelledRows(*map(tuple, zip(*chosen)))

    def _lines(self) -> list[bytes]:
        path = pathlib.Path(self.path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'data.path={self.path}: no such file')
        return [line.strip() for line in read_bytes(path).splitlines()]

    def _records(self) -> list[bytes]:
        """The sequences of a FASTA file."""
        lines = self._lines()
        if not lines or not lines[0].startswith(b'>'):
            raise ValueError(f"data.path={self.path}: is no FASTA file, its first line must begin with '>'")
        records: list[list[bytes]] = []
        for line in lines:
            if line.startswith(b'>'):
                records.append([])
            else:
                records[-1].append(line)
        found = [b''.join(record) for record in records if any(record)]
        if sum(map(len, found)) < FOLDS:
            raise ValueError(f'data.path={self.path}: there are no bases in it')
        return found

    def _table(self) -> tuple[Sequence[bytes], Sequence[int]]:
        """Sequences and labels of a table."""
        header, *lines = self._lines() or [b'']
        pairs = [line.split(b'\t') for line in lines if line]
        if header.split(b'\t') != [b'sequence', b'label'] or any(len(pair) != 2 or not pair[0] for pair in pairs):
            raise ValueError(f"data.path={self.path}: must be a table with the columns 'sequence' and 'label'")
        if any(label not in (b'0', b'1') for _, label in pairs):
            raise ValueError(f'data.path={self.path}: every label must be 0 or 1')
        labels = [int(label) for _, label in pairs]
        if min(labels.count(0), labels.count(1)) < FOLDS:
            raise ValueError(f'data.path={self.path}: each label needs at least {FOLDS} sequences, one a fold')
        return [sequence for sequence, _ in pairs], labels
