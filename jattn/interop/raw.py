"""A tensor of a file from its bytes, for the readers of formats that keep tensors as they lie in memory."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from jattn.config import ConfigError


def tensor(
    told: str, data: bytes | memoryview | np.memmap, known: Mapping[Any, DTypeLike], dtype: Any, shape: Sequence[int]
) -> np.ndarray:
    """A view of the bytes.

    Args:
        told: file and tensor, for errors.
        data: the bytes, little endian, rows first.
        known: the format's names of dtypes.
        dtype: one of them.
        shape: of the tensor.

    Raises:
        ConfigError: the dtype is not known, or the bytes are not as many as the shape needs.

    >>> tensor('a.bin: x', bytes([1, 0, 2, 0]), {'I16': np.int16}, 'I16', (2, 1)).tolist()
    [[1], [2]]
    """
    if dtype not in known:
        raise ConfigError(f'{told} has dtype {dtype}, not one of {", ".join(map(str, known))}')
    size, shape = memoryview(data).nbytes, tuple(shape)
    if size != math.prod(shape) * np.dtype(known[dtype]).itemsize:
        raise ConfigError(f'{told} of shape {shape} has {size} bytes')
    return np.frombuffer(data, known[dtype]).reshape(shape)
