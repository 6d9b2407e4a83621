"""Side-by-side timings: contestants run in turn, and what counts is the ratio within a turn.

A machine's speed drifts by more than most differences that matter. So every contestant runs once to warm up and then
all of them run in turn (A B A B ...); each turn gives one ratio to the baseline, and the record holds the median and
the quartiles of those ratios beside the milliseconds. Long turns are repeated less often. `prepare` compiles a JAX
function outside the clock and counts its temporaries; a contestant may be any function without arguments.

    record = compare('square', {'ours': prepare(f, x), 'peer': prepare(g, x)}, baseline='peer')
    print(table([record])); save('square', [record])
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import flags

from experiments import cli

LENGTHS = cli.LENGTHS
flags.declare_key_flag('lengths')
PAIRS = flags.DEFINE_integer('pairs', 20, 'Turns at most, where a turn is short.', lower_bound=3)
flags.declare_key_flag(cli.OUT.name)

RECORDS = pathlib.Path(__file__).parent / 'records'
PACKAGES = ('jax', 'jaxlib', 'numpy')

Record = dict[str, object]  # what `compare` returns; plain JSON


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A compiled JAX function with its arguments; calling it runs it."""

    compiled: jax.stages.Compiled
    arguments: tuple

    def __call__(self) -> object:
        return self.compiled(*self.arguments)

    @property
    def temp_bytes(self) -> int | None:
        """Bytes of temporaries, without arguments and results; None where the backend does not say."""
        analysis = self.compiled.memory_analysis()
        return None if analysis is None else analysis.temp_size_in_bytes


def prepare(function: Callable, *arguments: object) -> Prepared:
    """Compiles a function for these arguments."""
    return Prepared(jax.jit(function).lower(*arguments).compile(), arguments)


def compare(
    name: str,
    contestants: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    pairs: int = 20,
    least_pairs: int = 3,
    seconds: float = 60.0,
    facts: Mapping[str, object] | None = None,
) -> Record:
    """Times the contestants in turn.

    Args:
        name: what is compared.
        contestants: by label, functions without arguments whose result `jax.block_until_ready` waits for.
        baseline: the label that the others' times are divided by.
        pairs: turns, unless `seconds` have passed before.
        least_pairs: turns in any case.
        seconds: when to stop.
        facts: shapes, dtype and what else a reader of the record needs.

    Returns:
        {'name', 'baseline', 'pairs', 'facts', 'contestants': {label: {'ms', 'ms_quartiles', 'ratio', 'ratio_quartiles',
        'temp_bytes'}}}: medians, [first, third] quartiles, and None for temporaries that nobody counted.

    >>> naps = {'short': lambda: time.sleep(0.002), 'long': lambda: time.sleep(0.02)}
    >>> record = compare('naps', naps, baseline='long', pairs=5)
    >>> record['pairs'], record['contestants']['short']['ratio'] < 0.9
    (5, True)
    """
    if baseline not in contestants:
        raise ValueError(f'compare: baseline={baseline!r}, but one of {list(contestants)} was expected')
    for run in contestants.values():
        jax.block_until_ready(run())
    times = {label: [] for label in contestants}
    start = time.perf_counter()
    for turn in range(pairs):
        if turn >= least_pairs and time.perf_counter() - start > seconds:
            break
        for label, run in contestants.items():
            before = time.perf_counter()
            jax.block_until_ready(run())
            times[label].append(time.perf_counter() - before)
    return {
        'name': name,
        'baseline': baseline,
        'pairs': len(times[baseline]),
        'facts': dict(facts or {}),
        'contestants': {
            label: _spread('ms', 1e3 * np.array(taken))
            | _spread('ratio', np.array(taken) / np.array(times[baseline]))
            | {'temp_bytes': getattr(contestants[label], 'temp_bytes', None)}
            for label, taken in times.items()
        },
    }


def _spread(name: str, values: np.ndarray) -> dict[str, float | list[float]]:
    low, median, high = (float(f'{value:.4g}') for value in np.percentile(values, [25, 50, 75]))
    return {name: median, f'{name}_quartiles': [low, high]}


def save(name: str, records: Sequence[Record], folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Writes NAME.json, the comparisons with command, date, machine and versions, into a folder; None: records/."""
    path = pathlib.Path(folder or RECORDS) / f'{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        'name': name,
        'command': ' '.join(['python', *sys.orig_argv[1:]]),
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'machine': machine(),
        'versions': {'python': platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        'comparisons': list(records),
    }
    path.write_text(json.dumps(content, indent=2) + '\n')
    return path


def machine() -> dict[str, object]:
    """The processor, the cores that this process may use, how many of them were busy, and the device of JAX."""
    information = pathlib.Path('/proc/cpuinfo')
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return {
        'cpu': models[0] if models else platform.processor(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'load_1_minute': round(os.getloadavg()[0], 2),
        'device': jax.devices()[0].device_kind,
    }


def table(records: Sequence[Record]) -> str:
    """The comparisons as lines of text: the medians, with the quartiles of the ratio.

    >>> times = {'ms': 2.0, 'ratio': 0.5, 'ratio_quartiles': [0.5, 0.6], 'temp_bytes': 3_000_000}
    >>> print(table([{'name': 'f', 'baseline': 'peer', 'pairs': 9, 'contestants': {'ours': times}}]))
    comparison                       contestant                 ms        ratio (quartiles)    temp MB  pairs
    f                                ours                     2.00      0.500 (0.500-0.600)        3.0      9
    """
    lines = [f'{"comparison":<32} {"contestant":<20} {"ms":>8} {"ratio (quartiles)":>24} {"temp MB":>10} {"pairs":>6}']
    for record in records:
        for label, found in record['contestants'].items():
            ratio = '{:.3f} ({:.3f}-{:.3f})'.format(found['ratio'], *found['ratio_quartiles'])
            memory = '-' if found['temp_bytes'] is None else f'{found["temp_bytes"] / 1e6:.1f}'
            line = f'{record["name"]:<32} {label:<20} {found["ms"]:>8.2f} {ratio:>24} {memory:>10}'
            lines.append(f'{line} {record["pairs"]:>6}')
    return '\n'.join(lines)
