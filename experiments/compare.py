"""Mixers against testbeds: one table, every mixer on the same evaluation prompts, the exact baselines as its last rows.

    python -m experiments.compare --testbeds=icl_linear --mixers=softmax,linear_attention,rg_lru --out=runs/compare

Each cell is a run in OUT/<testbed>/<mixer>, with the testbed's config and its mixer swapped: a comparison that was cut
short goes on where it stood. A hybrid is written a+b+c. Writes OUT/compare.json and OUT/compare.md.
"""

import io
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import rich.console
import rich.table
from absl import flags

from experiments import cli, configs
from jattn.config import ConfigError, nearest
from jattn.mixers import MIXERS
from jattn.testbeds import TESTBEDS
from jattn.training.experiment import Experiment
from jattn.training.feed import make_feed
from jattn.training.loop import train
from jattn.training.writers import show

_TESTBEDS = flags.DEFINE_list('testbeds', ['icl_linear'], 'Configs of testbeds, comma-separated.')
_MIXERS = flags.DEFINE_list('mixers', list(MIXERS), 'Mixers, comma-separated; a hybrid is a+b+c.')
for _name in ('size', 'set', 'out'):
    flags.declare_key_flag(_name)


def main(argv: Sequence[str]) -> int:
    """Runs every cell, prints a table a testbed."""
    for mixer in _MIXERS.value:
        for name in mixer.split('+'):
            if name not in MIXERS:
                raise ConfigError(f'--mixers: no mixer {name!r}; {nearest(name, MIXERS)}')
    cells = {
        (testbed, mixer): cell_config(testbed, mixer, cli.SIZE.value, cli.SET.value)
        for testbed in _TESTBEDS.value
        for mixer in _MIXERS.value
    }
    out = pathlib.Path(cli.OUT.value or 'runs/compare')
    results = {}
    for testbed in _TESTBEDS.value:
        rows = []
        for mixer in _MIXERS.value:
            row = run_cell(cells[testbed, mixer], out / testbed / mixer, mixer)
            rows.append(row)
            print(f'{testbed} {mixer}: loss {show(row["loss"])}')
        results[testbed] = rows + baseline_rows(cells[testbed, _MIXERS.value[0]])
        rich.console.Console().print(make_table(testbed, results[testbed]))
    (out / 'compare.json').write_text(json.dumps(results, indent=2) + '\n')
    (out / 'compare.md').write_text('\n'.join(markdown(name, rows) for name, rows in results.items()))
    print(f'written: {out / "compare.json"}, {out / "compare.md"}')
    return 0


def cell_config(testbed: str, mixer: str, size: str, assignments: Sequence[str]) -> Experiment:
    """The testbed's experiment with another mixer."""
    if testbed not in TESTBEDS or testbed not in configs.names():
        known = [name for name in configs.names() if name in TESTBEDS]
        raise ConfigError(f'--testbeds: no config of a testbed {testbed!r}; {nearest(testbed, known)}')
    swap = f'model.mixer={mixer.replace("+", ",")}'
    return configs.load(testbed, size, [swap, *assignments])


def run_cell(config: Experiment, workdir: pathlib.Path, name: str) -> dict[str, Any]:
    """Trains one cell and returns its row."""
    last = train(config, workdir, stream=io.StringIO())
    feed, model = make_feed(config), config.make_model()
    params = jax.eval_shape(lambda key: model.init(key, feed.example().inputs), jax.random.key(0))['params']
    tokens = feed.example().inputs.shape[1]
    return {
        'name': name,
        'loss': last['eval/loss'],
        'parameters': sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        'state_bytes': sum(mixer.state_bytes(tokens, config.model.dtype) for mixer in config.model.mixers()),
        'mflops': config.trunk.flops(tokens) / 1e6,
        'steps_per_second': last['steps_per_second'],
    }


def baseline_rows(config: Experiment) -> list[dict[str, Any]]:
    """The exact solvers on the same evaluation prompts, then the task's facts."""
    task = config.data
    totals: dict[str, Any] = {}
    for batch in make_feed(config).eval_batches():
        for name, predictions in task.baselines(batch).items():
            mean = task.metrics(predictions, batch)['loss']
            totals[name] = totals[name] + mean if name in totals else mean
    rows = [{'name': f'exact: {name}', 'loss': float(mean.value())} for name, mean in totals.items()]
    return rows + [{'name': f'fact: {name}', 'loss': value} for name, value in task.facts().items()]


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """All columns, in the order of the first row."""
    return list(dict.fromkeys(name for row in rows for name in row))


def make_table(title: str, rows: list[dict[str, Any]]) -> rich.table.Table:
    """The table for a terminal."""
    table = rich.table.Table(title=title)
    for name in columns(rows):
        table.add_column(name, justify='left' if name == 'name' else 'right')
    for row in rows:
        table.add_row(*(_cell(row, name) for name in columns(rows)))
    return table


def markdown(title: str, rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    names = columns(rows)
    lines = [f'## {title}', '', '| ' + ' | '.join(names) + ' |', '| ' + ' | '.join('---' for _ in names) + ' |']
    return '\n'.join([*lines, *('| ' + ' | '.join(_cell(row, name) for name in names) + ' |' for row in rows), ''])


def _cell(row: dict[str, Any], name: str) -> str:
    value = row.get(name, '')
    return value if isinstance(value, str) else show(value)


if __name__ == '__main__':
    cli.run(main)
