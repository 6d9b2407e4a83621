"""Comparisons: any config, several seeds, and a line that says what is noise."""

import json
import statistics

import pytest

from experiments import compare, configs
from tests.programs import call, lines_of


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """A table of one mixer on a text, two seeds."""
    text, out = tmp_path_factory.mktemp('text'), tmp_path_factory.mktemp('out')
    for i in range(20):
        (text / f'{i}.txt').write_text(f'line {i} of a text\n' * (20 + i))
    arguments = ['--configs=lm_bytes', '--mixers=rg_lru', '--size=tiny', f'--set=data.path={text}', f'--out={out}']
    assert call(compare, *arguments, '--seeds=2') == 0
    return out, arguments


def test_scores_are_means_over_seeds_with_half_their_range(compared):
    out, _ = compared
    row, fact = json.loads((out / 'compare.json').read_text())['lm_bytes']
    folders = [out / 'lm_bytes' / name for name in ('rg_lru', 'rg_lru_seed1')]
    assert [json.loads((folder / 'config.json').read_text())['training']['seed'] for folder in folders] == [0, 1]
    for score in ('loss', 'bits_per_byte', 'accuracy'):
        values = [lines_of(folder)[-1][f'eval/{score}'] for folder in folders]
        assert row['seeds'][score] == values
        assert row[score] == statistics.mean(values)
        assert row['spread'][score] == abs(values[0] - values[1]) / 2
    assert row['spread']['loss'] > 0 and row['tokens_per_second'] > 0
    mixers = configs.load('lm_bytes', 'tiny', ['model.mixer=rg_lru']).model.mixers()
    assert row['state_bytes'] == sum(mixer.state_bytes(64, 'float32') for mixer in mixers)
    assert fact == {'name': 'fact: uniform_bits_per_byte', 'bits_per_byte': 8.0}


def test_the_table_says_how_much_is_noise(compared, capsys):
    out, arguments = compared
    page = (out / 'compare.md').read_text()
    assert ' ± ' in page and 'Between 2 seeds the bits_per_byte of a row moves by ±' in page
    assert '| fact: uniform_bits_per_byte |  | 8 |' in page
    before = [(out / 'lm_bytes' / name / 'metrics.jsonl').read_bytes() for name in ('rg_lru', 'rg_lru_seed1')]
    assert call(compare, *arguments) == 0
    assert 'One seed a row' in capsys.readouterr().out
    after = [(out / 'lm_bytes' / name / 'metrics.jsonl').read_bytes() for name in ('rg_lru', 'rg_lru_seed1')]
    assert before == after


def test_the_noise_is_the_mean_and_the_largest_half_range():
    rows = [{'loss': 1.0, 'spread': {'loss': s}, 'seeds': {'loss': [1 - s, 1 + s]}} for s in (0.1, 0.3)]
    assert '±0.2 on average, ±0.3 at most' in compare.noise_line(rows)


def test_an_unknown_config_is_named_with_the_near_one(tmp_path, capsys):
    assert call(compare, '--configs=lm_byte', '--mixers=rg_lru', f'--out={tmp_path}') == 2
    assert "no config 'lm_byte'; did you mean 'lm_bytes'?" in capsys.readouterr().err
    assert call(compare, '--testbeds=icl_linea', '--mixers=rg_lru', f'--out={tmp_path}') == 2
    assert "did you mean 'icl_linear'?" in capsys.readouterr().err
