"""The safetensors format, both ways: arrays by name in one file, memory-mapped, nothing executed.

    8 bytes: N, little endian | N bytes of JSON: name -> dtype, shape, data_offsets | the arrays, one behind another

The published package cannot give bfloat16 to numpy; the format is short, so this reads and writes it directly.
"""

import collections
import json
import pathlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from jattn.config import ConfigError
from jattn.interop.raw import tensor

DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'F8_E4M3': ml_dtypes.float8_e4m3fn,
    'F8_E5M2': ml_dtypes.float8_e5m2,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
}
METADATA = '__metadata__'
LARGEST_HEADER = 100_000_000  # bytes, as the published package has it: a file that says more is none


class SafetensorsFile(Mapping[str, np.ndarray]):
    """The arrays of a file by name; one is read from the disk when it is asked for.

    Raises:
        ConfigError: the file is none of this format, or is cut short.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        size = self.path.stat().st_size
        with self.path.open('rb') as file:
            start = file.read(9)
            length = int.from_bytes(start[:8], 'little')
            if start[8:] != b'{' or not 2 <= length <= LARGEST_HEADER:
                raise ConfigError(f'{path}: not a safetensors file (it begins with {start!r})')
            if 8 + length > size:
                raise ConfigError(f'{path}: cut short: a header of {length} bytes in a file of {size}')
            file.seek(8)
            try:
                self._header = json.loads(file.read(length))
                self._header.pop(METADATA, None)
                needed = 8 + length + max((entry['data_offsets'][1] for entry in self._header.values()), default=0)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ConfigError(f'{path}: not a safetensors file (its header cannot be read: {error!r})') from error
        self._start = 8 + length
        if needed > size:
            raise ConfigError(f'{path}: cut short: its arrays need {needed} bytes, the file has {size}')

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._header[name]
        first, last = entry['data_offsets']
        place = dict(offset=self._start + first, shape=(last - first,))
        data = np.memmap(self.path, np.uint8, 'r', **place) if last > first else b''
        return tensor(f'{self.path}: {name}', data, DTYPES, entry['dtype'], entry['shape'])

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)


def read(folder: str | pathlib.Path) -> Mapping[str, np.ndarray]:
    """The arrays of a folder: `model.safetensors`, or the parts that `model.safetensors.index.json` lists.

    Raises:
        FileNotFoundError: there is neither, or a part is missing.
        ConfigError: as `SafetensorsFile`.
    """
    folder = pathlib.Path(folder)
    index = folder / 'model.safetensors.index.json'
    if not index.is_file():
        path = folder / 'model.safetensors'
        if not path.is_file():
            raise FileNotFoundError(f'{folder}: no model.safetensors (other formats of weights are not read)')
        return SafetensorsFile(path)
    try:
        names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f'{index}: lists no files of weights ({error!r})') from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f'{folder}: {index.name} lists {", ".join(missing)}, not there')
    return collections.ChainMap(*(SafetensorsFile(folder / name) for name in names))


def write(path: str | pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name; the file appears whole or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(folder + '/a.safetensors', {'x': np.arange(3.0)})
    ...     SafetensorsFile(folder + '/a.safetensors')['x'].tolist()
    [0.0, 1.0, 2.0]
    """
    path, header, at = pathlib.Path(path), {METADATA: {'format': 'pt'}}, 0
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    for name, array in tensors.items():
        header[name] = {
            'dtype': names[array.dtype],
            'shape': list(array.shape),
            'data_offsets': [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)  # the arrays start aligned
    draft = path.with_name(f'.{path.name}')
    with draft.open('wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
    draft.rename(path)
