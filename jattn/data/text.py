"""Text as bytes: any file or folder, or, with nothing to download, the sources of Python's standard library.

The tokens are the 256 bytes. Train and validation documents are disjoint: a file goes to one side by a hash of its
relative path; a single file is cut, its end is the validation text.
"""

import dataclasses
import gzip
import hashlib
import math
import pathlib
import sysconfig
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.data.packing import BatchIterator, PackedRows
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.task import Batch
from jattn.typing import Array

TRAIN, VALIDATION = 'train', 'validation'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A byte-level corpus.

    Attributes:
        path: a file, or a folder whose files are the documents; .gz files are unpacked. None: the .py files of the
            running interpreter's standard library (about 30 MB).
        tokens: T, of a row.
        validation_fraction: of the files (of the bytes, for a single file).
        z_loss: weight of (log Z)^2 in the training loss.

    >>> TextConfig().output_size
    256
    """

    kind: ClassVar[str] = 'discrete'
    input_size: ClassVar[int] = 256
    output_size: ClassVar[int] = 256

    path: str | None = None
    tokens: int = 256
    validation_fraction: float = 0.05
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f'tokens={self.tokens} must be at least 2')
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f'validation_fraction={self.validation_fraction} must be between 0 and 1')

    def rows(self, split: str, align: int = 1) -> PackedRows:
        """The packed rows of a split.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: there is no text in it, or too little to split.
        """
        documents = self._documents()[split == VALIDATION]
        if not documents:
            raise ValueError(f'data.path={self.path}: no text for the {split} split (empty files do not count)')
        return PackedRows.of(documents, self.tokens, align)

    def train_batches(
        self, batch: int, seed: int, align: int = 1, process: int = 0, processes: int = 1
    ) -> BatchIterator:
        """Endless shuffled training batches of one process."""
        return BatchIterator(self.rows(TRAIN, align), batch, seed, process, processes)

    def eval_batches(
        self, batch: int, batches: int, align: int = 1, process: int = 0, processes: int = 1
    ) -> list[Batch]:
        """The same `batches` validation batches in every run, spread evenly over the text; this process's rows.

        A validation text of fewer rows is used whole; rows that fill up the last batch are masked.
        """
        rows = self.rows(VALIDATION, align)
        chosen = np.linspace(0, len(rows), min(batch * batches, len(rows)), endpoint=False).astype(int)
        picked = [rows[i] for i in chosen]
        blank = jax.tree.map(np.zeros_like, picked[0])
        picked += [blank] * (-len(picked) % batch)
        each = batch // processes
        starts = range(process * each, len(picked), batch)
        return [jax.tree.map(lambda *leaves: np.stack(leaves), *picked[at : at + each]) for at in starts]

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the next byte within its document, in nats (plus the z-loss)."""
        return cross_entropy(outputs, batch.targets, batch.mask, self.z_loss)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss in nats, bits_per_byte, accuracy."""
        loss = cross_entropy(outputs, batch.targets, batch.mask)
        hits = (jnp.argmax(outputs, axis=-1) == batch.targets).astype(jnp.float32)
        return {
            'loss': loss,
            'bits_per_byte': Mean(loss.total / math.log(2), loss.count),
            'accuracy': Mean.of(hits, batch.mask),
        }

    def facts(self) -> dict[str, float]:
        """Bits of a uniform guess."""
        return {'uniform_bits_per_byte': 8.0}

    def tiny(self) -> 'TextConfig':
        """A copy with short rows."""
        return dataclasses.replace(self, tokens=64)

    def _documents(self) -> tuple[list[bytes], list[bytes]]:
        """(train, validation) documents."""
        root = pathlib.Path(sysconfig.get_paths()['stdlib'] if self.path is None else self.path).expanduser()
        if not root.exists():
            raise FileNotFoundError(f'data.path={self.path}: no such file or folder')
        if root.is_file():
            text = _read(root)
            cut = round(len(text) * (1 - self.validation_fraction))
            return [text[:cut]] if cut else [], [text[cut:]] if text[cut:] else []
        pattern = '*.py' if self.path is None else '*'
        files = sorted(path for path in root.rglob(pattern) if path.is_file() and not _is_installed(path, root))
        sides: tuple[list[bytes], list[bytes]] = ([], [])
        for path in files:
            if text := _read(path):
                sides[self._is_validation(path.relative_to(root))].append(text)
        if len(files) > 1 and sides[0] and not sides[1]:
            sides[1].append(sides[0].pop())  # few files, none of them drawn
        return sides

    def _is_validation(self, path: pathlib.Path) -> bool:
        """By a hash of the path, so that a new file moves no other."""
        digest = hashlib.sha256(path.as_posix().encode()).digest()
        return int.from_bytes(digest[:4], 'big') < self.validation_fraction * 2**32


def _read(path: pathlib.Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == '.gz' else data


def _is_installed(path: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether a file of the standard library's folder is an installed package's or a cache's."""
    return bool({'site-packages', 'dist-packages', '__pycache__'} & set(path.relative_to(root).parts))
