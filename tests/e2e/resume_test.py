"""Nothing is lost: a run that is killed at any moment and started again is bit-identical to one that was not."""

import random
import signal
import time

import pytest

from tests.programs import assert_same_run, finish, lines_of, losses_of, start

STEPS = 60


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp('text')
    for i in range(30):
        (folder / f'{i}.txt').write_text(f'line {i} of a text\n' * (20 + i))
    return folder


def arguments(text, workdir):
    settings = {
        'data.path': text,
        'model.mixer': 'rg_lru,softmax',
        'training.steps': STEPS,
        'training.log_every_steps': 3,
        'training.checkpoint_every_steps': 7,
        'training.eval_every_steps': 20,
    }
    sets = [f'--set={path}={value}' for path, value in settings.items()]
    return ('experiments.run', '--config=lm_bytes', '--size=tiny', f'--workdir={workdir}', *sets)


@pytest.fixture(scope='module')
def unbroken(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('unbroken') / 'run'
    code, output = finish(start(*arguments(text, workdir)))
    assert code == 0, output
    return workdir


def wait_for_step(workdir, step, process):
    """Until a line of at least this step is written, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        path = workdir / 'metrics.jsonl'
        if path.exists() and path.read_text().count('\n') and max(losses_of(workdir), default=0) >= step:
            return
        time.sleep(0.01)


@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_kill_at_random_moments_is_bit_identical(text, unbroken, tmp_path, seed):
    draw, workdir, kills = random.Random(seed), tmp_path / 'run', 0
    while kills < 3:
        process = start(*arguments(text, workdir))
        wait_for_step(workdir, draw.randrange(STEPS), process)
        time.sleep(draw.random() * 0.2)
        process.kill()
        code, output = finish(process)
        if code == 0:  # it was faster
            break
        assert code == -signal.SIGKILL, output
        kills += 1
    code, output = finish(start(*arguments(text, workdir)))
    assert code == 0, output
    assert_same_run(workdir, unbroken)
    steps = [line['step'] for line in lines_of(workdir)]
    assert steps == sorted(set(steps))
    assert (workdir / 'loss.png').stat().st_size > 5000


def test_sigterm_saves_ends_with_zero_and_resumes_bit_identical(text, unbroken, tmp_path):
    workdir = tmp_path / 'run'
    process = start(*arguments(text, workdir))
    wait_for_step(workdir, 6, process)
    process.terminate()
    code, output = finish(process)
    assert code == 0, output
    if 'told to stop' in output:
        assert max(losses_of(workdir)) < STEPS
    code, output = finish(start(*arguments(text, workdir)))
    assert code == 0, output
    ours, theirs = losses_of(workdir), losses_of(unbroken)
    assert {step: ours[step] for step in theirs} == theirs


def test_a_finished_run_appends_nothing(text, unbroken):
    before = (unbroken / 'metrics.jsonl').read_bytes()
    code, output = finish(start(*arguments(text, unbroken)))
    assert code == 0
    assert 'finished already: 60 steps' in output
    assert (unbroken / 'metrics.jsonl').read_bytes() == before


def test_a_second_run_in_one_workdir_stops(text, tmp_path):
    workdir = tmp_path / 'run'
    first = start(*arguments(text, workdir), '--set=training.steps=100000')
    wait_for_step(workdir, 3, first)
    code, output = finish(start(*arguments(text, workdir), '--set=training.steps=100000'))
    first.kill()
    finish(first)
    assert code == 2
    assert output.strip().endswith('another run is using it')
