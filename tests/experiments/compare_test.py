"""Comparisons: cells that resume, the best learning rate, seeds, a line that says what is noise, the report."""

import json
import statistics

import pytest

from experiments import compare, configs, report, suite, sweep
from jattn.training.loop import train
from tests.programs import call

CELLS = ['--tasks=parity', '--mixers=rg_lru,softmax[window=4]', '--size=tiny', '--learning_rates=1e-3,1e-2']


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """A task of the suite, two mixers, two rates, two seeds."""
    out = tmp_path_factory.mktemp('out')
    assert call(compare, *CELLS, '--seeds=2', f'--out={out}') == 0
    return out


def cell_of(out, mixer):
    return json.loads((out / 'cells' / 'parity' / f'{mixer}.json').read_text())


def test_the_best_rate_has_the_further_seeds(compared):
    for mixer in ('rg_lru', 'softmax[window=4]'):
        cell = cell_of(compared, mixer)
        accuracies = {rate: run['metrics']['accuracy'] for rate, run in cell['rates'].items()}
        assert list(accuracies) == ['0.001', '0.01'] and cell['score'] == 'accuracy'
        assert accuracies[f'{cell["rate"]:g}'] == max(accuracies.values())
        assert [run['seed'] for run in cell['seeds']] == [0, 1]
        assert cell['seeds'][0]['metrics'] == cell['rates'][f'{cell["rate"]:g}']['metrics']
        assert cell['seeds'][0]['metrics'] != cell['seeds'][1]['metrics']


def test_scores_are_means_over_seeds_with_half_their_range(compared):
    row = json.loads((compared / 'compare.json').read_text())['parity'][0]
    runs = cell_of(compared, 'rg_lru')['seeds']
    for score in ('loss', 'accuracy', 'sequence_accuracy'):
        values = [run['metrics'][score] for run in runs]
        assert row['seeds'][score] == values and row[score] == statistics.mean(values)
        assert row['spread'][score] == abs(values[0] - values[1]) / 2
    config = compare.load('parity', 'tiny', ['model.mixer=rg_lru'])[0]
    assert row['state bytes'] == sum(m.state_bytes(config.data.tokens, 'float32') for m in config.model.mixers())


def test_what_is_known_exactly_stands_below_the_mixers(compared):
    names = [row['name'] for row in json.loads((compared / 'compare.json').read_text())['parity']]
    assert names[:2] == ['rg_lru', 'softmax[window=4]']
    assert names[2:4] == ['exact: automaton', 'exact: majority'] and 'fact: chance_accuracy' in names
    page = (compared / 'README.md').read_text()
    assert '## T4 State tracking' in page and 'best exact solver' in page and 'Mean rank over 1 tasks: parity' in page
    assert (compared / 'positions.png').exists()


def test_a_comparison_goes_on_with_the_cells_that_are_not_there(compared, capsys):
    paths = {mixer: compared / 'cells' / 'parity' / f'{mixer}.json' for mixer in ('rg_lru', 'softmax[window=4]')}
    before = {mixer: path.read_bytes() for mixer, path in paths.items()}
    kept = cell_of(compared, 'rg_lru')
    paths['rg_lru'].unlink()
    assert call(compare, *CELLS, '--seeds=2', f'--out={compared}') == 0
    assert '[1/1] parity rg_lru' in capsys.readouterr().out
    assert paths['softmax[window=4]'].read_bytes() == before['softmax[window=4]']
    again = cell_of(compared, 'rg_lru')
    for one in (kept, again):
        one.pop('compile_seconds')
        for run in [*one['rates'].values(), *one['seeds']]:
            run.pop('seconds')
    assert kept == again


def test_cells_of_another_comparison_are_not_taken_for_ones_own(compared, capsys):
    assert call(compare, *CELLS, '--seeds=3', f'--out={compared}') == 2
    assert 'was run with seeds=2, not 3: choose another --out' in capsys.readouterr().err
    assert call(compare, *CELLS, '--seeds=2', '--set=training.steps=7', f'--out={compared}') == 2
    assert 'training.steps=20, not 7' in capsys.readouterr().err


def test_a_report_of_unfinished_cells_says_so(compared, capsys):
    assert (
        call(compare, *CELLS[:1], '--mixers=rg_lru,gla', *CELLS[2:], '--seeds=2', f'--out={compared}', '--report') == 0
    )
    assert 'Not run yet (1 cells): gla (all tasks).' in (compared / 'README.md').read_text()


