"""ONNX files: constants come back exactly, folded ones get the names of their modules, what is damaged is named."""

import ml_dtypes
import numpy as np
import pytest

from jattn.config import ConfigError
from jattn.interop import onnx
from tests.interop.onnx_files import constant, field, node, write

DRAW = np.random.RandomState(0).randint(-4, 5, (3, 5))
QUERY, TABLE = DRAW[:, :4].astype(np.float32), DRAW.astype(np.float32)
CONSTANTS = {
    'trunk.layer.0.query.bias': np.arange(4.0, dtype=np.float32),
    'onnx::MatMul_12': QUERY,
    'onnx::Concat_3': TABLE[None, :1],
    'onnx::Reshape_4': TABLE[None, 1:],
    'head.weight': np.ones(2, np.float32),
}
NODES = [
    node('Reshape', '/trunk/embeddings/Reshape_1', 'onnx::Reshape_4', 'shape'),
    node('Concat', '/trunk/embeddings/Concat_6', 'onnx::Concat_3', 'resized'),
    node('MatMul', '/trunk/layer.0/query/MatMul', 'x', 'onnx::MatMul_12'),
    node('Add', '/trunk/layer.0/query/Add', 'trunk.layer.0.query.bias', 'product'),
]


@pytest.fixture
def written(tmp_path):
    return write(tmp_path / 'a.onnx', CONSTANTS, NODES)


def test_constants_of_every_dtype_come_back_exactly(tmp_path):
    arrays = {str(number): np.abs(DRAW).astype(dtype) for number, dtype in onnx.DTYPES.items()}
    arrays |= {'scalar': np.float32(3.5).reshape(()), 'empty': np.zeros((0, 4), np.float16)}
    found = onnx.OnnxFile(write(tmp_path / 'a.onnx', arrays))
    assert list(found) == list(arrays) and len(found) == len(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_sizes_may_be_packed_and_are_read_past_127(tmp_path):
    large = np.arange(300, dtype=np.float32).reshape(1, 300)
    packed = field(1, bytes([1, 172, 2])) + field(2, 1) + field(8, b'x') + field(9, large.tobytes())
    found = onnx.OnnxFile(write(tmp_path / 'a.onnx', {'y': large}, more=field(5, packed)))
    for name in 'xy':
        np.testing.assert_array_equal(found[name], large)


def test_nodes_say_what_they_read_and_whose_they_are(written):
    read = onnx.OnnxFile(written).nodes
    assert [one.op for one in read] == ['Reshape', 'Concat', 'MatMul', 'Add']
    assert read[2].inputs == ('x', 'onnx::MatMul_12') and read[2].module == 'trunk.layer.0.query'


def test_folded_constants_have_the_names_of_their_modules_and_stand_as_hugging_face_has_them(written):
    found = onnx.parameters(onnx.OnnxFile(written), 'trunk')
    assert set(found) == {'layer.0.query.weight', 'layer.0.query.bias', 'embeddings.position_embeddings'}
    np.testing.assert_array_equal(found['layer.0.query.weight'], QUERY.T)
    np.testing.assert_array_equal(found['embeddings.position_embeddings'], TABLE[None])
    np.testing.assert_array_equal(found['layer.0.query.bias'], np.arange(4))
    assert list(onnx.parameters(onnx.OnnxFile(written), 'head')) == ['weight'] and len(found) == 3


def test_a_module_that_is_not_there_and_a_constant_that_nothing_names_are_errors(written, tmp_path):
    with pytest.raises(ConfigError, match=r"no parameters of a module 'backbone'; there are: head, trunk"):
        onnx.parameters(onnx.OnnxFile(written), 'backbone')
    odd = write(tmp_path / 'b.onnx', {'onnx::Mul_7': QUERY}, [node('Mul', '/trunk/scale/Mul', 'onnx::Mul_7')])
    with pytest.raises(ConfigError, match='onnx::Mul_7 is read by Mul /trunk/scale/Mul, which does not name it'):
        onnx.parameters(onnx.OnnxFile(odd), 'trunk')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda data: b'', 'not an ONNX file .it is empty'),
        (lambda data: b'GGUF' + data[4:], 'not an ONNX file, or cut short .field 8 at byte 1 has kind 7'),
        (lambda data: bytes(64), r"not an ONNX file .it begins with b'\\x00.*, not with a version"),
        (lambda data: data[:2], 'not an ONNX file .it has 0 graphs, not one'),
        (lambda data: data[:3], 'not an ONNX file, or cut short .a number at byte'),
        (lambda data: data[: len(data) // 2], r'cut short .field 7 needs \d+ bytes, there are \d+'),
        (lambda data: data[:-1], 'cut short .field 7 needs'),
        (lambda data: data[:2] + field(7, field(1, 3)), 'cut short .*int'),
        (lambda data: data[:2] + field(7, field(5, field(8, b'\xff'))), "cut short .'utf-8' codec"),
        (lambda data: data[:2] + b'\xff' * 12, 'cut short .a number at byte'),
    ],
)
def test_a_damaged_file_is_named(written, damage, message):
    written.write_bytes(damage(written.read_bytes()))
    with pytest.raises(ConfigError, match=message) as error:
        onnx.OnnxFile(written)
    assert str(written) in str(error.value)


@pytest.mark.parametrize(
    ('bytes_of', 'message'),
    [
        (field(1, 2) + field(2, 8) + field(9, b'ab'), r'x has dtype 8, not one of 1, 2, 3'),
        (field(1, 2) + field(2, 1) + field(9, b'ab'), r'x of shape \(2,\) has 2 bytes'),
        (field(1, 1) + field(2, 1) + field(4, b'abcd'), 'x has its values otherwise than as raw bytes'),
        (field(1, 1) + field(2, 1) + field(13, b''), 'x has its values in another file'),
    ],
)
def test_a_constant_that_cannot_be_read_is_named_and_the_others_can(tmp_path, bytes_of, message):
    found = onnx.OnnxFile(write(tmp_path / 'a.onnx', {'y': QUERY}, more=field(5, bytes_of + field(8, b'x'))))
    with pytest.raises(ConfigError, match=message):
        found['x']
    np.testing.assert_array_equal(found['y'], QUERY)


def test_the_published_package_reads_what_the_tests_write_and_we_what_it_writes(written, tmp_path):
    published = pytest.importorskip('onnx')
    graph = published.load(written).graph
    own = onnx.OnnxFile(written)
    for tensor in graph.initializer:
        np.testing.assert_array_equal(published.numpy_helper.to_array(tensor), own[tensor.name])
    assert [(one.op_type, one.name, tuple(one.input)) for one in graph.node] == [
        (one.op, one.name, one.inputs) for one in own.nodes
    ]
    arrays = {'a': QUERY, 'b': np.int64([2, 3]), 'c': QUERY.astype(ml_dtypes.bfloat16)}
    tensors = [published.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    made = published.helper.make_graph([], 'g', [], [], tensors)
    published.save(published.helper.make_model(made), tmp_path / 'b.onnx')
    for name, array in arrays.items():
        np.testing.assert_array_equal(onnx.OnnxFile(tmp_path / 'b.onnx')[name], array)


def test_a_constant_is_what_was_written():
    assert constant('x', np.ones(1, np.float32)) == b'\x08\x01\x10\x01B\x01xJ\x04\x00\x00\x80?'
