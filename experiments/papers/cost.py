"""Time and memory against length: what a paper says about cost, measured on this machine, with the slope fitted.

    log seconds = slope log T + constant            by least squares over the longer lengths, where overheads are small

Memory is the compiler's own figure: what a compiled program needs beside its inputs, outputs included. The functions of
a length run in turns, so that what else the machine does falls on all alike; of the repeats the median counts.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table
from matplotlib.figure import Figure

from jattn.training.writers import show

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
UNITS = {'seconds': 'ms', 'bytes': 'MB'}
Make = Callable[[int], tuple[Callable[..., Any], tuple]]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a function costs at each length; nan where it was not run.

    Attributes:
        lengths: T.
        seconds: of a call, the median.
        bytes: of temporaries and outputs.

    >>> cost = Cost((8, 16, 32), np.array([1.0, 4.0, 16.0]), np.array([3.0, 6.0, 12.0]))
    >>> round(cost.slope(), 3), round(cost.slope('bytes', shortest=16), 3), cost.at(16)
    (2.0, 1.0, 4.0)
    """

    lengths: tuple[int, ...]
    seconds: np.ndarray
    bytes: np.ndarray

    def slope(self, of: str = 'seconds', shortest: int = 0) -> float:
        """The exponent of T, over the lengths from `shortest` on that were run."""
        values, lengths = getattr(self, of), np.array(self.lengths)
        used = np.isfinite(values) & (lengths >= shortest)
        return float(np.polyfit(np.log(lengths[used]), np.log(values[used]), 1)[0])

    def at(self, length: int, of: str = 'seconds') -> float:
        """The cost at one of the lengths."""
        return float(getattr(self, of)[self.lengths.index(length)])


def slopes_from(lengths: Sequence[int]) -> int:
    """From which T on slopes are fitted: 2048, as overheads count below; 0 (all of them) where none is longer.

    >>> slopes_from((512, 1024, 2048, 4096)), slopes_from((64, 128))
    (2048, 0)
    """
    return 2048 if lengths[-1] > 2048 else 0


def measure(
    makes: Mapping[str, Make],
    lengths: Sequence[int] = LENGTHS,
    repeats: int = 3,
    longest: Mapping[str, int] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Cost]:
    """Compiles and times every function at every length.

    Args:
        makes: name -> (T -> a function and its arguments).
        lengths: T.
        repeats: timed calls, after one that is not.
        longest: name -> the longest T it is run at; others at all.
        say: told what was done of every length.

    >>> found = measure({'sum': lambda tokens: (jax.numpy.sum, (np.ones(tokens),))}, (8, 16), repeats=1)
    >>> found['sum'].seconds.shape, bool(np.all(found['sum'].seconds > 0))
    ((2,), True)
    """
    seconds = {name: np.full(len(lengths), np.nan) for name in makes}
    sizes = {name: np.full(len(lengths), np.nan) for name in makes}
    for n, length in enumerate(lengths):
        calls = {}
        for name, make in makes.items():
            if length > (longest or {}).get(name, length):
                continue
            function, arguments = make(length)
            compiled = jax.jit(function).lower(*arguments).compile()
            memory = compiled.memory_analysis()
            sizes[name][n] = memory.temp_size_in_bytes + memory.output_size_in_bytes
            calls[name] = (compiled, jax.device_put(arguments))
            jax.block_until_ready(compiled(*calls[name][1]))
        times = {name: [] for name in calls}
        for _ in range(repeats):
            for name, (compiled, arguments) in calls.items():
                started = time.perf_counter()
                jax.block_until_ready(compiled(*arguments))
                times[name].append(time.perf_counter() - started)
        for name, taken in times.items():
            seconds[name][n] = statistics.median(taken)
        if say:
            say(f'T = {length}: ' + ', '.join(f'{name} {1e3 * seconds[name][n]:.1f} ms' for name in calls))
    return {name: Cost(tuple(lengths), seconds[name], sizes[name]) for name in makes}


def print_table(title: str, costs: Mapping[str, Cost], shortest: int = 0) -> None:
    """A row a function and quantity: its value at every length, and its slope from `shortest` on."""
    lengths = next(iter(costs.values())).lengths
    table = rich.table.Table(title=title)
    for name in ('', 'of', *map(str, lengths), 'slope'):
        table.add_column(name, justify='right' if name else 'left')
    for name, cost in costs.items():
        for of, unit in UNITS.items():
            scaled = getattr(cost, of) * (1e3 if of == 'seconds' else 1e-6)
            values = ['' if np.isnan(value) else show(float(value)) for value in scaled]
            table.add_row(name, unit, *values, f'{cost.slope(of, shortest):.2f}')
    rich.console.Console().print(table)


def draw(costs: Mapping[str, Cost], path: pathlib.Path, title: str, shortest: int = 0) -> None:
    """Two log-log plots, time and memory; the slopes stand in the legends."""
    figure = Figure(figsize=(10, 4.2), layout='constrained')
    for axis, (of, unit) in zip(figure.subplots(1, 2), UNITS.items(), strict=True):
        for name, cost in costs.items():
            scaled = getattr(cost, of) * (1e3 if of == 'seconds' else 1e-6)
            axis.loglog(cost.lengths, scaled, marker='o', label=f'{name}: T^{cost.slope(of, shortest):.2f}')
        lengths = next(iter(costs.values())).lengths
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.minorticks_off()
        axis.set_xlabel('length T')
        axis.set_ylabel(f'{"time" if of == "seconds" else "temporaries and outputs"}, {unit}')
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
