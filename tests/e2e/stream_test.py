"""Streams as a user meets them: recall by length and depth, a text, states on disk; and memory that stays flat."""

import json

import jax
import numpy as np
import pytest

from experiments import configs, run, stream
from jattn.config import ConfigError
from jattn.models.stream import advance, open_stream
from jattn.training import checkpoint, stream_file
from tests.programs import call

PASSKEY = ('width=32', 'layers=2', 'mixer=gated_deltanet', 'mixer.heads=2')
TASK = ('tokens=64', 'digits=2', 'noise=16', 'keys=4')


def passkey_arguments(workdir, steps):
    model = [f'--set=model.{assignment}' for assignment in PASSKEY]
    task = [f'--set=data.{assignment}' for assignment in TASK]
    return ['--config=passkey', *model, *task, f'--set=training.steps={steps}', f'--workdir={workdir}']


@pytest.fixture(scope='module')
def passkey(tmp_path_factory):
    """A run whose model has seen a few steps."""
    workdir = tmp_path_factory.mktemp('passkey') / 'run'
    arguments = ['--config=passkey', '--size=tiny', '--set=model.mixer=gated_deltanet', f'--workdir={workdir}']
    assert call(run, *arguments) == 0
    return workdir


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp('text')
    for i in range(30):
        (folder / f'{i}.txt').write_text(f'line {i} of a text\n' * (20 + i))
    return folder


@pytest.fixture(scope='module')
def reader(text, tmp_path_factory):
    """A run on bytes."""
    workdir = tmp_path_factory.mktemp('reader') / 'run'
    arguments = ['--config=lm_bytes', '--size=tiny', '--set=model.mixer=gated_deltanet', f'--set=data.path={text}']
    assert call(run, *arguments, f'--workdir={workdir}') == 0
    return workdir


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_needles_are_scored_by_length_and_depth(passkey, tmp_path, capsys):
    options = ['--lengths=64,150', '--depths=0,1', '--needles=3', '--chunk=64', f'--out={tmp_path}']
    assert call(stream, f'--workdir={passkey}', *options) == 0
    rows = json.loads((tmp_path / 'stream.json').read_text())
    assert [row['length'] for row in rows] == [64, 150]
    for row in rows:
        assert all(0 <= value <= digit <= 1 for digit, value in zip(row['digits'], row['values'], strict=True))
        assert row['peak_bytes'] > 10**7
    printed = capsys.readouterr().out
    assert 'depth 0' in printed and '150' in printed


def test_recall_of_a_stream_is_that_of_the_whole_row(passkey):
    model, params, config = checkpoint.load(passkey)
    opened = stream.Opened(model, params, config)
    depths, needles, length = [0.0, 0.6], 4, 101
    found = stream.read_needles(
        stream.Pass(opened, open_stream(model, needles * len(depths)), 16), length, depths, needles, seed=3
    )
    for n, depth in enumerate(depths):
        batch = config.data.rows_at(jax.random.key(3), needles, depth, length)
        logits, _ = model.apply({'params': params}, batch.inputs)
        scores = config.data.metrics(logits, batch)
        np.testing.assert_allclose(found['digits'][n], scores['accuracy'].value(), rtol=1e-6)
        np.testing.assert_allclose(found['values'][n], scores['sequence_accuracy'].value(), rtol=1e-6)


def test_a_needle_stream_that_is_cut_goes_on_bit_for_bit(passkey, tmp_path):
    options = [f'--workdir={passkey}', '--lengths=150', '--depths=0.5', '--needles=2', '--chunk=32']
    whole, part, joined = (str(tmp_path / name) for name in ('whole', 'part', 'joined'))
    assert call(stream, *options, f'--save_state={whole}', f'--out={tmp_path / "a"}') == 0
    assert call(stream, *options, '--until=96', f'--save_state={part}') == 0
    rest = [f'--load_state={part}', f'--save_state={joined}', f'--out={tmp_path / "b"}']
    assert call(stream, *options, *rest) == 0
    a, b = arrays(whole), arrays(joined)
    assert a.keys() == b.keys() and len(a) > 5 and not np.array_equal(arrays(part)['logits'], a['logits'])
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    score = lambda folder: json.loads((tmp_path / folder / 'stream.json').read_text())[0]['digits']
    assert score('a') == score('b')


