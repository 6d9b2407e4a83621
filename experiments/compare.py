"""Mixers against tasks: a table each, the best of several learning rates, and what is known exactly below them.

    python -m experiments.compare --out=runs/suite --workers=2                       the whole suite; hours, resumes
    python -m experiments.compare --tasks=mqar,parity --mixers=softmax,deltanet --out=runs/two
    python -m experiments.compare --tasks=lm_books --set data.path=DIR/books --mixers=softmax,gla --out=runs/books

A task is one of the suite (`experiments/suite.py`) or any config; a mixer is an entry of the table, an entry with
fields changed, as in softmax[window=16], or a hybrid, as in rg_lru+softmax. A cell is a mixer on a task: every learning
rate once, then further seeds at the best (`experiments/sweep.py`). It is a file, OUT/cells/<task>/<mixer>.json, and a
comparison that was cut short goes on with the cells that are not there. All mixers of a task are trained on the same
batches and scored on the same rows. Scores are `mean ± half the range` over seeds.

Writes OUT/README.md (all tables), OUT/compare.json and pictures; `--report` does only that, from the cells there are.
"""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import flags

from experiments import cli, configs, report, suite, sweep
from jattn import config as config_lib
from jattn.config import ConfigError, nearest
from jattn.mixers import MIXERS
from jattn.testbeds.task import Task
from jattn.training.experiment import Experiment

_TASKS = flags.DEFINE_list('tasks', list(suite.SUITE), 'Of the suite, or configs; comma-separated.')
flags.DEFINE_alias('configs', 'tasks')
flags.DEFINE_alias('testbeds', 'tasks')
_MIXERS = flags.DEFINE_list('mixers', list(suite.MIXERS), 'Comma-separated; NAME, NAME[field=value;...], or a+b+c.')
_RATES = flags.DEFINE_list('learning_rates', None, "Tried in every cell; default: the suite's, of a config its own.")
_SEEDS = flags.DEFINE_integer('seeds', 3, "Runs at the best rate; seeds count up from the config's.", lower_bound=1)
_WORKERS = flags.DEFINE_integer('workers', 1, 'Cells at a time, each in a process of its own.', lower_bound=1)
_REPORT = flags.DEFINE_bool('report', False, 'Runs nothing: tables and pictures of the cells there are.')
for _name in ('size', 'set', 'out'):
    flags.declare_key_flag(_name)


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is run: a mixer on a task, or (without a mixer) the exact solvers of a task.

    Attributes:
        task, mixer: names; the mixer `report.EXACT` is what is known exactly.
        config: the experiment.
        rates, seeds: learning rates, and runs at the best.
        tests: name -> a task that fitted models are scored on too.
    """

    task: str
    mixer: str
    config: Experiment
    rates: tuple[float, ...]
    seeds: int
    tests: dict[str, Task]

    @property
    def path(self) -> pathlib.PurePath:
        """Of its file, below OUT."""
        return pathlib.PurePath('cells', self.task, f'{self.mixer}.json')

    def asks(self) -> dict[str, Any]:
        """What the cell was asked for, as it stands in its file."""
        return {
            'config': config_lib.to_json(self.config),
            'rates': list(self.rates),
            'seeds': self.seeds,
            'tests': config_lib.to_json(tuple(self.tests.values())),
        }


def main(argv: Sequence[str]) -> int:
    """Runs the cells that are not there yet, writes the report, prints the tables."""
    out = pathlib.Path(cli.OUT.value or 'runs/compare')
    cells = list(make_cells(_TASKS.value, _MIXERS.value, cli.SIZE.value, cli.SET.value, _RATES.value, _SEEDS.value))
    missing = [cell for cell in cells if not is_done(cell, out)]
    if not _REPORT.value:
        run_cells(missing, out, _WORKERS.value)
        missing = []
    found = report.read(out, _TASKS.value, _MIXERS.value)
    for table in report.make_tables(found):
        cli.show_table(report.for_terminal(table))
        print(report.noise_line(table))
    report.write(out, found, command(), [(cell.task, cell.mixer) for cell in missing])
    print(f'written: {out / "README.md"}, {out / "compare.json"}')
    return 0


def command() -> str:
    """The command line that makes the comparison, without where it is written."""
    given = [_TASKS, _MIXERS, _RATES, _SEEDS]
    words = [flag.serialize() for flag in (flags.FLAGS[f.name] for f in given) if not flag.using_default_value]
    words += [f'--set={change}' for change in cli.SET.value]
    return ' '.join(['python -m experiments.compare', f'--size={cli.SIZE.value}', *words])


def make_cells(
    tasks: Sequence[str],
    mixers: Sequence[str],
    size: str,
    assignments: Sequence[str],
    rates: Sequence[str] | None,
    seeds: int,
) -> Iterator[Cell]:
    """All cells: what is known exactly first, then mixer by mixer, so that the quick ones are there soon."""
    chosen = None if rates is None else tuple(_number(rate) for rate in rates)
    for mixer in (report.EXACT, *mixers):
        for task in tasks:
            swaps = [] if mixer == report.EXACT else mixer_assignments(mixer)
            config, own_rates, tests = load(task, size, [*swaps, *assignments])
            yield Cell(task, mixer, config, chosen or own_rates, seeds, {} if mixer == report.EXACT else tests)


def load(task: str, size: str, assignments: Sequence[str]) -> tuple[Experiment, tuple[float, ...], dict[str, Task]]:
    """The experiment of a task, its learning rates, and what else fitted models are scored on."""
    if task not in suite.SUITE:
        if task not in configs.names():
            raise ConfigError(f'--tasks: no task {task!r}; {nearest(task, [*suite.SUITE, *configs.names()])}')
        config = configs.load(task, size, assignments)
        return config, (config.training.optimizer.peak_lr,), {}
    entry = suite.SUITE[task]
    config = configs.load(entry.config, size, [*entry.assignments(size), *assignments])
    tests = {} if size == 'tiny' else entry.tests
    others = {name: config_lib.override(config.data, changes, configs.TABLES) for name, changes in tests.items()}
    return config, suite.RATES, others


def mixer_assignments(name: str) -> list[str]:
    """The assignments that put a mixer into a config's model.

    >>> mixer_assignments('softmax[window=16;sinks=1]'), mixer_assignments('rg_lru+softmax')
    (['model.mixer=softmax', 'model.mixer.0.window=16', 'model.mixer.0.sinks=1'], ['model.mixer=rg_lru,softmax'])
    """
    parts = [part.removesuffix(']').partition('[') for part in name.split('+')]
    for entry, _, _ in parts:
        if entry not in MIXERS:
            raise ConfigError(f'--mixers: no mixer {entry!r}; {nearest(entry, MIXERS)}')
    changes = [
        f'model.mixer.{slot}.{change}'
        for slot, (_, _, fields) in enumerate(parts)
        for change in fields.split(';')
        if change
    ]
    return [f'model.mixer={",".join(entry for entry, _, _ in parts)}', *changes]


def _number(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float('inf'):
        raise ConfigError(f'--learning_rates={text}: must be positive numbers, comma-separated')
    return rate


def is_done(cell: Cell, out: pathlib.Path) -> bool:
    """Whether the cell's file is there; one that was asked for something else is an error."""
    if not (out / cell.path).exists():
        return False
    saved = json.loads((out / cell.path).read_text())['asks']
    changed = config_lib.difference(saved, json.loads(json.dumps(cell.asks())))
    # A field that the file has never heard of is newer than it: its default is what was run.
    changed = {field: pair for field, pair in changed.items() if pair[0] != '(absent)'}
    if changed:
        field, (old, new) = next(iter(changed.items()))
        raise ConfigError(f'{out / cell.path} was run with {field}={old}, not {new}: choose another --out')
    return True


