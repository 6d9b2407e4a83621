"""The run program as a user meets it: shipped configs shrunk, evaluation, generation, and every kind of bad input."""

import shutil

import numpy as np
import pytest

from experiments import configs, run
from jattn.training import checkpoint
from tests.programs import call, lines_of, losses_of


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp('text')
    for i in range(30):
        (folder / f'{i}.txt').write_text(f'line {i} of a text\n' * (20 + i))
    return folder


@pytest.fixture(scope='module')
def trained(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('trained') / 'run'
    arguments = ['--config=lm_bytes', '--size=tiny', f'--workdir={workdir}', f'--set=data.path={text}']
    assert call(run, *arguments) == 0
    return workdir, arguments


def test_the_workdir_holds_everything(trained):
    workdir, _ = trained
    for name in ('config.json', 'metrics.jsonl', 'loss.png', 'log.txt', 'checkpoints/20', 'tensorboard'):
        assert (workdir / name).exists(), name
    last = lines_of(workdir)[-1]
    assert last['step'] == 20
    assert {'train/loss', 'eval/loss', 'eval/bits_per_byte'} <= last.keys()
    np.testing.assert_allclose(last['eval/bits_per_byte'] * np.log(2), last['eval/loss'], rtol=1e-6)
    assert last['train/loss'] < lines_of(workdir)[0]['train/loss']


def test_a_model_with_slow_state_is_trained_and_generates(text, tmp_path, capsys):
    workdir = tmp_path / 'run'
    arguments = ['--config=lm_bytes', '--size=tiny', '--set=model.mixer=routing', f'--set=data.path={text}']
    assert call(run, *arguments, f'--workdir={workdir}') == 0
    assert {'train/commitment', 'train/loss'} <= lines_of(workdir)[-1].keys()
    assert checkpoint.load_collections(workdir)['mixer_state']
    capsys.readouterr()
    assert call(run, '--mode=generate', f'--workdir={workdir}', '--prompt=line', '--new_tokens=5') == 0
    assert capsys.readouterr().out.startswith('line')


def test_eval_gives_the_last_evaluation_again(trained, capsys):
    workdir, _ = trained
    assert call(run, '--mode=eval', f'--workdir={workdir}') == 0
    printed = capsys.readouterr().out
    found = float(printed.split('eval/loss ')[1].split()[0])
    np.testing.assert_allclose(found, lines_of(workdir)[-1]['eval/loss'], rtol=1e-6)


def test_generate_continues_every_prompt(trained, capsys):
    workdir, _ = trained
    arguments = ['--mode=generate', f'--workdir={workdir}', '--prompt=line', '--prompt=of a', '--new_tokens=5']
    assert call(run, *arguments, '--temperature=0') == 0
    printed = capsys.readouterr().out
    assert 'line' in printed and 'of a' in printed


@pytest.mark.parametrize('name', configs.names())
@pytest.mark.parametrize('size', ['tiny', 'small', 'paper'])
def test_every_shipped_config_builds(name, size):
    config = configs.load(name, size)
    assert config.trunk.flops(16) > 0
    assert configs.summary(name).endswith('?')


def test_a_testbed_trains(tmp_path):
    assert call(run, '--config=icl_linear', '--size=tiny', f'--workdir={tmp_path / "run"}') == 0
    assert set(losses_of(tmp_path / 'run')) == {5, 10, 15, 20}


def test_list_names_everything(capsys):
    assert call(run, '--list') == 0
    printed = capsys.readouterr().out
    for name in ('lm_bytes', 'icl_linear', 'softmax', 'rg_lru', 'muon'):
        assert name in printed


BAD_INPUT = {
    'flag': (['--confg=lm_bytes'], "unknown flag --confg; did you mean 'config'?"),
    'config': (['--config=lm_byte'], "--config=lm_byte: no such config; did you mean 'lm_bytes'?"),
    'size': (['--config=lm_bytes', '--size=huge'], 'tiny|small|paper'),
    'mixer': (['--set=model.mixer=sofmax'], "model.mixer=sofmax: no such name; did you mean 'softmax'?"),
    'field': (['--set=model.widht=3'], "model.widht: DecoderConfig has no field 'widht'; did you mean 'width'?"),
    'type': (['--set=training.steps=many'], 'training.steps=many: must be int'),
    'form': (['--set=training.steps'], "'training.steps' must read path=value"),
    'slot': (['--set=model.mixer=softmax,rg_lru', '--set=model.mixer.window=3'], 'there are 2 slots, say which one'),
    'no_slot': (['--set=model.mixer.3.window=3'], 'slot 3 does not exist, there are 1'),
    'heads': (['--set=model.mixer.heads=5'], 'width=32 must be a multiple of heads=5'),
    'key_heads': (['--set=model.mixer.key_heads=3'], 'model.mixer.0: heads=4 must be a multiple of key_heads=3'),
    'activation': (['--set=model.feed_forward.activation=tanh'], "activation='tanh' must be one of"),
    'path': (['--set=data.path=nowhere/at/all'], 'data.path=nowhere/at/all: no such file or folder'),
    'devices': (['--set=training.mesh.data=64'], 'needs 64 devices, but there are 4'),
    'batch': (['--set=training.batch=6', '--set=training.mesh.data=4'], 'training.batch=6 must be a multiple of'),
    'accumulate': (['--set=training.accumulate=3'], 'batch=4 must be a multiple of accumulate=3'),
    'out': (['--out=somewhere'], '--out=somewhere: a run writes into its --workdir'),
    'argument': (['lm_bytes'], "unexpected argument 'lm_bytes'"),
}


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(name, text, tmp_path, capsys):
    arguments, message = BAD_INPUT[name]
    base = ['--config=lm_bytes', '--size=tiny', f'--set=data.path={text}']
    assert call(run, *base, f'--workdir={tmp_path / "run"}', *arguments) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed and printed.startswith('error: ') and '\n' not in printed
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('content', [None, b'', b'ab'], ids=['no_file', 'empty', 'too_short'])
def test_text_that_is_not_enough_is_named(content, tmp_path, capsys):
    (tmp_path / 'text').mkdir()
    if content is not None:
        (tmp_path / 'text' / 'a.txt').write_bytes(content)
    arguments = ['--config=lm_bytes', '--size=tiny', f'--set=data.path={tmp_path / "text"}']
    assert call(run, *arguments, f'--workdir={tmp_path / "run"}') == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_another_config_in_the_workdir_is_refused_field_by_field(trained, capsys):
    workdir, arguments = trained
    before = (workdir / 'config.json').read_bytes()
    assert call(run, *arguments, '--set=model.layers=3', '--set=training.seed=1') == 2
    printed = capsys.readouterr().err
    assert 'model.layers: 2 there, 3 now; training.seed: 0 there, 1 now' in printed
    assert (workdir / 'config.json').read_bytes() == before


def test_more_steps_are_allowed_on_resume(trained, tmp_path):
    workdir, arguments = trained
    shutil.copytree(workdir, tmp_path / 'run')
    arguments = [a for a in arguments if not a.startswith('--workdir')]
    assert call(run, *arguments, f'--workdir={tmp_path / "run"}', '--set=training.steps=25') == 0
    assert [line['step'] for line in lines_of(tmp_path / 'run')] == [5, 10, 15, 20, 25]


def test_a_damaged_checkpoint_stops_the_run(trained, tmp_path, capsys):
    workdir, arguments = trained
    shutil.copytree(workdir, tmp_path / 'run')
    state = tmp_path / 'run' / 'checkpoints' / '20' / 'state'
    path = max((p for p in state.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    arguments = [a for a in arguments if not a.startswith('--workdir')]
    assert call(run, *arguments, f'--workdir={tmp_path / "run"}', '--set=training.steps=25') == 2
    assert 'checkpoints/20' in capsys.readouterr().err
    assert [line['step'] for line in lines_of(tmp_path / 'run')] == [5, 10, 15, 20]


def test_a_workdir_that_cannot_be_written_is_named(text, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    base = ['--config=lm_bytes', '--size=tiny', f'--set=data.path={text}']
    assert call(run, *base, f'--workdir={tmp_path / "file" / "run"}') == 2
    assert 'cannot be written' in capsys.readouterr().err


def test_nan_stops_with_the_step(text, tmp_path, capsys):
    base = ['--config=lm_bytes', '--size=tiny', f'--set=data.path={text}', f'--workdir={tmp_path / "run"}']
    wild = ['--set=training.optimizer=adamw', '--set=training.optimizer.peak_lr=1e30']
    assert call(run, *base, *wild, '--set=training.optimizer.warmup_steps=0', '--set=training.log_every_steps=1') == 1
    assert 'the loss or the gradient is not finite' in capsys.readouterr().out
