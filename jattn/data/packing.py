"""Packing: many documents as one stream of tokens, cut into rows; row i is a pure function of i.

Documents are laid one after another, each padded to a multiple of `align` (the largest `document_align` of the
model's mixers; 1: no padding). Row i is tokens [i T, i T + T) of that stream, and the next token of each as its target;
a row that begins inside a document counts its positions from 0, as a new document. The rows then go through Grain:
shuffle, slice by process, batch. The global batch does not depend on the number of processes, and a position is one
number.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from jattn.testbeds.task import Batch


class RowSource(Protocol):
    """Rows by number: a pure function of the number, so that any order, process and restart sees the same.

    Attributes:
        tokens: T, of a row.
    """

    tokens: int

    def __len__(self) -> int:
        """How many rows there are."""

    def __getitem__(self, row: int) -> Batch:
        """One row: a batch without its leading axis."""

    def fingerprint(self) -> str:
        """What a position counts in: other data, or another cut of them, have another one."""


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """A random-access source of packed rows.

    Attributes:
        stream: the tokens of all documents, without padding.
        starts: where each document starts in it, and its end: [documents + 1].
        tokens: T, of a row.
        align: documents start at multiples of it.

    >>> rows = PackedRows.of([b'abc', b'de'], tokens=4)
    >>> rows[0].inputs.tolist(), rows[0].segments.tolist(), rows[0].positions.tolist(), rows[0].mask.tolist()
    ([97, 98, 99, 100], [1, 1, 1, 2], [0, 1, 2, 0], [1.0, 1.0, 0.0, 1.0])
    """

    stream: np.ndarray
    starts: np.ndarray
    tokens: int
    align: int = 1

    @classmethod
    def of(cls, documents: Sequence[bytes | np.ndarray], tokens: int, align: int = 1) -> 'PackedRows':
        """Packs documents, bytes or arrays of ids; empty ones vanish."""
        if tokens % align:
            raise ValueError(f"data.tokens={tokens} must be a multiple of the mixers' document_align={align}")
        ids = [np.frombuffer(one, np.uint8) if isinstance(one, bytes) else one for one in documents if len(one)]
        starts = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return cls(np.concatenate(ids), starts, tokens, align)

    @property
    def padded_starts(self) -> np.ndarray:
        """Where each document starts in the padded stream, and the stream's end."""
        lengths = np.diff(self.starts)
        return np.concatenate([[0], np.cumsum(-(-lengths // self.align) * self.align)])

    def __len__(self) -> int:
        return int(-(-self.padded_starts[-1] // self.tokens))

    def __getitem__(self, row: int) -> Batch:
        padded = self.padded_starts
        at = row * self.tokens + np.arange(self.tokens + 1)
        document = np.minimum(np.searchsorted(padded, at, side='right') - 1, len(padded) - 2)
        offset = at - padded[document]
        real = offset < np.diff(self.starts)[document]
        token = self.stream[np.where(real, self.starts[document] + offset, 0)].astype(np.int32) * real
        begins = np.maximum(padded[document], at[0])
        same = (document[1:] == document[:-1]) & real[1:]
        return Batch(
            inputs=token[:-1],
            targets=np.where(same, token[1:], 0),
            mask=same.astype(np.float32),
            segments=np.where(real, document - document[0] + 1, 0)[:-1].astype(np.int32),
            positions=np.where(real, at - begins, 0)[:-1].astype(np.int32),
        )

    def fingerprint(self) -> str:
        """What a position counts in: the tokens and the way they are cut."""
        facts = json.dumps([self.tokens, self.align, self.starts.tolist()])
        return hashlib.sha256(facts.encode() + self.stream.tobytes()).hexdigest()[:16]


class BatchIterator(Iterator[Batch]):
    """Endless shuffled batches of this process's rows; `position` is the number of batches taken, and can be set."""

    def __init__(self, rows: RowSource, batch: int, seed: int, process: int = 0, processes: int = 1) -> None:
        if batch % processes:
            raise ValueError(f'training.batch={batch} must be a multiple of the number of processes={processes}')
        if len(rows) < batch:
            raise ValueError(
                f'the training split gives {len(rows)} rows of {rows.tokens} tokens: too few for training.batch={batch}'
            )
        # No threads: a row is microseconds of work, and threads only contend for the interpreter.
        self._iterator = (
            grain.MapDataset.source(rows)
            .shuffle(seed=seed)
            .repeat(None)[process::processes]
            .batch(batch // processes)
            .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            .__iter__()
        )
        self.fingerprint = hashlib.sha256(f'{rows.fingerprint()} {batch} {seed}'.encode()).hexdigest()[:16]

    def __next__(self) -> Batch:
        return next(self._iterator)

    @property
    def position(self) -> int:
        return self._iterator.get_state()['next_index']

    @position.setter
    def position(self, batches: int) -> None:
        self._iterator.set_state({'next_index': batches})
