"""Text: any file or folder, or, with nothing to download, the sources of Python's standard library.

The tokens are the 256 bytes, or those of a published model, for which every document is tokenised whole. Train and
validation documents are disjoint: a file goes to one side by a hash of its relative path, or by its name where names
are given (whole books held out); a single file is cut, its end is the validation text.
"""

import dataclasses
import fnmatch
import hashlib
import math
import pathlib
import sysconfig
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jattn.data.corpus import VALIDATION, Corpus, read_bytes
from jattn.data.packing import PackedRows
from jattn.interop.pretrained import load_tokenizer
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.task import Batch
from jattn.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(Corpus):
    """A corpus of text.

    Attributes:
        path: a file, or a folder whose files are the documents; .gz files are unpacked. None: the .py files of the
            running interpreter's standard library (about 30 MB).
        tokenizer: the published model whose tokens are read, a name or path as for --pretrained; None: bytes.
        tokens: T, of a row.
        validation_fraction: of the files (of the bytes, for a single file).
        validation: names of the files of the folder that are the validation text: a name without its endings, or a
            pattern such as 'val*' for names or paths. None: drawn by `validation_fraction`.
        train: the same for the training text, where `validation` is given; None: all other files. A file that both
            name is validation text.
        z_loss: weight of (log Z)^2 in the training loss.

    >>> TextConfig().output_size
    256
    """

    kind: ClassVar[str] = 'discrete'

    path: str | None = None
    tokenizer: str | None = None
    tokens: int = 256
    validation_fraction: float = 0.05
    validation: tuple[str, ...] | None = None
    train: tuple[str, ...] | None = None
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f'tokens={self.tokens} must be at least 2')
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f'validation_fraction={self.validation_fraction} must be between 0 and 1')
        if self.train is not None and self.validation is None:
            raise ValueError(f'train={",".join(self.train)} needs validation: which files are held out')

    @property
    def input_size(self) -> int:
        return 256 if self.tokenizer is None else load_tokenizer(self.tokenizer).size

    @property
    def output_size(self) -> int:
        return self.input_size

    def rows(self, split: str, align: int = 1) -> PackedRows:
        """The packed rows of a split.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: there is no text in it, or too little to split.
        """
        documents = self._documents()[split == VALIDATION]
        if not documents:
            raise ValueError(f'data.path={self.path}: no text for the {split} split (empty files do not count)')
        if self.tokenizer is not None:
            words = load_tokenizer(self.tokenizer)
            documents = [np.array(words.encode(text.decode(errors='replace')), np.int32) for text in documents]
        return PackedRows.of(documents, self.tokens, align)

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the next token within its document, in nats (plus the z-loss)."""
        return cross_entropy(outputs, batch.targets, batch.mask, self.z_loss)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss in nats a token, accuracy, bits_per_byte (not where tokens are not made of bytes)."""
        loss = cross_entropy(outputs, batch.targets, batch.mask)
        hits = (jnp.argmax(outputs, axis=-1) == batch.targets).astype(jnp.float32)
        metrics = {'loss': loss, 'accuracy': Mean.of(hits, batch.mask)}
        lengths = None if self.tokenizer is None else load_tokenizer(self.tokenizer).byte_lengths()
        if self.tokenizer is None or lengths is not None:
            count = loss.count if lengths is None else jnp.sum(jnp.asarray(lengths)[batch.targets] * batch.mask)
            metrics['bits_per_byte'] = Mean(loss.total / math.log(2), count)
        return metrics

    def facts(self) -> dict[str, float]:
        """Bits of a uniform guess among bytes, nats of one among tokens."""
        return {'uniform_bits_per_byte': 8.0} if self.tokenizer is None else {'uniform': math.log(self.input_size)}

    def tiny(self) -> 'TextConfig':
        """A copy with short rows."""
        return dataclasses.replace(self, tokens=64)

    def _documents(self) -> tuple[list[bytes], list[bytes]]:
        """(train, validation) documents."""
        root = pathlib.Path(sysconfig.get_paths()['stdlib'] if self.path is None else self.path).expanduser()
        if not root.exists():
            raise FileNotFoundError(f'data.path={self.path}: no such file or folder')
        if root.is_file():
            if self.validation is not None:
                raise ValueError(
                    f'validation={",".join(self.validation)} names files of a folder, but data.path={root} is a file'
                )
            text = read_bytes(root)
            cut = round(len(text) * (1 - self.validation_fraction))
            return [text[:cut]] if cut else [], [text[cut:]] if text[cut:] else []
        pattern = '*.py' if self.path is None else '*'
        files = sorted(path for path in root.rglob(pattern) if path.is_file() and not _is_installed(path, root))
        if self.validation is not None:
            return self._named(files, root)
        sides: tuple[list[bytes], list[bytes]] = ([], [])
        for path in files:
            if text := read_bytes(path):
                sides[self._is_validation(path.relative_to(root))].append(text)
        if len(files) > 1 and sides[0] and not sides[1]:
            sides[1].append(sides[0].pop())  # few files, none of them drawn
        return sides

    def _named(self, files: list[pathlib.Path], root: pathlib.Path) -> tuple[list[bytes], list[bytes]]:
        """(train, validation) documents, by the names that are given."""
        held_out = self._select(files, root, 'validation', self.validation)
        rest = files if self.train is None else self._select(files, root, 'train', self.train)
        sides = ([path for path in rest if path not in held_out], held_out)
        return tuple([text for path in side if (text := read_bytes(path))] for side in sides)

    def _select(
        self, files: list[pathlib.Path], root: pathlib.Path, field: str, names: tuple[str, ...]
    ) -> list[pathlib.Path]:
        """The files that one of the names means; a name that means none is an error."""
        chosen = set()
        for name in names:
            found = {path for path in files if _is_called(path.relative_to(root), name)}
            if not found:
                place = 'None, the standard library: give the folder' if self.path is None else self.path
                raise ValueError(f'data.{field}={name} matches no file of data.path={place}')
            chosen |= found
        return sorted(chosen)

    def _is_validation(self, path: pathlib.Path) -> bool:
        """By a hash of the path, so that a new file moves no other."""
        digest = hashlib.sha256(path.as_posix().encode()).digest()
        return int.from_bytes(digest[:4], 'big') < self.validation_fraction * 2**32


def _is_called(path: pathlib.PurePath, name: str) -> bool:
    """Whether a name or pattern means a file: its name, whole or without its endings, or its path in the folder.

    >>> path = pathlib.PurePath('novels/emma.txt.gz')
    >>> [_is_called(path, name) for name in ('emma', 'emma.txt.gz', 'em*', 'novels/*', 'emm')]
    [True, True, True, True, False]
    """
    forms = (path.name, path.name.partition('.')[0], path.as_posix())
    return any(fnmatch.fnmatchcase(form, name) for form in forms)


def _is_installed(path: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether a file of the standard library's folder is an installed package's or a cache's."""
    return bool({'site-packages', 'dist-packages', '__pycache__'} & set(path.relative_to(root).parts))
