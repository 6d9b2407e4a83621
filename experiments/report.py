"""The page of a comparison: tables and pictures from the cells there are (`experiments/compare.py` runs them).

A table of every group of the suite, mixers by tasks; a table of every task with all its scores, what the models cost,
and below them the exact solvers and facts; the mean rank over the tasks that every mixer has been run on. Pictures show
accuracy by position in a row, on rows of other lengths and of other numbers of pairs.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import rich.table
from matplotlib.figure import Figure

from experiments import suite
from jattn.training.writers import show

EXACT = 'exact'  # the cell of what is known exactly of a task
# The scores that a task's table shows, in this order, of those that its metrics have.
SCORES = (
    'accuracy',
    'pairwise',
    'forced_choice',
    'bias_gap',
    'sequence_accuracy',
    'last_accuracy',
    'updated_accuracy',
    'untouched_accuracy',
    'loss',
    'bits_per_byte',
    'bits_per_base',
    'mse',
    'mae',
)
COLORS = (*(f'C{n}' for n in range(10)), 'black', 'gold', 'darkblue', 'lime')  # enough for the mixers of the suite
Row = dict[str, Any]
Found = Mapping[str, Mapping[str, Mapping[str, Any]]]  # task -> mixer -> cell


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows by name; a cell is text, a number, or absent. `spread` of a row is half the range over seeds, by column."""

    title: str
    rows: list[Row]

    @property
    def columns(self) -> list[str]:
        """All columns, in the order of their first appearance."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if name not in ('spread', 'seeds')]


def versions() -> dict[str, Any]:
    """What ran: packages, the device, its cores."""
    packages = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax')}
    device = jax.devices()[0].device_kind
    return {'versions': packages | {'python': platform.python_version()}, 'device': device, 'cores': os.cpu_count()}


def read(out: pathlib.Path, tasks: Sequence[str], mixers: Sequence[str]) -> Found:
    """The cells there are."""
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        for mixer in (*mixers, EXACT):
            path = out / 'cells' / task / f'{mixer}.json'
            if path.exists():
                found.setdefault(task, {})[mixer] = json.loads(path.read_text())
    return found


def make_tables(found: Found) -> list[Table]:
    """One a task, in the order of the tasks."""
    return [Table(task, task_rows(cells)) for task, cells in found.items()]


def task_rows(cells: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The rows of a task: mixers, then exact solvers, then facts."""
    rows = [mixer_row(mixer, cell) for mixer, cell in cells.items() if mixer != EXACT]
    known = cells.get(EXACT, {'exact': {}, 'facts': {}})
    for name, metrics in known['exact'].items():
        rows.append({'name': f'exact: {name}', **{score: metrics[score] for score in SCORES if score in metrics}})
    return rows + [{'name': f'fact: {name}', column_of(name): value} for name, value in known['facts'].items()]


def column_of(fact: str) -> str:
    """The score that a fact belongs to: the one that its name ends with, else the loss.

    >>> column_of('chance_accuracy'), column_of('chance_sequence_accuracy'), column_of('floor')
    ('accuracy', 'sequence_accuracy', 'loss')
    """
    return max((score for score in SCORES if fact.endswith(score)), key=len, default='loss')


