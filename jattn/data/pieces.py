"""A file of text in pieces: bytes of any amount in the memory of one piece."""

import gzip
import pathlib
from collections.abc import Iterator


def read_pieces(path: str | pathlib.Path, size: int) -> Iterator[bytes]:
    """The bytes of a file, `size` at a time (the last piece may be shorter); a .gz file is unpacked on the way.

    Args:
        path: of the file.
        size: bytes of a piece.

    Raises:
        FileNotFoundError: there is no such file.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = pathlib.Path(file.name).write_bytes(b'abcde')
    ...     list(read_pieces(file.name, 2))
    [b'ab', b'cd', b'e']
    """
    if size < 1:
        raise ValueError(f'read_pieces: size={size} must be at least 1')
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    with gzip.open(path) if path.suffix == '.gz' else path.open('rb') as file:
        while piece := file.read(size):
            yield piece
