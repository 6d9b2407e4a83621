"""CTranslate2 files: Whisper's tensors and config come back, what is damaged or another model is named."""

import struct

import jax
import ml_dtypes
import numpy as np
import pytest

from jattn.config import ConfigError
from jattn.interop import ctranslate2, load, pretrained
from tests.interop.tiny_models import golden

CHOICES = {name: np.int8(value) for name, value in ctranslate2.GRANTED.items()}
CHOICES |= {f'{side}/num_heads': np.int16(4) for side in ('encoder', 'decoder')}
ALIASES = {'decoder/projection/weight': 'decoder/embeddings/weight'}
BODY = 4 + 2 + len('WhisperSpec') + 1 + 4  # bytes before the number of variables


def text(words):
    return struct.pack('<H', len(words) + 1) + words.encode() + b'\0'


def write(path, variables, aliases=ALIASES, spec='WhisperSpec', version=6):
    data = struct.pack('<I', version) + text(spec) + struct.pack('<II', 3, len(variables))
    numbers = {np.dtype(dtype): number for number, dtype in ctranslate2.DTYPES.items()}
    for name, array in variables.items():
        sizes = struct.pack(f'<B{array.ndim}I', array.ndim, *array.shape)
        data += text(name) + sizes + struct.pack('<BI', numbers[array.dtype], array.nbytes) + array.tobytes()
    data += struct.pack('<I', len(aliases)) + b''.join(text(a) + text(b) for a, b in aliases.items())
    path.write_bytes(data)
    return path


def variables_of(tensors):
    """The variables of a file that holds these tensors."""
    theirs = {name.removeprefix('model.'): tensor for name, tensor in tensors.items()}
    variables, gains = dict(CHOICES), {'weight': 'gamma', 'bias': 'beta'}
    for side, layers in (('encoder', 2), ('decoder', 3)):
        for end, gain in gains.items():
            variables[f'{side}/layer_norm/{gain}'] = theirs[f'{side}.layer_norm.{end}']
        variables[f'{side}/position_encodings/encodings'] = theirs[f'{side}.embed_positions.weight']
        for n in range(layers):
            for own, parts in ctranslate2.LAYER.items():
                if side == 'encoder' and own.startswith('attention/'):
                    continue
                for end, gain in gains.items():
                    names = [f'{side}.layers.{n}.{part}.{end}' for part in parts]
                    zero = np.zeros(32, np.float32)  # of the keys, which have no bias
                    whole = np.concatenate([theirs.get(name, zero) for name in names])
                    variables[f'{side}/layer_{n}/{own}/{gain if own.endswith("norm") else end}'] = whole
    variables |= {f'encoder/conv{n}/{end}': theirs[f'encoder.conv{n}.{end}'] for n in (1, 2) for end in gains}
    return variables | {'decoder/embeddings/weight': theirs['decoder.embed_tokens.weight']}


@pytest.fixture(scope='module')
def whisper():
    """(config, tensors, variables)."""
    config, tensors, _ = golden('whisper')
    return config, tensors, variables_of(tensors)


def test_variables_of_every_dtype_come_back_exactly(tmp_path):
    draw = np.random.RandomState(0).randint(-4, 5, (3, 5))
    arrays = {str(number): draw.astype(dtype) for number, dtype in ctranslate2.DTYPES.items()}
    arrays['scalar'] = np.int8(-3)
    file = ctranslate2.CTranslate2File(write(tmp_path / 'a.bin', arrays))
    assert list(file) == list(arrays) and len(file) == 7 and (file.spec, file.revision) == ('WhisperSpec', 3)
    assert file.aliases == ALIASES and file['5'].dtype == ml_dtypes.bfloat16
    for name, array in arrays.items():
        assert file[name].dtype == array.dtype and file[name].shape == array.shape
        np.testing.assert_array_equal(file[name], array)


