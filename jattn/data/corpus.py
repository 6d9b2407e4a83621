"""What a corpus is: a frozen config that gives the rows of a split by number, and scores outputs, as a testbed does.

The rows of the train split go through Grain (`packing.BatchIterator`): endless, shuffled, resumable by one number. The
held-out rows are the same in every run: `batches` batches, spread evenly over the split, or all of it where it has no
more rows.
"""

import abc
import dataclasses
import gzip
import pathlib
from typing import ClassVar

import jax
import numpy as np

from jattn.data.packing import BatchIterator, RowSource
from jattn.nn.losses import Mean
from jattn.testbeds.task import Batch
from jattn.typing import Array

TRAIN, VALIDATION, TEST = 'train', 'validation', 'test'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus(abc.ABC):
    """Data on a disk. `kind` says what the model reads and writes, 'discrete' or 'continuous', as for a `Task`."""

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def input_size(self) -> int:
        """Vocabulary (discrete) or features of an input (continuous)."""

    @property
    @abc.abstractmethod
    def output_size(self) -> int:
        """Vocabulary (discrete) or features of a target (continuous)."""

    @property
    def held_out(self) -> str:
        """The split that evaluation reads."""
        return VALIDATION

    @abc.abstractmethod
    def rows(self, split: str, align: int = 1) -> RowSource:
        """The rows of a split; documents of a row start at multiples of `align`."""

    def train_batches(
        self, batch: int, seed: int, align: int = 1, process: int = 0, processes: int = 1
    ) -> BatchIterator:
        """Endless shuffled training batches of one process."""
        return BatchIterator(self.rows(TRAIN, align), batch, seed, process, processes)

    def eval_batches(
        self, batch: int, batches: int, align: int = 1, process: int = 0, processes: int = 1
    ) -> list[Batch]:
        """The same `batches` held-out batches in every run, spread evenly over the split; this process's rows.

        A split of fewer rows is used whole; rows that fill up the last batch are masked.
        """
        rows = self.rows(self.held_out, align)
        chosen = np.linspace(0, len(rows), min(batch * batches, len(rows)), endpoint=False).astype(int)
        picked = [rows[i] for i in chosen]
        blank = jax.tree.map(np.zeros_like, picked[0])
        picked += [blank] * (-len(picked) % batch)
        each = batch // processes
        starts = range(process * each, len(picked), batch)
        return [jax.tree.map(lambda *leaves: np.stack(leaves), *picked[at : at + each]) for at in starts]

    @abc.abstractmethod
    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """The training loss of outputs [B, T, output_size]."""

    @abc.abstractmethod
    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """What evaluation reports, as sums and counts; `loss` among them."""

    @abc.abstractmethod
    def facts(self) -> dict[str, float]:
        """Numbers to read a score by, exact on the held-out split; may read the disk."""

    @abc.abstractmethod
    def tiny(self) -> 'Corpus':
        """A copy with short rows."""


def read_bytes(path: pathlib.Path) -> bytes:
    """A file's content; .gz files are unpacked."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == '.gz' else data
