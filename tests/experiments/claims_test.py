"""The program that reruns papers: what it writes, how it ends, and what it says to bad input."""

import importlib
import json

import pytest

from experiments import claims
from experiments.papers.contract import ClaimContext, Line
from tests.programs import call

HOLDS = Line('41', 'a', '> 0', 1.0, True)
FAILS = Line('41', 'b', '> 0', float('nan'), False, 'tried twice')
MISSING = Line.missing('41', 'c', '> 0', 'no data')


def with_lines(monkeypatch, *lines):
    """Puts a paper with these lines in the place of paper 41's module."""

    class Paper:
        @staticmethod
        def run(context):
            assert context.out.is_dir()
            return list(lines)

    monkeypatch.setattr(claims.importlib, 'import_module', lambda name: Paper)


@pytest.mark.parametrize(
    'lines, strict, code',
    [
        ((HOLDS,), '--strict', 0),
        ((HOLDS, FAILS), '--nostrict', 0),
        ((HOLDS, FAILS), '--strict', 1),
        ((HOLDS, MISSING), '--nostrict', 1),
    ],
    ids=['all_hold', 'one_fails', 'one_fails_strictly', 'one_is_missing'],
)
def test_the_exit_code_says_whether_every_line_was_measured_or_holds(
    monkeypatch, tmp_path, capsys, lines, strict, code
):
    with_lines(monkeypatch, *lines)
    assert call(claims, '--only=41', f'--out={tmp_path}', strict) == code
    written = json.loads((tmp_path / 'claims.json').read_text())
    assert [line['line'] for line in written] == [line.line for line in lines]
    for line in written:
        assert list(line) == ['paper', 'line', 'expected', 'measured', 'holds', 'note']
    table = (tmp_path / 'claims.md').read_text().splitlines()
    assert [row.split(' | ')[0] for row in table if row.startswith('| ')][2:] == [f'| {line.line}' for line in lines]
    printed = capsys.readouterr().out
    assert all(line.note in printed for line in lines)
    assert f'1 of {len(lines)} lines hold' in printed


def test_a_number_that_json_has_no_word_for_is_written_as_text(monkeypatch, tmp_path):
    with_lines(monkeypatch, FAILS, MISSING)
    claims.rerun(['41'], tmp_path)
    text = (tmp_path / 'claims.json').read_text()
    written = json.loads(text, parse_constant=lambda word: pytest.fail(f'{word} is no JSON'))
    assert [(line['measured'], line['holds']) for line in written] == [('nan', False), (None, None)]


def test_a_paper_that_fails_is_a_line_that_was_not_measured(monkeypatch, tmp_path, capsys):
    class Paper:
        @staticmethod
        def run(context):
            raise FloatingPointError('the loss is nan')

    monkeypatch.setattr(claims.importlib, 'import_module', lambda name: Paper)
    assert call(claims, '--only=41', f'--out={tmp_path}') == 1
    (line,) = json.loads((tmp_path / 'claims.json').read_text())
    assert line['holds'] is None and line['note'] == 'FloatingPointError: the loss is nan'
    assert 'Traceback' in capsys.readouterr().err


BAD = {
    '--only=411': "no paper '411'; did you mean '41'",
    '--only=41,x': "no paper 'x'; there are: ",
    '--size=huge': 'huge',
    '--onyl=41': "did you mean 'only'",
    '--set=a=b': '--set changes a config',
    '--data_dir=/no/such/folder': '/no/such/folder is not a folder',
}


@pytest.mark.parametrize('argument, message', BAD.items(), ids=BAD)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, argument, message):
    out = tmp_path / 'out'
    assert call(claims, f'--out={out}', argument) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not out.exists()


def test_an_out_that_cannot_be_written_is_found_before_anything_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(claims, 'run_paper', lambda *arguments: pytest.fail('it ran'))
    (tmp_path / 'file').write_text('')
    assert call(claims, '--only=41', f'--out={tmp_path / "file"}') == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_papers_are_found_by_listing_the_folder():
    assert claims.names()['41'] == '41_icl_linear_regression'
    for module in claims.names().values():
        assert callable(importlib.import_module(f'experiments.papers.{module}').run)


def test_data_sets_are_found_below_the_data_folder_but_for_size_tiny(tmp_path):
    (tmp_path / 'sst2').mkdir()
    without, small = ClaimContext('small', tmp_path), ClaimContext('small', tmp_path, tmp_path)
    tiny = ClaimContext('tiny', tmp_path, tmp_path)
    assert small.data('sst2') == str(tmp_path / 'sst2') and not small.lacks('sst2')
    assert small.lacks('books') and without.data('sst2') is None and without.lacks('sst2')
    assert ClaimContext('paper', tmp_path).lacks('sst2')
    with pytest.raises(FileNotFoundError, match='holds no books'):
        small.data('books')
    assert tiny.data('sst2') is None and not tiny.lacks('sst2')


def test_keys_of_a_rerun_depend_on_its_seed(tmp_path):
    context, other = ClaimContext('tiny', tmp_path), ClaimContext('tiny', tmp_path, seed=1)
    assert context.key(3) == ClaimContext('small', tmp_path).key(3)
    assert context.key(3) != context.key(4) and context.key(3) != other.key(3)


@pytest.mark.parametrize('rules', [{}, {'above': 0.0, 'below': 1.0}], ids=['none', 'two'])
def test_a_line_states_one_rule(rules):
    with pytest.raises(ValueError, match='one of above, below, near is needed'):
        Line.number('41', 'a', 0.5, **rules)


@pytest.mark.slow
def test_every_line_of_paper_41_holds_at_its_tiny_size(tmp_path):
    assert call(claims, '--only=41', '--size=tiny', f'--out={tmp_path}', '--strict') == 0
    lines = json.loads((tmp_path / 'claims.json').read_text())
    assert len(lines) == 30 and all(line['paper'] == '41' for line in lines)
    assert len({line['line'] for line in lines}) == len(lines)
    for name in ('circuits', 'dynamics', 'lengths', 'shifts'):
        assert (tmp_path / '41' / f'{name}.png').stat().st_size > 5000
