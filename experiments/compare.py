"""Mixers against configs: a table each, every mixer on the same held-out rows, and what is known exactly below them.

    python -m experiments.compare --configs=icl_linear --mixers=softmax,linear_attention,rg_lru --out=runs/compare
    python -m experiments.compare --configs=lm_books --set data.path=DIR/books --mixers=softmax,gla --seeds=3

Each cell is a run in OUT/<config>/<mixer> (further seeds in OUT/<config>/<mixer>_seed<n>), the config with its mixer
swapped: a comparison that was cut short goes on where it stood. A hybrid is written a+b+c. With several seeds a score
is `mean ± half the range`, and a line says how far seeds alone move it. Writes OUT/compare.json and OUT/compare.md.
"""

import dataclasses
import io
import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import rich.table
from absl import flags

from experiments import cli, configs
from jattn.config import ConfigError, nearest
from jattn.mixers import MIXERS
from jattn.testbeds.task import Task
from jattn.training.experiment import Experiment
from jattn.training.feed import make_feed
from jattn.training.loop import train
from jattn.training.step import abstract_params
from jattn.training.writers import show

_CONFIGS = flags.DEFINE_list('configs', ['icl_linear'], 'Configs, comma-separated.')
flags.DEFINE_alias('testbeds', 'configs')
_MIXERS = flags.DEFINE_list('mixers', list(MIXERS), 'Mixers, comma-separated; a hybrid is a+b+c.')
_SEEDS = flags.DEFINE_integer('seeds', 1, "Runs of a cell; seeds count up from the config's.", lower_bound=1)
for _name in ('size', 'set', 'out'):
    flags.declare_key_flag(_name)

# The scores that a table shows, of those that the config's evaluation gives.
SCORES = ('loss', 'bits_per_byte', 'bits_per_base', 'mse', 'mae', 'accuracy', 'sequence_accuracy')


def main(argv: Sequence[str]) -> int:
    """Runs every cell, prints a table a config."""
    for mixer in _MIXERS.value:
        for name in mixer.split('+'):
            if name not in MIXERS:
                raise ConfigError(f'--mixers: no mixer {name!r}; {nearest(name, MIXERS)}')
    cells = {
        (name, mixer): [cell_config(name, mixer, cli.SIZE.value, cli.SET.value, seed) for seed in range(_SEEDS.value)]
        for name in _CONFIGS.value
        for mixer in _MIXERS.value
    }
    out = pathlib.Path(cli.OUT.value or 'runs/compare')
    results, pages = {}, []
    for name in _CONFIGS.value:
        rows = []
        for mixer in _MIXERS.value:
            row = run_cell(cells[name, mixer], out / name / mixer, mixer)
            rows.append(row)
            print(f'{name} {mixer}: loss {_cell(row, "loss")}')
        noise = noise_line(rows)
        results[name] = rows + baseline_rows(cells[name, _MIXERS.value[0]][0])
        cli.show_table(make_table(name, results[name]))
        print(noise)
        pages.append(markdown(name, results[name]) + f'\n{noise}\n')
    (out / 'compare.json').write_text(json.dumps(results, indent=2) + '\n')
    (out / 'compare.md').write_text('\n'.join(pages))
    print(f'written: {out / "compare.json"}, {out / "compare.md"}')
    return 0


def cell_config(name: str, mixer: str, size: str, assignments: Sequence[str], seed: int = 0) -> Experiment:
    """The config's experiment with another mixer; `seed` is added to the config's."""
    if name not in configs.names():
        raise ConfigError(f'--configs: no config {name!r}; {nearest(name, configs.names())}')
    swap = f'model.mixer={mixer.replace("+", ",")}'
    config = configs.load(name, size, [swap, *assignments])
    training = dataclasses.replace(config.training, seed=config.training.seed + seed)
    return dataclasses.replace(config, training=training)


def run_cell(seeds: Sequence[Experiment], workdir: pathlib.Path, name: str) -> dict[str, Any]:
    """Trains one cell, once a seed, and returns its row: means, half-ranges as `spread`, every seed's own scores."""
    lasts = []
    for seed, config in enumerate(seeds):
        own = workdir if seed == 0 else workdir.with_name(f'{workdir.name}_seed{seed}')
        lasts.append(train(config, own, stream=io.StringIO()))
    scores = [score for score in SCORES if f'eval/{score}' in lasts[0]]
    values = {score: [last[f'eval/{score}'] for last in lasts] for score in scores}
    config = seeds[0]
    example, model = make_feed(config).example(), config.make_model()
    params, tokens = abstract_params(model, example), example.inputs.shape[1]
    per_second = [last['steps_per_second'] * config.training.batch * tokens for last in lasts]
    return {
        'name': name,
        **{score: statistics.mean(values[score]) for score in scores},
        'tokens_per_second': statistics.mean(per_second),
        'state_bytes': sum(mixer.state_bytes(tokens, config.model.dtype) for mixer in config.model.mixers()),
        'parameters': sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        'mflops': config.trunk.flops(tokens) / 1e6,
        'spread': {score: (max(values[score]) - min(values[score])) / 2 for score in scores if len(seeds) > 1},
        'seeds': values,
    }


def noise_line(rows: Sequence[dict[str, Any]]) -> str:
    """How far the seed alone moves the first score, so that nobody reads more into the table."""
    count = len(rows[0]['seeds']['loss'])
    if count == 1:
        return 'One seed a row: how far a seed alone moves a score is not known (--seeds=3).'
    score = next((score for score in SCORES[1:] if score in rows[0]), 'loss')
    spreads = [row['spread'][score] for row in rows]
    return (
        f'Between {count} seeds the {score} of a row moves by ±{show(statistics.mean(spreads))} on average, '
        f'±{show(max(spreads))} at most (half the range): differences between rows below that are noise.'
    )


def baseline_rows(config: Experiment) -> list[dict[str, Any]]:
    """The exact solvers of a testbed on the same evaluation prompts, then the facts of the data."""
    data = config.data
    if not isinstance(data, Task):
        return [{'name': f'fact: {name}', _score_of(name): value} for name, value in data.facts().items()]
    totals: dict[str, Any] = {}
    for batch in make_feed(config).eval_batches():
        for name, predictions in data.baselines(batch).items():
            mean = data.metrics(predictions, batch)['loss']
            totals[name] = totals[name] + mean if name in totals else mean
    rows = [{'name': f'exact: {name}', 'loss': float(mean.value())} for name, mean in totals.items()]
    return rows + [{'name': f'fact: {name}', 'loss': value} for name, value in data.facts().items()]


def _score_of(fact: str) -> str:
    """The column that a corpus's fact belongs to: the score that its name ends with."""
    return next((score for score in SCORES if fact.endswith(score)), 'loss')


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """All columns, in the order of the first row."""
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ('spread', 'seeds')]


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
    if isinstance(value, str):
        return value
    spread = row.get('spread', {}).get(name)
    return show(value) + ('' if spread is None else f' ± {show(spread)}')


if __name__ == '__main__':
    cli.run(main)