def test_a_file_and_a_folder_of_the_same_tensors_are_one_model(whisper, tmp_path):
    config, tensors, variables = whisper
    said, found = ctranslate2.read(write(tmp_path / 'model.bin', variables))
    assert {name: config[name] for name in said} == said
    assert set(found) == {name.removeprefix('model.') for name in tensors}
    cfg, params = pretrained.build(config, tensors, 'a folder')
    opened = load(str(tmp_path / 'model.bin'))
    assert opened.model.cfg == cfg and opened.longest == 16 and opened.tokenizer is None
    jax.tree.map(np.testing.assert_array_equal, opened.params, params)


def test_halves_are_exact_in_float32(whisper, tmp_path):
    halves = {name: x.astype(np.float16) if x.ndim else x for name, x in whisper[2].items()}  # multiples of 1/64
    params = load(str(write(tmp_path / 'a.bin', halves))).params
    expected = load(str(write(tmp_path / 'b.bin', whisper[2]))).params
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda data: b'', "not a CTranslate2 file of version 6 .it begins with b''"),
        (lambda data: b'PK\x03\x04' + data[4:], "not a CTranslate2 file of version 6 .it begins with b'PK"),
        (lambda data: b'\x05' + data[1:], 'not a CTranslate2 file of version 6'),
        (lambda data: data[:20], 'damaged or cut short .4 bytes are needed at 18, there are 2'),
        (lambda data: data[: len(data) // 2], r'damaged or cut short .\d+ bytes are needed at'),
        (lambda data: data[:-1], r'damaged or cut short .\d+ bytes are needed at'),
        (lambda data: data[:BODY] + struct.pack('<IHB', 1, 1, 255), "damaged or cut short .'utf-8' codec"),
    ],
)
def test_a_damaged_file_is_named(whisper, tmp_path, damage, message):
    path = write(tmp_path / 'a.bin', whisper[2])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=message) as error:
        ctranslate2.read(path)
    assert str(path) in str(error.value)


KEYS = 'decoder/layer_1/self_attention/linear_0/bias'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda v: v.update({'decoder/activation': np.int8(1)}), 'decoder/activation=1 must be 3'),
        (lambda v: v.update({'decoder/pre_norm': np.int8(0)}), 'decoder/pre_norm=0 must be 1'),
        (lambda v: v.pop('encoder/num_heads'), 'lacks encoder/num_heads'),
        (lambda v: v.update({KEYS: np.ones(96, np.float32)}), f'{KEYS}: the keys have a bias that is not zero'),
        (lambda v: v.update({KEYS: np.zeros(97, np.float32)}), r'decoder.layers.1.self_attn.q_proj.bias has shape'),
        (lambda v: v.update({'decoder/odd/weight': np.ones(3, np.float32)}), 'not used: decoder.odd.weight$'),
        (lambda v: v.pop('encoder/conv1/bias'), 'missing there: encoder.conv1.bias; not filled here: encoder.read_in'),
    ],
)
def test_what_is_not_this_model_is_named(whisper, tmp_path, change, message):
    variables = dict(whisper[2])
    change(variables)
    with pytest.raises(ConfigError, match=message):
        load(str(write(tmp_path / 'a.bin', variables)))


def test_another_spec_and_an_untied_read_out_are_named(whisper, tmp_path):
    other = write(tmp_path / 'a.bin', whisper[2], spec='TransformerSpec')
    with pytest.raises(
        ConfigError, match="spec 'TransformerSpec' is not read from CTranslate2; there is 'WhisperSpec'"
    ):
        ctranslate2.read(other)
    with pytest.raises(ConfigError, match='tie_word_embeddings=False is not one of True'):
        load(str(write(tmp_path / 'b.bin', whisper[2], aliases={})))


def test_a_variable_that_cannot_be_read_is_named(tmp_path):
    path = write(tmp_path / 'a.bin', {'x': np.ones(2, np.float32)}, aliases={})
    data = path.read_bytes()
    for at, byte, message in (
        (8, 9, 'x has dtype 9, not one of 0, 1, 2, 3, 4, 5'),
        (12, 3, r'x of shape \(3,\) has 8 bytes'),
    ):
        name = BODY + 4 + 4  # behind the count and the name
        place = {8: name + 5, 12: name + 1}[at]
        path.write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
        with pytest.raises(ConfigError, match=message):
            ctranslate2.CTranslate2File(path)['x']