def finished(cell: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs at the best rate that did not fail; none of what is known exactly."""
    return [run for run in cell.get('seeds', []) if 'failed' not in run]


def mixer_row(mixer: str, cell: Mapping[str, Any]) -> Row:
    """Means over seeds; a run that failed leaves the others, a mixer whose runs all failed a row that says so."""
    runs = finished(cell)
    if not runs:
        return {'name': mixer, cell.get('score') or 'accuracy': 'failed'}
    values = {score: [run['metrics'][score] for run in runs] for score in SCORES if score in runs[0]['metrics']}
    for test, scored in runs[0].get('tests', {}).items():
        values[f'{test} {cell["score"]}'] = [run['tests'][test][cell['score']] for run in runs]
        for score in SCORES:  # what only these rows have
            if score in scored and score not in values:
                values[score] = [run['tests'][test][score] for run in runs]
    steps = cell['asks']['config']['training']['steps']
    return {
        'name': mixer + ('' if len(runs) == len(cell['seeds']) else f' ({len(cell["seeds"]) - len(runs)} failed)'),
        **{name: statistics.mean(numbers) for name, numbers in values.items()},
        'rate': f'{cell["rate"]:g}',
        'steps/s': steps / statistics.median(run['seconds'] for run in runs),
        'state bytes': cell['state_bytes'],
        'parameters': cell['parameters'],
        'mflops': cell['mflops'],
        'spread': {name: (max(numbers) - min(numbers)) / 2 for name, numbers in values.items() if len(runs) > 1},
        'seeds': values,
    }


def noise_line(table: Table) -> str:
    """How far the seed alone moves the first score, so that nobody reads more into the table."""
    rows = [row for row in table.rows if row.get('spread')]
    if not rows:
        return 'One seed a row: how far a seed alone moves a score is not known (--seeds=3).'
    score = next(score for score in SCORES if score in rows[0])
    spreads = [row['spread'][score] for row in rows]
    return (
        f'Between seeds the {score} of a row moves by ±{show(statistics.mean(spreads))} on average, '
        f'±{show(max(spreads))} at most (half the range): differences between rows below that are noise.'
    )


def group_tables(found: Found) -> list[Table]:
    """Mixers by tasks, the main score, a table a group of the suite; tasks outside the suite are in none."""
    groups: dict[str, list[str]] = {}
    for task in found:
        if task in suite.SUITE:
            groups.setdefault(suite.SUITE[task].group, []).append(task)
    return [Table(group, group_rows(found, tasks)) for group, tasks in groups.items()]


def group_rows(found: Found, tasks: Sequence[str]) -> list[Row]:
    """A row a mixer, and below them what guessing and the best exact solver reach."""
    rows: dict[str, Row] = {}
    for task in tasks:
        score = score_of(found[task])
        for mixer, cell in found[task].items():
            if mixer != EXACT:
                row, line = mixer_row(mixer, cell), rows.setdefault(mixer, {'name': mixer, 'spread': {}})
                line[task], line['spread'][task] = row.get(score, ''), row.get('spread', {}).get(score)
        exact = {name: metrics[score] for name, metrics in found[task].get(EXACT, {'exact': {}})['exact'].items()}
        if exact:
            best = (max if score == 'accuracy' else min)(exact, key=exact.get)
            rows.setdefault('best exact solver', {'name': 'best exact solver'})[task] = f'{show(exact[best])} ({best})'
    last = rows.pop('best exact solver', None)
    return [*rows.values(), *([last] if last else [])]


def score_of(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """The main score of a task."""
    return next((cell['score'] for name, cell in cells.items() if name != EXACT and cell['score']), 'loss')


def summary(found: Found) -> Table | None:
    """The mean rank of every mixer over the tasks that all have been run on; None where there is no such task."""
    mixers = list(dict.fromkeys(mixer for cells in found.values() for mixer in cells if mixer != EXACT))
    complete = [task for task, cells in found.items() if all(mixer in cells for mixer in mixers)]
    if not complete or len(mixers) < 2:
        return None
    ranks: dict[str, list[float]] = {mixer: [] for mixer in mixers}
    speeds: dict[str, list[float]] = {mixer: [] for mixer in mixers}
    for task in complete:
        score = score_of(found[task])
        sign = 1 if score == 'accuracy' else -1
        lines = {mixer: mixer_row(mixer, found[task][mixer]) for mixer in mixers}
        values = {mixer: sign * line[score] if 'steps/s' in line else float('-inf') for mixer, line in lines.items()}
        for mixer, value in values.items():
            better = sum(other > value for other in values.values())
            equal = sum(other == value for other in values.values())
            ranks[mixer].append(better + (equal + 1) / 2)
            speeds[mixer] += [lines[mixer]['steps/s']] if 'steps/s' in lines[mixer] else []
    rows = [
        {
            'name': mixer,
            'mean rank': statistics.mean(ranks[mixer]),
            'first': sum(rank < 2 for rank in ranks[mixer]),
            **({'steps/s': statistics.median(speeds[mixer])} if speeds[mixer] else {}),
        }
        for mixer in sorted(mixers, key=lambda mixer: statistics.mean(ranks[mixer]))
    ]
    return Table(f'Mean rank over {len(complete)} tasks: {", ".join(complete)}', rows)


def for_terminal(table: Table) -> rich.table.Table:
    """The table for a terminal."""
    shown = rich.table.Table(title=table.title)
    for name in table.columns:
        shown.add_column(name, justify='left' if name == 'name' else 'right')
    for row in table.rows:
        shown.add_row(*(text_of(row, name) for name in table.columns))
    return shown


def markdown(table: Table) -> str:
    """The table as Markdown, under its title."""
    names = table.columns
    lines = ['| ' + ' | '.join(names) + ' |', '| ' + ' | '.join('---' for _ in names) + ' |']
    lines += ['| ' + ' | '.join(text_of(row, name) for name in names) + ' |' for row in table.rows]
    return '\n'.join([f'## {table.title}', '', *lines, ''])


def text_of(row: Row, name: str) -> str:
    """A cell of a table."""
    value = row.get(name, '')
    if isinstance(value, str):
        return value
    spread = row.get('spread', {}).get(name)
    return show(value) + ('' if spread is None else f' ± {spread:.2g}')


def write(out: pathlib.Path, found: Found, command: str, missing: Sequence[tuple[str, str]]) -> None:
    """README.md, compare.json and the pictures."""
    tables = make_tables(found)
    ranks = summary(found)
    pictures = draw(found, out)
    parts = [f'# Comparison\n\n    {command}\n\n{_provenance(found)}\n']
    if missing:
        tasks = {*found, *(task for task, _ in missing)}
        parts.append(f'Not run yet ({len(missing)} cells): {_by_mixer(missing, len(tasks))}.\n')
    parts += [markdown(table) for table in ([ranks] if ranks else [])]
    parts += [markdown(table) for table in group_tables(found)]
    parts += [f'![{path.stem}]({path.name})\n' for path in pictures]
    parts += [markdown(table) + f'\n{noise_line(table)}\n' for table in tables]
    (out / 'README.md').write_text('\n'.join(parts))
    (out / 'compare.json').write_text(json.dumps({table.title: table.rows for table in tables}, indent=1) + '\n')


def _by_mixer(cells: Sequence[tuple[str, str]], tasks: int) -> str:
    """Cells (task, mixer) in words.

    >>> _by_mixer([('mqar', 'gla'), ('parity', 'gla'), ('mqar', 'aaren')], 2)
    'gla (all tasks), aaren (mqar)'
    """
    mixers: dict[str, list[str]] = {}
    for task, mixer in cells:
        mixers.setdefault(mixer, []).append(task)
    return ', '.join(f'{m} ({"all tasks" if len(own) == tasks else ", ".join(own)})' for m, own in mixers.items())


def _provenance(found: Found) -> str:
    """Who was scored how, on which machine, in one paragraph."""
    cells = [cell for task in found.values() for name, cell in task.items() if name != EXACT]
    if not cells:
        return ''
    each = [run['seconds'] for cell in cells for run in _runs(cell) if 'seconds' in run]
    compiled = [cell['compile_seconds'] for cell in cells if 'compile_seconds' in cell]
    compilation = ' (the first of a cell compiles)'
    if compiled:
        compilation = f', the compilation of a cell {statistics.median(compiled):.0f} s'
        if len(compiled) < len(cells):  # of before compilation stood apart
            compilation += f' (in {len(cells) - len(compiled)} cells within their first run)'
    one, seeds = cells[0], max(len(cell['seeds']) for cell in cells)
    packages = ', '.join(f'{name} {version}' for name, version in one['versions'].items())
    return (
        f'{len(cells)} cells, {sum(len(_runs(cell)) for cell in cells)} runs: learning rates '
        f'{", ".join(f"{rate:g}" for rate in one["asks"]["rates"])}, {seeds} seeds at the best '
        f'(seed 0 and up); scores are mean ± half the range over seeds. A run took {statistics.median(each):.0f} s in '
        f'the median{compilation}, on {one["device"]} with {one["cores"]} cores, several cells at a time; {packages}.'
    )


def _runs(cell: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All runs of a cell: the rates, then the further seeds."""
    return [*cell['rates'].values(), *cell['seeds'][1:]]


def draw(found: Found, out: pathlib.Path) -> list[pathlib.Path]:
    """The pictures there is something for; a mixer has one style in all of them."""
    mixers = dict.fromkeys(mixer for cells in found.values() for mixer in cells if mixer != EXACT)
    styles = {m: dict(color=COLORS[n % len(COLORS)], linestyle=('-', '--', ':')[n % 3]) for n, m in enumerate(mixers)}
    paths = []
    for name, label, lines_of, ticks in (
        ('positions', 'point, place, copy or tenth of the row', curves_of, None),
        ('lengths', 'rows that many times as long', lengths_of, (1, 2, 4, 8, 16)),
        ('pairs', 'pairs of a row', pairs_of, None),
    ):
        tasks = {task: lines_of(cells) for task, cells in found.items()}
        if any(tasks.values()):
            paths.append(out / f'{name}.png')
            _panels({task: lines for task, lines in tasks.items() if lines}, label, ticks, styles, paths[-1])
    return paths


def curves_of(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """mixer -> (places, accuracy), the mean over seeds, of a task whose accuracy has a curve."""
    lines = {}
    for mixer, cell in cells.items():
        runs = [run['metrics'] for run in finished(cell)]
        name = next((name for name in (runs[0] if runs else ()) if name.startswith('accuracy_by_')), None)
        if name is not None:
            means = [statistics.mean(values) for values in zip(*(run[name] for run in runs))]
            lines[mixer] = (list(range(1, len(means) + 1)), means)
    return lines


def lengths_of(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """mixer -> (times the length of training, score), of a task whose tests are named 2x, 8x and the like."""
    return _of_tests(cells, 'x', lambda data: 1)


def pairs_of(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """mixer -> (pairs of a row, score), of a task whose tests are named '4 pairs' and the like."""
    return _of_tests(cells, ' pairs', lambda data: data['pairs'])


def _of_tests(
    cells: Mapping[str, Mapping[str, Any]], unit: str, trained_on: Callable[[Mapping[str, Any]], float]
) -> dict[str, tuple[list[float], list[float]]]:
    """mixer -> (how many of the unit, score), the tests named by that unit and the rows of training, by number."""
    lines = {}
    for mixer, cell in cells.items():
        runs, score = finished(cell), cell.get('score')
        tests = [name for name in (runs[0].get('tests', {}) if runs else ()) if name.endswith(unit)]
        if tests:
            number = trained_on(cell['asks']['config']['data'])
            points = {number: statistics.mean(run['metrics'][score] for run in runs)}
            for test in tests:
                points[float(test.removesuffix(unit))] = statistics.mean(run['tests'][test][score] for run in runs)
            lines[mixer] = (sorted(points), [points[number] for number in sorted(points)])
    return lines


def _panels(
    tasks: Mapping[str, Mapping], label: str, ticks: tuple | None, styles: Mapping[str, dict], path: pathlib.Path
) -> None:
    """A panel a task, a line a mixer, one legend."""
    columns = min(len(tasks), 3)
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(4.6 * columns + 2, 3.4 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (task, lines) in zip(panels, tasks.items()):
        for mixer, (x, y) in lines.items():
            panel.plot(x, y, label=mixer, marker='.' if len(x) < 10 else None, linewidth=1.5, **styles[mixer])
        panel.set(title=task, xlabel=label, ylabel='accuracy', ylim=(0, 1.03))
        if ticks:
            longest = max(max(x) for x, _ in lines.values())
            panel.set_xscale('log', base=2)
            panel.set_xticks([tick for tick in ticks if tick <= longest], [f'{t}x' for t in ticks if t <= longest])
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    handles = {text: handle for panel in panels for handle, text in zip(*panel.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc='outside right upper', fontsize=8)
    figure.savefig(path, dpi=110)