def test_a_run_that_is_not_finite_has_failed_and_is_never_the_best():
    config = compare.load('mqar', 'tiny', ['model.mixer=softmax', 'training.optimizer.clip_norm=none'])[0]
    said = []
    cell = sweep.run_cell(config, (1e30, 1e-3), 1, {}, said.append)
    assert 'not finite' in cell['rates']['1e+30']['failed'] and cell['rate'] == 1e-3
    assert any('not finite at step' in line for line in said)
    row = report.mixer_row('softmax', cell | {'asks': {'config': {'training': {'steps': 20}}}})
    assert row['name'] == 'softmax' and row['rate'] == '0.001'
    none = sweep.run_cell(config, (1e30,), 2, {}, said.append)
    assert none['rate'] is None and none['seeds'] == []
    assert report.mixer_row('softmax', none) == {'name': 'softmax', 'accuracy': 'failed'}


def test_a_cell_takes_the_steps_that_the_training_loop_takes(tmp_path):
    config = compare.load('mqar', 'tiny', ['model.mixer=softmax'])[0]
    last = train(config, tmp_path / 'run')
    rate = config.training.optimizer.peak_lr
    run = sweep.run_cell(config, (rate,), 1, {}, lambda line: None)['seeds'][0]
    assert run['metrics']['loss'] == pytest.approx(last['eval/loss'], rel=1e-5)


def test_every_task_of_the_suite_builds_at_every_size():
    for task in suite.SUITE:
        for size in ('tiny', 'small', 'paper'):
            config, rates, tests = compare.load(task, size, [])
            assert config.trunk.flops(8) > 0 and rates == suite.RATES
            assert set(tests) <= set(suite.SUITE[task].tests)


def test_tests_named_by_a_number_are_the_points_of_a_picture():
    scores = {'2x': 0.25, '12 pairs': 0.1, '4 pairs': 0.9}
    run = {'metrics': {'accuracy': 0.5}, 'tests': {name: {'accuracy': score} for name, score in scores.items()}}
    cells = {'gla': {'score': 'accuracy', 'seeds': [run], 'asks': {'config': {'data': {'pairs': 8}}}}}
    assert report.lengths_of(cells) == {'gla': ([1, 2], [0.5, 0.25])}
    assert report.pairs_of(cells) == {'gla': ([4, 8, 12], [0.9, 0.5, 0.1])}
    assert report.pairs_of({'exact': {'exact': {}, 'facts': {}}}) == {}


def test_the_noise_is_the_mean_and_the_largest_half_range():
    rows = [{'name': 'a', 'loss': 1.0, 'spread': {'loss': s}} for s in (0.1, 0.3)]
    assert '±0.2 on average, ±0.3 at most' in report.noise_line(report.Table('t', rows))
    assert 'One seed a row' in report.noise_line(report.Table('t', [{'name': 'a', 'loss': 1.0, 'spread': {}}]))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--tasks=lm_byte'], "no task 'lm_byte'; did you mean 'lm_bytes'?"),
        (['--testbeds=icl_linea'], "did you mean 'icl_linear'?"),
        (['--mixers=sofmax'], "no mixer 'sofmax'; did you mean 'softmax'?"),
        (['--mixers=softmax[windw=4]'], "has no field 'windw'; did you mean 'window'?"),
        (['--learning_rates=1e-3,fast'], '--learning_rates=fast: must be positive numbers'),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys):
    given = ['--tasks=parity', '--mixers=rg_lru', '--size=tiny', f'--out={tmp_path}', *arguments]
    assert call(compare, *given) == 2
    assert message in capsys.readouterr().err


def test_a_corpus_is_compared_too(tmp_path):
    text, out = tmp_path / 'text', tmp_path / 'out'
    text.mkdir()
    for i in range(20):
        (text / f'{i}.txt').write_text(f'line {i} of a text\n' * (20 + i))
    given = ['--configs=lm_bytes', '--mixers=rg_lru', '--size=tiny', f'--set=data.path={text}', f'--out={out}']
    assert call(compare, *given, '--seeds=1') == 0
    row, fact = json.loads((out / 'compare.json').read_text())['lm_bytes']
    assert row['bits_per_byte'] > 0 and row['rate'] == f'{configs.load("lm_bytes").training.optimizer.peak_lr:g}'
    assert fact == {'name': 'fact: uniform_bits_per_byte', 'bits_per_byte': 8.0}
