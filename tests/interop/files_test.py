"""The two formats of files and the tokenizers: what is written is read, what is damaged is named."""

import json

import gguf as published
import ml_dtypes
import numpy as np
import pytest

from jattn.config import ConfigError
from jattn.interop import gguf, load, safetensors, tokenizer
from tests.interop.tiny_models import CONFIGS, values

Q8, Q4, F32 = (published.GGMLQuantizationType[name] for name in ('Q8_0', 'Q4_1', 'F32'))


# safetensors


@pytest.fixture
def written(tmp_path):
    path = tmp_path / 'model.safetensors'
    safetensors.write(path, {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.ones(5, np.int64)})
    return path


def test_arrays_of_every_dtype_come_back_exactly(tmp_path):
    draw = np.random.RandomState(0).randint(-4, 5, (3, 5))
    tensors = {name: np.abs(draw).astype(dtype) for name, dtype in safetensors.DTYPES.items()}
    tensors |= {'scalar': np.float32(3.5).reshape(()), 'empty': np.zeros((0, 4), np.float16)}
    safetensors.write(tmp_path / 'x', tensors)
    found = safetensors.SafetensorsFile(tmp_path / 'x')
    assert list(found) == list(tensors) and len(found) == len(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def test_half_precision_is_exact_in_float32(tmp_path):
    bits = np.arange(0x3C00, 0x3D00, dtype=np.uint16)
    halves = {'f16': bits.view(np.float16), 'bf16': bits.view(ml_dtypes.bfloat16)}
    safetensors.write(tmp_path / 'x', halves)
    found = safetensors.SafetensorsFile(tmp_path / 'x')
    np.testing.assert_array_equal(found['bf16'].astype(np.float32), (np.uint32(bits) << 16).view(np.float32))
    np.testing.assert_array_equal(found['f16'].astype(np.float32), 1 + np.arange(256, dtype=np.float32) / 1024)


def test_the_published_package_reads_what_we_write_and_the_other_way_round(written, tmp_path):
    numpy = pytest.importorskip('safetensors.numpy')
    own = safetensors.SafetensorsFile(written)
    for name, tensor in numpy.load_file(written).items():
        np.testing.assert_array_equal(tensor, own[name])
    numpy.save_file(dict(own), tmp_path / 'theirs')
    assert {name: a.tolist() for name, a in safetensors.SafetensorsFile(tmp_path / 'theirs').items()} == {
        name: a.tolist() for name, a in own.items()
    }


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda data: b'PK\x03\x04' * 50, 'not a safetensors file .it begins with b.PK'),
        (lambda data: b'', 'not a safetensors file'),
        (lambda data: data[:5], 'not a safetensors file'),
        (lambda data: data[:40], 'cut short: a header of'),
        (lambda data: data[:8] + b'{]' + data[10:], 'its header cannot be read: JSONDecodeError'),
        (lambda data: data.replace(b'data_offsets', b'offsets_data'), 'its header cannot be read: KeyError'),
        (lambda data: data.replace(b'"data_offsets": [0, 24]', b'"data_offsets": 0      '), 'read: TypeError'),
        (lambda data: data[:-1], r'cut short: its arrays need \d+ bytes, the file has \d+'),
    ],
)
def test_a_damaged_safetensors_file_is_named(written, damage, message):
    written.write_bytes(damage(written.read_bytes()))
    with pytest.raises(ConfigError, match=message) as error:
        safetensors.read(written.parent)
    assert str(written) in str(error.value)


def rewrite(path, change):
    """The file with another header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + length :])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda header: header['a'].update(dtype='F4'), 'a has dtype F4, not one of F64, F32'),
        (lambda header: header['a'].update(shape=[2, 4]), r'a of shape \(2, 4\) has 24 bytes'),
    ],
)
def test_an_array_that_cannot_be_read_is_named(written, change, message):
    rewrite(written, change)
    with pytest.raises(ConfigError, match=message):
        safetensors.read(written.parent)['a']
    assert safetensors.read(written.parent)['b'].tolist() == [1] * 5  # the others can


def test_a_folder_of_parts_is_one_mapping_and_a_missing_part_is_named(tmp_path):
    for part, name in (('model-1.safetensors', 'a'), ('model-2.safetensors', 'b')):
        safetensors.write(tmp_path / part, {name: np.full(2, ord(name), np.float32)})
    index = {'weight_map': {'a': 'model-1.safetensors', 'b': 'model-2.safetensors'}}
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert {name: a.tolist() for name, a in safetensors.read(tmp_path).items()} == {'a': [97, 97], 'b': [98, 98]}
    (tmp_path / 'model-2.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match=r'index.json lists model-2.safetensors, not there'):
        safetensors.read(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text('{}')
    with pytest.raises(ConfigError, match='index.json: lists no files of weights'):
        safetensors.read(tmp_path)
    with pytest.raises(FileNotFoundError, match='no model.safetensors .other formats'):
        safetensors.read(tmp_path / 'nowhere')


def test_a_write_that_fails_leaves_the_old_file(written):
    before = written.read_bytes()
    with pytest.raises(KeyError):
        safetensors.write(written, {'a': np.zeros(2, np.complex64)})
    assert written.read_bytes() == before


# GGUF

NAMES = {theirs: ours for ours, theirs in (gguf.BLOCK | gguf.WHOLE).items()}
SIZES = CONFIGS['llama']
SHAPES = {
    'self_attn.q_proj': (32, 32),
    'self_attn.k_proj': (16, 32),
    'self_attn.v_proj': (16, 32),
    'self_attn.o_proj': (32, 32),
    'mlp.gate_proj': (64, 32),
    'mlp.up_proj': (64, 32),
    'mlp.down_proj': (32, 64),
    'input_layernorm': (32,),
    'post_attention_layernorm': (32,),
}
WORDS = ['<end>', *(chr(n) for n in range(ord('!'), ord('~'))), 'Ġ', 'ab', 'Ġab']


def tensors_of_llama():
    """The tensors of a tiny Llama by Hugging Face's names; rows are multiples of a block of 32."""
    shapes = {f'model.layers.{n}.{name}.weight': shape for n in range(2) for name, shape in SHAPES.items()}
    shapes |= {'model.embed_tokens.weight': (len(WORDS), 32), 'model.norm.weight': (32,)}
    return {name: values('llama', name, shape) for name, shape in shapes.items()}