@pytest.mark.slow
def test_a_text_in_two_files_counts_what_one_file_counts(reader, tmp_path, capsys):
    content = b'line 7 of a text\n' * 40
    (tmp_path / 'all').write_bytes(content)
    (tmp_path / 'one').write_bytes(content[:512])
    (tmp_path / 'two').write_bytes(content[512:])
    options = [f'--workdir={reader}', '--chunk=64', '--block=256']

    def read(name, *more):
        arguments = [f'--text={tmp_path / name}', f'--out={tmp_path / f"of_{name}"}', *more]
        assert call(stream, *options, *arguments) == 0
        return json.loads((tmp_path / f'of_{name}' / 'stream.json').read_text())

    whole = read('all', f'--save_state={tmp_path / "a"}')
    one = read('one', f'--save_state={tmp_path / "b"}')
    two = read('two', f'--load_state={tmp_path / "b"}', f'--save_state={tmp_path / "c"}')
    a, c = arrays(tmp_path / 'a'), arrays(tmp_path / 'c')
    for name in a:
        np.testing.assert_array_equal(a[name], c[name], err_msg=name)
    assert whole['scored'] == one['scored'] + two['scored'] == len(content) - 1
    bits = sum(part['bits_per_byte'] * part['scored'] for part in (one, two))
    np.testing.assert_allclose(bits, whole['bits_per_byte'] * whole['scored'], rtol=1e-12)
    assert [block['to'] for block in whole['blocks']] == [256, 512, 680]
    assert [block['bits_per_byte'] for block in whole['blocks'][:2]] == [b['bits_per_byte'] for b in one['blocks']]
    assert 'bytes       256 to       512' in capsys.readouterr().out


def test_bits_of_a_text_are_those_of_one_whole_call(reader, tmp_path):
    model, params, _ = checkpoint.load(reader)
    tokens = np.frombuffer(b'line 12 of a text\n' * 6, np.uint8).astype(np.int32)[None]
    logits, _ = model.apply({'params': params}, tokens)
    said = jax.nn.log_softmax(logits[:, :-1])
    expected = -np.take_along_axis(np.asarray(said), tokens[:, 1:, None], axis=-1)[..., 0]
    state, nats = open_stream(model, 1), []
    for at in range(0, tokens.shape[1], 40):
        scores, state = advance(model, params, state, tokens[:, at : at + 40], call=40)
        nats.append(np.asarray(scores.nats))
    nats = np.concatenate(nats, axis=1)
    assert nats[0, 0] == 0
    np.testing.assert_allclose(nats[:, 1:], expected, atol=1e-4)


def test_a_state_goes_back_into_its_own_model_alone(passkey, tmp_path, capsys):
    base = ['--config=passkey', '--size=tiny', '--lengths=64', '--depths=0', '--needles=1', '--chunk=32']
    saved, own = tmp_path / 'state', '--set=model.mixer=gated_deltanet'
    assert call(stream, *base, own, '--until=32', f'--save_state={saved}') == 0
    load = f'--load_state={saved}'
    capsys.readouterr()
    errors = {
        'layers: 2 there, 1 here': [*base, own, '--set=model.layers=1', load],
        'with other parameters: fingerprint': [*base, own, '--set=training.seed=5', load],
        'rows and capacity must be': [*base, own, '--needles=2', load],
        'cannot be read from token 32 to 16': [*base, own, '--until=16', load],
    }
    for message, arguments in errors.items():
        assert call(stream, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1, error
    (tmp_path / 'other').write_bytes(b'PK nothing')
    assert call(stream, *base, own, f'--load_state={tmp_path / "other"}') == 2
    assert 'not the file of a stream' in capsys.readouterr().err


def test_bfloat16_states_survive_the_disk(tmp_path):
    assignments = ['model.mixer=gated_deltanet', 'model.dtype=bfloat16']
    model, variables = stream.fresh(configs.load('passkey', 'tiny', assignments))
    params = variables['params']
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12) % 8
    _, state = advance(model, params, open_stream(model, 2), tokens)
    stream_file.save(tmp_path / 'state', state, model, params)
    loaded = stream_file.load(tmp_path / 'state', open_stream(model, 2), model, params)
    assert 'bfloat16' in {str(leaf.dtype) for leaf in jax.tree.leaves(loaded)}
    jax.tree.map(np.testing.assert_array_equal, loaded, state)


