"""CTranslate2 files (faster-whisper's): their tensors by Hugging Face's names, and the config that they imply.

    config, tensors = read('model.bin')

    u32 6 | what it is | u32 revision | u32 count | count x variable | u32 count | count x (alias, variable)
    variable: name | u8 rank | u32 sizes | u8 dtype | u32 bytes | data           a name: u16 length | text | zero

All little endian. Whisper only. Queries, keys and values are one tensor there, and the zero bias of the keys stands in
the file, which Hugging Face's model does not have; the names of its parts are put back here.
"""

import pathlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jattn.config import ConfigError
from jattn.interop.raw import tensor

VERSION, SPEC = 6, 'WhisperSpec'
DTYPES = dict(enumerate((np.float32, np.int8, np.int16, np.int32, np.float16, ml_dtypes.bfloat16)))
# Scalars of the file that the family takes for granted; 3 is the exact gelu.
GRANTED = {
    'decoder/activation': 3,
    'decoder/alibi': 0,
    'decoder/pre_norm': 1,
    'decoder/scale_embeddings': 0,
    'decoder/start_from_zero_embedding': 0,
}
# Their names of a layer's parts -> Hugging Face's; several where one tensor is cut, in order.
LAYER = {
    'self_attention/layer_norm': ('self_attn_layer_norm',),
    'self_attention/linear_0': ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
    'self_attention/linear_1': ('self_attn.out_proj',),
    'attention/layer_norm': ('encoder_attn_layer_norm',),
    'attention/linear_0': ('encoder_attn.q_proj',),
    'attention/linear_1': ('encoder_attn.k_proj', 'encoder_attn.v_proj'),
    'attention/linear_2': ('encoder_attn.out_proj',),
    'ffn/layer_norm': ('final_layer_norm',),
    'ffn/linear_0': ('fc1',),
    'ffn/linear_1': ('fc2',),
}
WHOLE = {
    'position_encodings/encodings': 'embed_positions.weight',
    'embeddings/weight': 'embed_tokens.weight',
    'layer_norm/gamma': 'layer_norm.weight',
    'layer_norm/beta': 'layer_norm.bias',
}
ENDS = {'gamma': 'weight', 'beta': 'bias'}


class CTranslate2File(Mapping[str, np.ndarray]):
    """The variables of a file by its own names, memory-mapped, and what the file is (`spec`, `aliases`).

    Raises:
        ConfigError: the file is none of this format, of another version, or is cut short.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path, self._places = pathlib.Path(path), {}
        with self.path.open('rb') as file:
            start = file.read(12)
        if len(start) < 12 or start[:4] != struct.pack('<I', VERSION):
            raise ConfigError(f'{path}: not a CTranslate2 file of version {VERSION} (it begins with {start!r})')
        self._data, self._at = memoryview(np.memmap(self.path, np.uint8, 'r')), 4
        try:
            self.spec, self.revision = self._string(), self._number('I')
            for _ in range(self._number('I')):
                name, rank = self._string(), self._number('B')
                shape = tuple(self._number('I') for _ in range(rank))
                dtype, size = self._number('B'), self._number('I')
                self._places[name] = (shape, dtype, self._bytes(size))
            self.aliases = {self._string(): self._string() for _ in range(self._number('I'))}
        except (struct.error, ValueError) as error:
            raise ConfigError(f'{path}: damaged or cut short ({error})') from error

    def __getitem__(self, name: str) -> np.ndarray:
        shape, number, data = self._places[name]
        return tensor(f'{self.path}: {name}', data, DTYPES, number, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _number(self, kind: str) -> int:
        return struct.unpack('<' + kind, self._bytes(struct.calcsize(kind)))[0]

    def _string(self) -> str:
        return str(self._bytes(self._number('H')), 'utf-8').removesuffix('\0')

    def _bytes(self, size: int) -> memoryview:
        data = self._data[self._at : self._at + size]
        if len(data) < size:
            raise ValueError(f'{size} bytes are needed at {self._at}, there are {len(data)}')
        self._at += size
        return data


def read(path: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A Whisper's config and tensors, as Hugging Face names them.

    Raises:
        ConfigError: as `CTranslate2File`; a model of another kind, with other choices, or with a bias of its keys.
    """
    file = CTranslate2File(path)
    if file.spec != SPEC:
        raise ConfigError(f'{path}: spec {file.spec!r} is not read from CTranslate2; there is {SPEC!r}')
    for name, value in GRANTED.items():
        if name in file and file[name] != value:
            raise ConfigError(f'{path}: {name}={file[name]} must be {value}')
    tensors = {}
    for name in file:
        if file[name].ndim:  # the others are choices
            tensors |= _named(name, file[name], path)
    return _config(file), tensors


def _config(file: CTranslate2File) -> dict[str, Any]:
    """What the file's scalars and shapes say."""

    def need(name: str) -> np.ndarray:
        if name not in file:
            raise ConfigError(f'{file.path}: lacks {name}')
        return file[name]

    config = {'model_type': 'whisper', 'tie_word_embeddings': 'decoder/projection/weight' in file.aliases}
    config['num_mel_bins'] = need('encoder/conv1/weight').shape[1]
    config['vocab_size'], config['d_model'] = need('decoder/embeddings/weight').shape
    for side, positions in (('encoder', 'max_source_positions'), ('decoder', 'max_target_positions')):
        config[f'{side}_layers'] = len({found[0] for name in file if (found := re.match(rf'{side}/layer_\d+', name))})
        config[f'{side}_attention_heads'] = int(need(f'{side}/num_heads'))
        config[f'{side}_ffn_dim'] = len(need(f'{side}/layer_0/ffn/linear_0/bias'))
        config[positions] = len(need(f'{side}/position_encodings/encodings'))
    return config


def _named(name: str, tensor: np.ndarray, path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """A variable by Hugging Face's names; one that has none keeps its own, and the table will not know it.

    >>> list(_named('encoder/layer_2/self_attention/linear_0/bias', np.zeros(6), ''))
    ['encoder.layers.2.self_attn.q_proj.bias', 'encoder.layers.2.self_attn.v_proj.bias']
    """
    side, _, rest = name.partition('/')
    if rest in WHOLE:
        return {f'{side}.{WHOLE[rest]}': tensor}
    found = re.fullmatch(r'layer_(\d+)/(.*)/(\w+)', rest)
    if found is None or found[2] not in LAYER:
        return {name.replace('/', '.'): tensor}
    parts, end = LAYER[found[2]], ENDS.get(found[3], found[3])
    pieces = zip(parts, np.array_split(tensor, len(parts)))  # one that cannot be cut does not fit the table
    named = {f'{part}.{end}': piece for part, piece in pieces}
    for bias in ('self_attn.k_proj.bias', 'encoder_attn.k_proj.bias'):
        if named.pop(bias, np.zeros(1)).any():
            raise ConfigError(f'{path}: {name}: the keys have a bias that is not zero')
    return {f'{side}.layers.{found[1]}.{part}': piece for part, piece in named.items()}
