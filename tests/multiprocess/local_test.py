"""Real jobs of several processes on this machine: the losses of one process, one checkpoint for any number."""

import signal
import sys
import time

import numpy as np
import pytest

from launch import local
from tests.programs import call, finish, lines_of, losses_of, start


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp('text')
    for i in range(30):
        (folder / f'{i}.txt').write_text(f'line {i} of a text\n' * (20 + i))
    return folder


def run_flags(text, workdir, steps=10, **settings):
    settings = {'training.steps': steps, 'training.log_every_steps': 1, 'training.batch': 8, **settings}
    sets = [f'--set={path}={value}' for path, value in settings.items()]
    return ['--config=lm_bytes', '--size=tiny', f'--workdir={workdir}', f'--set=data.path={text}', *sets]


@pytest.fixture(scope='module')
def alone(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('alone') / 'run'
    code, output = finish(start('experiments.run', *run_flags(text, workdir)))
    assert code == 0, output
    return workdir


def test_two_processes_of_two_devices_give_the_losses_of_one_and_hand_over(text, alone, tmp_path):
    mesh = {'training.mesh.data': 2, 'training.mesh.tensor': 2}
    arguments = ['--processes=2', '--devices=2', '--', *run_flags(text, tmp_path / 'run', **mesh)]
    code, output = finish(start('launch.local', *arguments))
    assert code == 0, output
    ours, theirs = losses_of(tmp_path / 'run'), losses_of(alone)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    np.testing.assert_allclose(lines_of(tmp_path / 'run')[-1]['eval/loss'], lines_of(alone)[-1]['eval/loss'], rtol=1e-5)
    # One process goes on with what two saved.
    code, output = finish(start('experiments.run', *run_flags(text, tmp_path / 'run', steps=12)))
    assert code == 0, output
    assert 'from step 10 to 12' in output


def test_sigterm_stops_all_processes_at_the_same_step(text, tmp_path):
    workdir = tmp_path / 'run'
    flags_of_run = run_flags(text, workdir, steps=100_000)
    process = start('launch.local', '--processes=2', '--', *flags_of_run)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (workdir / 'metrics.jsonl').exists() and len((workdir / 'metrics.jsonl').read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 0, output
    assert 'told to stop: saved step' in output


def test_dry_run_prints_every_command(text, capsys):
    assert call(local, '--processes=3', '--devices=2', '--dry_run', '--', '--config=lm_bytes') == 2  # rest refused here
    capsys.readouterr()
    code, output = finish(start('launch.local', '--processes=3', '--devices=2', '--dry_run', '--', '--config=lm_bytes'))
    lines = output.strip().splitlines()
    assert code == 0 and len(lines) == 3
    for process, line in enumerate(lines):
        assert f'{sys.executable} -m experiments.run --config=lm_bytes' in line
        assert line.endswith(f'--processes=3 --process={process}')


def test_a_failure_ends_the_group_with_its_code(text, tmp_path):
    flags_of_run = run_flags(text, tmp_path / 'run', **{'model.mixer': 'sofmax'})
    code, output = finish(start('launch.local', '--processes=2', '--', *flags_of_run))
    assert code == 2
    assert 'model.mixer=sofmax: no such name' in output