def test_a_model_with_slow_state_streams(capsys):
    arguments = ['--config=passkey', '--size=tiny', '--set', 'model.mixer=routing', '--lengths=64', '--needles=1']
    assert call(stream, *arguments) == 0
    assert 'untrained' in capsys.readouterr().out


BAD_INPUT = {
    'neither --workdir': ([], 'either --workdir'),
    'no text': (['--config=lm_bytes', '--size=tiny'], '--text is needed'),
    'vectors': (['--config=icl_linear', '--size=tiny'], 'this model reads vectors'),
    'short': (['--config=passkey', '--size=tiny', '--lengths=5'], '--lengths=5 must be at least'),
    'word': (['--config=passkey', '--size=tiny', '--lengths=long'], '--lengths=long: must be int'),
    'depth': (['--config=passkey', '--size=tiny', '--depths=2'], '--depths=2.0 must be in 0..1'),
    'several': (['--config=passkey', '--size=tiny', '--until=40'], 'give one of --lengths'),
    'no bytes': (['--config=passkey', '--size=tiny', '--text=README.md'], 'needs a model of bytes'),
    'capacity': (['--config=passkey', '--size=tiny', '--lengths=64', '--capacity=40'], 'not finite after 64 tokens'),
}


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(name, capsys):
    arguments, message = BAD_INPUT[name]
    assert call(stream, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize('mixer', ['gated_deltanet', 'titans_lmm'])
def test_memory_is_flat_over_a_quarter_of_a_million_tokens(mixer):
    config = configs.load('passkey', 'tiny', [f'model.mixer={mixer}'])
    model, variables = stream.fresh(config)
    reading = stream.Pass(stream.Opened(model, variables['params'], config), open_stream(model, 1), 1024)
    row = stream.read_needles(reading, 2**18, [0.5], 1)
    print(f'{mixer}: peak {row["peak_bytes"] / 2**20:.1f} MB, grown by {row["growth_bytes"] / 2**20:.2f} MB')
    assert row['growth_bytes'] < max(0.05 * row['peak_bytes'], 50 * 2**20)


@pytest.mark.slow
def test_recall_reaches_sixteen_times_the_training_length(tmp_path):
    assert call(run, *passkey_arguments(tmp_path / 'run', 800)) == 0
    options = ['--lengths=64,256,1024', '--depths=0,0.5,1', '--needles=16', f'--out={tmp_path}']
    assert call(stream, f'--workdir={tmp_path / "run"}', *options) == 0
    for row in json.loads((tmp_path / 'stream.json').read_text()):
        assert min(row['digits']) > 0.9, row
        assert min(row['values']) > 0.8, row


def test_a_stream_is_not_cut_inside_its_question(passkey):
    model, params, config = checkpoint.load(passkey)
    assert config.data.digits == 2  # the stream's last token is the first digit
    reading = stream.Pass(stream.Opened(model, params, config), open_stream(model, 1), 16)
    reading.at = 64
    with pytest.raises(ConfigError, match='the question whole'):
        stream.read_needles(reading, 64, [0.0], 1)