def to_neighbours(rows, heads):
    """llama.cpp's order of the rows of a query or key projection: pairs (2i, 2i+1) rotate together."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, kinds=lambda name: F32, architecture='llama', fields=(), pre='smollm', tensors=None):
    """A GGUF file of that Llama."""
    writer = published.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10_000.0)
    writer.add_context_length(64)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_merges(['a b', 'Ġ ab'])
    writer.add_token_types([3 if word == '<end>' else 1 for word in WORDS])
    writer.add_eos_token_id(0)
    for add in fields:
        add(writer)
    for name, tensor in (tensors_of_llama() if tensors is None else tensors).items():
        body, end = name.removesuffix('.weight'), '.weight'
        if body.startswith('model.layers.'):
            _, _, layer, part = body.split('.', 3)
            own = f'blk.{layer}.{NAMES[part]}{end}'
        else:
            part, own = '', f'{NAMES[body]}{end}'
        if part in ('self_attn.q_proj', 'self_attn.k_proj'):
            tensor = to_neighbours(tensor, 4 if 'q_proj' in part else 2)
        kind = F32 if tensor.ndim == 1 else kinds(part)
        writer.add_tensor(own, published.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_the_tensors_and_the_config_that_it_was_made_of(tmp_path):
    config, tensors, tokens = gguf.read(write_gguf(tmp_path / 'a.gguf'))
    expected = tensors_of_llama()
    assert set(tensors) == set(expected) and len(tensors) == len(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)  # query and key rows too
    assert config['rms_norm_eps'] == 1e-5 and config['tie_word_embeddings'] and config['num_key_value_heads'] == 2
    assert config['max_position_embeddings'] == 64 and config['vocab_size'] == len(WORDS)
    assert tokens['ggml.eos_token_id'] == 0


@pytest.mark.parametrize(('kind', 'error'), [(Q8, 0.25 / 254), (Q4, 0.5 / 30)])
def test_quantised_tensors_are_within_half_a_step_and_unpermuted(tmp_path, kind, error):
    _, tensors, _ = gguf.read(write_gguf(tmp_path / 'a.gguf', lambda part: kind))
    for name, tensor in tensors_of_llama().items():
        assert tensors[name].dtype == np.float32
        off = np.abs(tensors[name] - tensor)
        assert np.max(off) <= error * 1.01 + 1e-3 * (kind == Q4), name  # their steps are rounded to float16
        assert tensor.ndim == 1 or np.max(off) > 0


def test_halves_undo_neighbours():
    rows = np.arange(48.0).reshape(24, 2)
    np.testing.assert_array_equal(gguf.to_halves(to_neighbours(rows, 3), 3), rows)
    assert (to_neighbours(rows, 3) != rows).any()


def test_a_gguf_file_and_a_folder_of_the_same_tensors_are_one_model(tmp_path):
    config, tensors, _ = gguf.read(write_gguf(tmp_path / 'a.gguf'))
    safetensors.write(tmp_path / 'model.safetensors', tensors)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    one, two = load(str(tmp_path / 'a.gguf')), load(str(tmp_path))
    assert one.model.cfg == two.model.cfg and one.tokenizer.end == 0 and two.tokenizer is None
    np.testing.assert_array_equal(
        one.params['body']['block_0']['mixer']['q_proj']['kernel'],
        two.params['body']['block_0']['mixer']['q_proj']['kernel'],
    )


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda data: b'GGML' + data[4:], "not a GGUF file .it begins with b'GGML'"),
        (lambda data: b'', "not a GGUF file .it begins with b''"),
        (lambda data: data[:20], 'damaged or cut short'),
        (lambda data: data[:600], 'damaged or cut short'),
        (lambda data: data[: len(data) // 2], 'damaged or cut short'),
        (lambda data: data[:-1000], 'damaged or cut short'),
    ],
)
def test_a_damaged_gguf_file_is_named(tmp_path, damage, message):
    path = write_gguf(tmp_path / 'a.gguf')
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=message) as error:
        gguf.read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(architecture='gemma'), "architecture 'gemma' is not read from GGUF; there is 'llama'"),
        (dict(fields=[lambda w: w.add_rope_scaling_type(published.RopeScalingType.YARN)]), 'scaled rotary positions'),
        (dict(fields=[lambda w: w.add_rope_dimension_count(4)]), 'rope.dimension_count=4 is not the whole head'),
    ],
)
def test_a_gguf_file_that_is_not_read_says_why(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        gguf.read(write_gguf(tmp_path / 'a.gguf', **options))


def test_missing_metadata_and_tensors_that_have_no_name_here_are_named(tmp_path):
    writer = published.GGUFWriter(tmp_path / 'a.gguf', 'llama')
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match='its metadata lacks llama.attention.head_count'):
        gguf.read(tmp_path / 'a.gguf')
    odd = lambda writer: writer.add_tensor('blk.0.attn_gate.weight', np.zeros((4, 32), np.float32))
    with pytest.raises(ConfigError, match='not used: blk.0.attn_gate.weight'):
        load(str(write_gguf(tmp_path / 'b.gguf', fields=[odd])))


# Tokenizers

TOKENS = {
    'ggml.model': 'gpt2',
    'ggml.pre': 'smollm',
    'ggml.tokens': ['<|im_start|>', '<|im_end|>', *map(chr, range(33, 127)), 'Ġ', 'Ċ', 'Ã', '©', 'ab', 'Ġab', '12'],
    'ggml.merges': ['a b', 'Ġ ab', '1 2'],
    'ggml.token_type': [3, 3, *[1] * 101],
    'ggml.eos_token_id': 1,
}


def test_a_tokenizer_is_put_together_from_the_parts_of_a_gguf_file():
    found = tokenizer.from_gguf(TOKENS, 'a.gguf')
    assert found.pieces(found.encode('ab ab')) == ['ab', ' ab']
    assert found.pieces(found.encode('12 2')) == ['1', '2', ' ', '2']  # every digit alone, though 1 2 would merge
    assert found.encode('<|im_start|>ab<|im_end|>') == [0, found.id_of('ab'), 1] and found.end == 1
    for text in ('', 'ab é\n 12', '<|im_start|>é<|im_end|>\n\n'):
        assert found.decode(found.encode(text)) == text
    gpt2 = tokenizer.from_gguf(TOKENS | {'ggml.pre': 'gpt-2'}, 'a.gguf')
    assert gpt2.pieces(gpt2.encode('12 2')) == ['12', ' ', '2']


def test_a_piece_that_is_several_tokens_is_refused_as_one():
    found = tokenizer.from_gguf(TOKENS, 'a.gguf')
    with pytest.raises(ValueError, match=r"'xy' is 2 tokens, not one: \['x', 'y'\]"):
        found.id_of('xy')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'ggml.model': 'llama'}, "ggml.model='llama'.*ggml.model must be 'gpt2'"),
        ({'ggml.pre': 'smollm2'}, "ggml.pre='smollm2'.*did you mean 'smollm'"),
    ],
)
def test_a_tokenizer_of_another_kind_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer.from_gguf(TOKENS | changes, 'a.gguf')


def test_a_chat_is_chatml_and_models_without_it_are_refused():
    found = tokenizer.from_gguf(TOKENS, 'a.gguf')
    assert found.chat(('user', 'ab')) == '<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n'
    with pytest.raises(ConfigError, match='chat: this tokenizer has no <|im_start|>'):
        tokenizer.from_gguf(TOKENS | {'ggml.tokens': ['x', 'y', *TOKENS['ggml.tokens'][2:]]}, 'a.gguf').chat()


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(tmp_path):
    small = tensors_of_llama()
    small['model.embed_tokens.weight'] = small['model.embed_tokens.weight'][:40]
    path = write_gguf(tmp_path / 'a.gguf', tensors=small, fields=[lambda writer: writer.add_vocab_size(40)])
    with pytest.raises(ConfigError, match=f'the tokenizer has {len(WORDS)} tokens, the model 40: they do not fit'):
        load(str(path))


def test_a_tokenizer_of_a_folder_is_read_whole_and_a_damaged_one_is_named(tmp_path):
    inner = tokenizer.from_gguf(TOKENS, 'a.gguf').inner
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    inner.save(str(tmp_path / 'tokenizer.json'))
    found = tokenizer.from_folder(tmp_path, {'eos_token_id': [1, 0]})
    assert found.pieces(found.encode('ab ab12')) == ['ab', ' ab', '1', '2'] and found.end == 1
    (tmp_path / 'tokenizer.json').write_text('{"model": 3}')
    with pytest.raises(ConfigError, match=r'tokenizer.json: not a tokenizer \('):
        tokenizer.from_folder(tmp_path, {})
    assert tokenizer.from_folder(tmp_path / 'nowhere', {}) is None
