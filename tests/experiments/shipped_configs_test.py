"""The shipped configs: shrunk, they train without any data; full size, they say what data they miss."""

import math

import pytest

from experiments import configs, run, sweep
from jattn.data import CORPORA
from jattn.testbeds import TESTBEDS
from jattn.training.feed import make_feed
from tests.marks import slow_where
from tests.programs import call, lines_of

SCORES = {
    'associative_recall': ('eval/accuracy', 'eval/sequence_accuracy'),
    'passkey': ('eval/accuracy', 'eval/sequence_accuracy'),
    'landmarked': ('eval/accuracy', 'eval/sequence_accuracy'),
    'events': ('eval/wait_error', 'eval/accuracy'),
    'control': (),
    'flow_matching': ('eval/distance/best',),
    'ett': ('eval/mse', 'eval/mae'),
    'dna': ('eval/bits_per_base', 'eval/accuracy'),
}
SLOW = ('passkey', 'landmarked', 'flow_matching')  # testbeds whose trunks have tests of their own


@pytest.mark.parametrize('name', slow_where(SLOW.__contains__, SCORES))
def test_shrunk_it_trains_without_data_and_scores(name, tmp_path):
    assert call(run, f'--config={name}', '--size=tiny', f'--workdir={tmp_path / "run"}') == 0
    last = lines_of(tmp_path / 'run')[-1]
    assert last['step'] == 20 and all(math.isfinite(last[score]) for score in ('eval/loss', *SCORES[name]))


@pytest.mark.slow
def test_dna_classifies_and_recall_tells_overwritten_keys_apart(tmp_path):
    arguments = ['--config=dna', '--size=tiny', '--set=data.task=classify', '--set=training.steps=2']
    assert call(run, *arguments, f'--workdir={tmp_path / "a"}') == 0
    assert 0 <= lines_of(tmp_path / 'a')[-1]['eval/accuracy'] <= 1
    arguments = ['--config=associative_recall', '--size=tiny', '--set=data.overwrites=1', '--set=training.steps=2']
    settings = ['--set=data.tokens=16', f'--workdir={tmp_path / "b"}']
    assert call(run, *arguments, *settings) == 0
    assert {'eval/updated_accuracy', 'eval/untouched_accuracy'} <= lines_of(tmp_path / 'b')[-1].keys()


@pytest.mark.parametrize('name', ['associative_recall', 'passkey'])
def test_exact_baselines_of_a_testbed_stand_in_its_table(name):
    known = sweep.exact_rows(configs.load(name, 'tiny'))
    assert known['exact']['look_up']['loss'] == 0 and known['facts']['chance_accuracy'] > 0


@pytest.mark.parametrize('name', ['lm_books', 'lm_wikitext2'])
def test_text_with_held_out_names_asks_for_its_folder(name, tmp_path, capsys):
    assert call(run, f'--config={name}', f'--workdir={tmp_path / "run"}') == 2
    error = capsys.readouterr().err
    assert 'matches no file of data.path=None, the standard library: give the folder' in error
    assert error.count('\n') == 1 and not (tmp_path / 'run').exists()
    assert len(make_feed(configs.load(name, 'tiny')).eval_batches()) == 2


def test_books_are_held_out_by_name(tmp_path):
    for title in (*configs.load('lm_books').data.train, 'pride_and_prejudice', 'dracula'):
        (tmp_path / f'{title}.txt').write_text(f'{title} ' * 1000)
    data = configs.load('lm_books', 'small', [f'data.path={tmp_path}']).data
    train, held_out = (bytes(data.rows(split).stream) for split in ('train', 'validation'))
    assert b'dracula' not in train + held_out and b'pride' not in train and b'pride' in held_out


def test_every_testbed_has_a_config_of_its_name_and_every_corpus_runs_without_a_file():
    assert set(TESTBEDS) <= set(configs.names())
    for name, corpus in CORPORA.items():
        assert len(corpus.tiny().rows('train')) > 100, name


def test_the_list_names_corpora(capsys):
    assert call(run, '--list') == 0
    printed = capsys.readouterr().out
    assert 'text, series, dna' in printed and 'passkey' in printed
