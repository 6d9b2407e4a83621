"""Writes ONNX files: protobuf messages of constants and nodes."""

import numpy as np

from jattn.interop.onnx import DTYPES

NUMBERS = {np.dtype(dtype): number for number, dtype in DTYPES.items()}


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    """A number, or bytes behind their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def constant(name, array):
    sizes = b''.join(field(1, size) for size in array.shape)
    return sizes + field(2, NUMBERS[array.dtype]) + field(8, name.encode()) + field(9, array.tobytes())


def node(op, name, *inputs):
    read = b''.join(field(1, one.encode()) for one in inputs)
    return read + field(2, f'{name}_output_0'.encode()) + field(3, name.encode()) + field(4, op.encode())


def write(path, constants, nodes=(), more=b''):
    """A file of a graph; more: fields of the graph."""
    graph = b''.join(field(1, one) for one in nodes) + field(2, b'main')
    graph += b''.join(field(5, constant(name, array)) for name, array in constants.items()) + more
    path.write_bytes(field(1, 7) + field(7, graph))
    return path
