"""Encoders on labelled rows, as a user runs them: they train, are evaluated, and resume."""

import json

import jax
import numpy as np
import pytest

from experiments import configs, run
from jattn.training.feed import make_feed
from jattn.training.loop import make_partition
from tests.marks import slow_where
from tests.programs import assert_same_run, call, lines_of

TINY = ('--config=fsdd', '--size=tiny')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('trained') / 'run'
    assert call(run, *TINY, f'--workdir={workdir}') == 0
    return workdir


@pytest.mark.parametrize('name', slow_where('sst2'.__ne__, ['mnist', 'ucr', 'sst2']))
def test_shrunk_it_trains_without_data_and_scores(name, tmp_path):
    assert call(run, f'--config={name}', '--size=tiny', f'--workdir={tmp_path / "run"}') == 0
    last = lines_of(tmp_path / 'run')[-1]
    assert last['step'] == 20 and 0 <= last['eval/accuracy'] <= 1 and np.isfinite(last['eval/loss'])


def test_eval_gives_the_last_evaluation_again(trained, capsys):
    assert call(run, '--mode=eval', f'--workdir={trained}') == 0
    printed = capsys.readouterr().out
    assert float(printed.split('eval/loss ')[1].split()[0]) == pytest.approx(lines_of(trained)[-1]['eval/loss'], 1e-6)
    assert 'eval/accuracy' in printed


def test_a_run_that_goes_on_is_one_that_never_stopped(trained, tmp_path):
    workdir = tmp_path / 'run'
    assert call(run, *TINY, f'--workdir={workdir}', '--set=training.steps=10') == 0
    assert call(run, *TINY, f'--workdir={workdir}') == 0
    assert_same_run(workdir, trained)


def test_padding_changes_no_evaluation(trained):
    config = configs.load('fsdd', 'tiny')
    feed = make_feed(config)
    partition = make_partition(config, feed)
    state = partition.init(jax.random.key(0))
    batch = feed.eval_batches()[0]
    assert np.any(batch.segments == 0)
    other = batch.replace(inputs=np.where(batch.segments[..., None] > 0, batch.inputs, 7.0).astype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, *(partition.evaluate(state, own) for own in (batch, other)))


def test_a_trunk_without_an_end_is_refused_in_one_line(tmp_path, capsys):
    assert call(run, *TINY, '--set=model=decoder', f'--workdir={tmp_path / "run"}') == 2
    error = capsys.readouterr().err
    assert 'FSDDConfig has a class a row' in error and '--set model=encoder' in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()


def test_the_config_of_a_run_names_its_data(trained):
    saved = json.loads((trained / 'config.json').read_text())
    assert saved['data']['target'] == 'digit' and 'FSDDConfig' in json.dumps(saved['data'])