def run_cells(cells: Sequence[Cell], out: pathlib.Path, workers: int) -> None:
    """Runs cells and writes their files as they end; with several workers a cell has a process of its own."""
    if workers == 1:
        for number, cell in enumerate(cells, 1):
            run_cell(cell, out, f'{number}/{len(cells)}')
            jax.clear_caches()
        return
    # A fresh process a cell: compiled programs of hundreds of cells would exhaust a process's memory maps.
    spawn = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, max_tasks_per_child=1) as pool:
        runs = [pool.submit(run_cell, cell, out, f'{n}/{len(cells)}') for n, cell in enumerate(cells, 1)]
        for run in concurrent.futures.as_completed(runs):
            run.result()


def run_cell(cell: Cell, out: pathlib.Path, number: str) -> None:
    """Runs one cell and writes its file, whole or not at all."""
    say = functools.partial(_say, f'[{number}] {cell.task} {cell.mixer}')
    if cell.mixer == report.EXACT:
        found = sweep.exact_rows(cell.config)
        say(f'{len(found["exact"])} exact baselines, {len(found["facts"])} facts')
    else:
        found = sweep.run_cell(cell.config, cell.rates, cell.seeds, cell.tests, say)
    path = out / cell.path
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{path.name}.{os.getpid()}')
    draft.write_text(json.dumps({'asks': cell.asks(), **report.versions(), **found}) + '\n')
    draft.rename(path)


def _say(prefix: str, text: str) -> None:
    print(f'{prefix}: {text}', flush=True)


if __name__ == '__main__':
    cli.run(main)
