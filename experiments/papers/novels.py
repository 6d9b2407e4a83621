"""Windows of text for the small language models of several papers: novels, or, at size tiny, what ships with Python."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np

from experiments.configs import lm_books
from experiments.papers.contract import ClaimContext
from jattn.data import Corpus, TextConfig
from jattn.nn.losses import Mean
from jattn.testbeds import Batch
from jattn.testbeds.landmarked import with_landmarks
from jattn.typing import Array

SHIPPED = pathlib.Path(json.__file__).parent  # a package of a few files
LANDMARK = 256  # the token behind the bytes


@dataclasses.dataclass(frozen=True)
class Rows:
    """All rows as one batch of arrays."""

    batch: Batch
    tokens: int

    def __len__(self) -> int:
        return len(self.batch.targets)

    def __getitem__(self, row: int) -> Batch:
        return jax.tree.map(lambda leaf: leaf[row], self.batch)

    def fingerprint(self) -> str:
        """What a position counts in."""
        arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(self.batch)]
        return hashlib.sha256(b''.join(arrays)).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows(Corpus):
    """Windows of a text.

    Attributes:
        text: the bytes.
        tokens: T, bytes of a row.
        block: tokens of a block, its landmark included; None: no landmarks.
        held_out_bytes: the beginning of the held-out text that is scored.
    """

    kind: ClassVar[str] = 'discrete'
    input_size: ClassVar[int] = LANDMARK + 1
    output_size: ClassVar[int] = 256

    text: TextConfig
    tokens: int
    block: int | None = None
    held_out_bytes: int

    def rows(self, split: str, align: int = 1) -> Rows:
        del align
        stream = self.text.rows(split).stream
        if split == self.held_out:
            stream = stream[: self.held_out_bytes + 1]
        count = (len(stream) - 1) // self.tokens
        inputs, targets = (
            stream[start : start + count * self.tokens].reshape(count, -1).astype(np.int32) for start in (0, 1)
        )
        batch = Batch(inputs, targets, np.ones(targets.shape, np.float32))
        if self.block is not None:
            batch = jax.device_get(with_landmarks(batch, self.block, LANDMARK))
        return Rows(batch, self.tokens)

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        return self.text.loss(outputs, batch)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        return self.text.metrics(outputs, batch)

    def facts(self) -> dict[str, float]:
        return self.text.facts()

    def tiny(self) -> 'Windows':
        return dataclasses.replace(self, tokens=64)


def windows(context: ClaimContext, tokens: int, held_out_bytes: int, train: Sequence[str] | None = None) -> Windows:
    """The novels of DATA_DIR/books in rows of `tokens` bytes; Pride and Prejudice is held out.

    Args:
        context: whose size 'tiny' reads a package of the standard library instead.
        tokens: T.
        held_out_bytes: the beginning of the held-out text that is scored.
        train: titles to learn from; None: the nine of `lm_books`.
    """
    if context.size == 'tiny':
        text = TextConfig(path=str(SHIPPED), validation_fraction=0.25)
    else:
        base = lm_books.config('small').data
        titles = base.train if train is None else tuple(train)
        text = dataclasses.replace(base, path=context.data('books'), train=titles)
    return Windows(text=text, tokens=tokens, held_out_bytes=held_out_bytes)


def letter(byte: int) -> str:
    """A byte as one sign of a picture's axis.

    >>> letter(97) + letter(32)
    'a·'
    """
    return chr(byte) if 32 < byte < 127 else '·'
