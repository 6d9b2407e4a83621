"""ONNX files: the constants of a graph by name, memory-mapped; read here, nothing executed.

    file = OnnxFile('model.onnx')          file['backbone.layernorm.weight'], file.nodes
    tensors = parameters(file, 'backbone')          by Hugging Face's names

A file is one protobuf message, a row of fields: a varint (number << 3 | kind), then the value: a varint, 8 bytes, bytes
behind their length, or 4 bytes. Read are a model's graph (7), its nodes (1) and its constants (5), with raw values.

An exporter that folds constants leaves a transposed weight without a name (`onnx::MatMul_1966`); the node that
multiplies with it is still named by its module, /encoder/layer.0/mlp/fc1/MatMul, and so names the weight.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from jattn.config import ConfigError
from jattn.interop.raw import tensor

DTYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
    16: ml_dtypes.bfloat16,
}
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # kinds of values
MODEL_VERSION, MODEL_GRAPH = 1, 7
GRAPH_NODE, GRAPH_CONSTANT = 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP = 1, 2, 3, 4
TENSOR_DIMS, TENSOR_DTYPE, TENSOR_NAME, TENSOR_RAW, TENSOR_EXTERNAL = 1, 2, 8, 9, 13
ANONYMOUS = 'onnx::'
POSITIONS = ('Concat', 'Reshape')  # the nodes that read a folded table of positions: of the class token, of the patches


@dataclasses.dataclass(frozen=True)
class Node:
    """An operation of the graph: what it is, its own name, the names of what it reads and makes."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def module(self) -> str:
        """The module that the operation belongs to.

        >>> Node('MatMul', '/encoder/layer.0/mlp/fc1/MatMul', (), ()).module
        'encoder.layer.0.mlp.fc1'
        """
        return self.name.strip('/').rpartition('/')[0].replace('/', '.')


class OnnxFile(Mapping[str, np.ndarray]):
    """The constants of a file by name, and the graph's nodes in order.

    Raises:
        ConfigError: the file is none of this format, or is cut short.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path, self.nodes, self._constants = pathlib.Path(path), [], {}
        if not self.path.stat().st_size:
            raise ConfigError(f'{path}: not an ONNX file (it is empty)')
        data = memoryview(np.memmap(self.path, np.uint8, 'r'))
        try:
            model = list(fields(data))
            if [number for number, _ in model[:1]] != [MODEL_VERSION]:
                raise ConfigError(f'{path}: not an ONNX file (it begins with {bytes(data[:8])!r}, not with a version)')
            graphs = [value for number, value in model if number == MODEL_GRAPH]
            if len(graphs) != 1:
                raise ConfigError(f'{path}: not an ONNX file (it has {len(graphs)} graphs, not one)')
            for number, value in fields(graphs[0]):
                if number == GRAPH_NODE:
                    self.nodes.append(_node(value))
                elif number == GRAPH_CONSTANT:
                    constant = _Constant.parse(value)
                    self._constants[constant.name] = constant
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f'{path}: not an ONNX file, or cut short ({error})') from error

    def __getitem__(self, name: str) -> np.ndarray:
        constant = self._constants[name]
        if constant.external or constant.raw is None:
            kept = 'in another file' if constant.external else 'otherwise than as raw bytes'
            raise ConfigError(f'{self.path}: {name} has its values {kept}, which is not read')
        return tensor(f'{self.path}: {name}', constant.raw, DTYPES, constant.dtype, constant.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._constants)

    def __len__(self) -> int:
        return len(self._constants)


@dataclasses.dataclass(frozen=True)
class _Constant:
    """A constant as it stands in the file; raw: its bytes, None: it has no such field."""

    name: str
    shape: tuple[int, ...]
    dtype: int
    raw: memoryview | None
    external: bool

    @classmethod
    def parse(cls, data: memoryview) -> '_Constant':
        name, shape, dtype, raw, external = '', [], 0, None, False
        for number, value in fields(data):
            if number == TENSOR_DIMS:  # one by one, or packed
                shape += [value] if isinstance(value, int) else _varints(value)
            elif number == TENSOR_DTYPE:
                dtype = value
            elif number == TENSOR_NAME:
                name = str(value, 'utf-8')
            elif number == TENSOR_RAW:
                raw = value
            elif number == TENSOR_EXTERNAL:
                external = True
        return cls(name, tuple(shape), dtype, raw, external)


def _node(data: memoryview) -> Node:
    said = {NODE_INPUT: [], NODE_OUTPUT: [], NODE_NAME: [''], NODE_OP: ['']}
    for number, value in fields(data):
        if number in said:
            said[number].append(str(value, 'utf-8'))
    return Node(said[NODE_OP][-1], said[NODE_NAME][-1], tuple(said[NODE_INPUT]), tuple(said[NODE_OUTPUT]))


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of a protobuf message's fields; of 4 or 8 bytes and of bytes the value is a view.

    Raises:
        ValueError: a value goes past the end, or is of no known kind.

    >>> [(n, v if isinstance(v, int) else bytes(v)) for n, v in fields(memoryview(bytes([8, 150, 1, 18, 2, 65, 66])))]
    [(1, 150), (2, b'AB')]
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = _varint(data, at)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if kind == EIGHT_BYTES else 4
        else:
            raise ValueError(f'field {number} at byte {at} has kind {kind}')
        if at + length > len(data):
            raise ValueError(f'field {number} needs {length} bytes, there are {len(data) - at}')
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A varint, seven bits a byte, the lowest first; and where it ends."""
    value = shift = 0
    while True:
        if at == len(data) or shift > 63:
            raise ValueError(f'a number at byte {at} has no end')
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _varints(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


class _Made(Mapping[str, np.ndarray]):
    """Arrays that are made when they are asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def parameters(file: OnnxFile, module: str) -> Mapping[str, np.ndarray]:
    """The parameters of a module of the graph by Hugging Face's names below it, weights (out, in).

    A weight without a name has that of the module that multiplies with it, a table of positions in two parts that of
    the module that joins them, `position_embeddings`.

    Raises:
        ConfigError: the graph has no such module; a constant without a name is read in another way.
    """
    makers, tables = {}, {}
    for name in file:
        if not name.startswith(ANONYMOUS):
            makers[name] = lambda name=name: file[name]
    for node in file.nodes:
        for name in node.inputs:
            if not name.startswith(ANONYMOUS) or name not in file:
                continue
            if node.op == 'MatMul':
                makers[f'{node.module}.weight'] = lambda name=name: file[name].T
            elif node.op in POSITIONS:
                tables.setdefault(f'{node.module}.position_embeddings', {})[node.op] = name
            else:
                raise ConfigError(f'{file.path}: {name} is read by {node.op} {node.name}, which does not name it')
    for name, parts in tables.items():
        ordered = [parts[op] for op in POSITIONS if op in parts]
        makers[name] = lambda ordered=ordered: np.concatenate([file[part] for part in ordered], axis=1)
    own = {name.removeprefix(f'{module}.'): make for name, make in makers.items() if name.startswith(f'{module}.')}
    if not own:
        modules = sorted({name.partition('.')[0] for name in makers})
        raise ConfigError(f'{file.path}: no parameters of a module {module!r}; there are: {", ".join(modules)}')
    return _Made(own)
