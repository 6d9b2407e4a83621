"""Reruns the papers' claims at small scale and prints expected beside measured.

    python -m experiments.claims --only=41 --out=runs/claims
    python -m experiments.claims --size=tiny --strict

Writes OUT/claims.json, a list of {paper, line, expected, measured, holds, note}, and OUT/claims.md, the tables that
PAPERS.md shows, after every paper, and the pictures of paper NN into OUT/NN. Ends with 0 when every line was measured,
with 1 when one was not, or (--strict) does not hold. A paper is a module `experiments/papers/NN_name.py`; see
`experiments/papers/contract.py`.
"""

import importlib
import json
import os
import pathlib
import re
import time
import traceback
from collections.abc import Sequence

import rich.console
import rich.markup
import rich.table
from absl import flags

from experiments import cli, papers
from experiments.papers.contract import ClaimContext, Line
from jattn.config import ConfigError, nearest
from jattn.training.writers import show

_ONLY = flags.DEFINE_list('only', [], 'Numbers of papers, comma-separated, as in 41,52b; default: all there are.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Folder of data sets, for the papers that read some.')
_STRICT = flags.DEFINE_bool('strict', False, 'Ends with 1 when a line does not hold.')
_SEED = flags.DEFINE_integer('seed', 0, 'Root of all randomness.')
for _name in ('size', 'out'):
    flags.declare_key_flag(_name)


def main(argv: Sequence[str]) -> int:
    """Reruns the papers that were asked for."""
    if cli.SET.value:
        raise ConfigError('--set changes a config, and claims have none: choose --size')
    data_dir = pathlib.Path(_DATA_DIR.value) if _DATA_DIR.value else None
    if data_dir and not data_dir.is_dir():
        raise ConfigError(f'--data_dir: {data_dir} is not a folder')
    out = pathlib.Path(cli.OUT.value or 'runs/claims')
    if cli.SIZE.value != 'paper':  # half of a small claim is compilation, and its small programs run no slower
        os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=1'
    lines = rerun(_ONLY.value, out, size=cli.SIZE.value, data_dir=data_dir, seed=_SEED.value)
    return exit_code(lines, strict=_STRICT.value)


def names() -> dict[str, str]:
    """The papers there are, number -> module name: found by listing the folder, in the order of their numbers."""
    files = sorted(pathlib.Path(papers.__file__).parent.glob('*.py'))
    found = (re.fullmatch(r'(\d\d[a-z]?)_\w+', file.stem) for file in files)
    return {match[1]: match[0] for match in found if match}


def rerun(
    only: Sequence[str], out: pathlib.Path, size: str = 'small', data_dir: pathlib.Path | None = None, seed: int = 0
) -> list[Line]:
    """Reruns papers one after another, printing a table each; a paper that fails is a line that was not measured.

    Args:
        only: their numbers; empty: all.
        out: folder of claims.json and of a folder of pictures a paper.
        size: 'tiny', 'small' or 'paper'.
        data_dir: folder of data sets.
        seed: root of all randomness.

    Raises:
        ConfigError: there is no such paper.
        OSError: `out` cannot be written; found before anything runs.
    """
    known = names()
    for number in only:
        if number not in known:
            raise ConfigError(f'--only: no paper {number!r}; {nearest(number, known)}')
    chosen = list(dict.fromkeys(only)) or list(known)
    lines: list[Line] = []
    write_lines(lines, out)
    for number in chosen:
        folder = out / number
        folder.mkdir(exist_ok=True)
        title = known[number].partition('_')[2].replace('_', ' ')
        print(f'paper {number}: {title} ({size})')
        started = time.monotonic()
        new = run_paper(known[number], ClaimContext(size, folder, data_dir, seed))
        rich.console.Console().print(make_table(f'{number} {title}, {time.monotonic() - started:.0f} s', new))
        lines += new
        write_lines(lines, out)
    print(f'written: {out / "claims.json"}; {summary(lines)}')
    return lines


def run_paper(module: str, context: ClaimContext) -> list[Line]:
    """The lines of one paper. Its failure is printed and becomes a line, so that the other papers still run."""
    number = module.partition('_')[0]
    try:
        return importlib.import_module(f'experiments.papers.{module}').run(context)
    except Exception as error:
        traceback.print_exc()
        note = f'{type(error).__name__}: {" ".join(str(error).split())}'
        return [Line.missing(number, f'{module} runs to its end', 'yes', note)]


def write_lines(lines: list[Line], out: pathlib.Path) -> None:
    """Writes OUT/claims.json and OUT/claims.md, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    as_json = json.dumps([line.to_json() for line in lines], indent=2, ensure_ascii=False) + '\n'
    for name, text in (('claims.json', as_json), ('claims.md', as_markdown(lines))):
        swap = out / 'claims.tmp'
        swap.write_text(text)
        os.replace(swap, out / name)


def as_markdown(lines: list[Line]) -> str:
    """A table a paper, without the notes.

    >>> print(as_markdown([Line.number('41', 'step size', 0.887, near=(0.879, 0.04))]))
    41: 1 of 1 lines hold
    <BLANKLINE>
    | line | expected | measured | holds |
    | --- | --- | --- | --- |
    | step size | 0.879 ± 0.04 | 0.887 | yes |
    <BLANKLINE>
    """
    tables, words = [], {True: 'yes', False: '**no**', None: 'not measured'}
    for paper in dict.fromkeys(line.paper for line in lines):
        own = [line for line in lines if line.paper == paper]
        rows = [('line', 'expected', 'measured', 'holds'), ('---',) * 4]
        rows += [(line.line, line.expected, _measured(line), words[line.holds]) for line in own]
        cells = [' | '.join(cell.replace('|', '\\|') for cell in row) for row in rows]
        tables.append(f'{paper}: {summary(own)}\n\n' + ''.join(f'| {row} |\n' for row in cells))
    return '\n'.join(tables)


def _measured(line: Line) -> str:
    return show(line.measured) if isinstance(line.measured, float) else line.measured or ''


def make_table(title: str, lines: list[Line]) -> rich.table.Table:
    """The lines for a terminal."""
    table = rich.table.Table(title=title, caption='the note of a claim stands below it', show_lines=True)
    table.add_column('claim')
    for name in ('expected', 'measured', 'holds'):
        table.add_column(name, justify='right', no_wrap=True)
    words = {True: '[green]yes', False: '[bold red]no', None: '[bold red]not measured'}
    for line in lines:
        cells = (line.line, line.note, line.expected, _measured(line))
        claim, note, expected, measured = map(rich.markup.escape, cells)
        table.add_row(f'{claim}\n[dim]{note}' if note else claim, expected, measured, words[line.holds])
    return table


def summary(lines: list[Line]) -> str:
    """How many hold.

    >>> summary([Line('41', 'a', '> 0', 1.0, True), Line.missing('41', 'b', '> 0', 'no data')])
    '1 of 2 lines hold, 1 not measured'
    """
    unmeasured = sum(line.holds is None for line in lines)
    text = f'{sum(line.holds is True for line in lines)} of {len(lines)} lines hold'
    return f'{text}, {unmeasured} not measured' if unmeasured else text


def exit_code(lines: list[Line], strict: bool) -> int:
    """0: every line was measured, and (strict) holds; else 1.

    >>> fails = Line('41', 'a', '> 0', -1.0, False)
    >>> exit_code([fails], strict=False), exit_code([fails], strict=True)
    (0, 1)
    """
    return int(any(line.holds is None or (strict and not line.holds) for line in lines))


if __name__ == '__main__':
    cli.run(main)
