"""Where metrics go: JSON lines, TensorBoard, a picture, and the terminal. A writer has two methods: write and close."""

import json
import math
import os
import pathlib
import sys
import time
from typing import Any, Protocol, TextIO

import rich.console
import rich.live
import rich.table

Metrics = dict[str, Any]  # name -> number, or list of numbers (a curve)


class Writer(Protocol):
    """Takes the metrics of a step; curves may be ignored."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of one step."""

    def close(self) -> None:
        """Finishes what is open."""


class JsonLines:
    """`metrics.jsonl`: one object a line. Lines after `resume_at` are cut off, since those steps run again."""

    def __init__(self, path: pathlib.Path, resume_at: int = 0) -> None:
        kept = [line for line in read_lines(path) if line['step'] <= resume_at]
        swap = path.with_suffix('.tmp')
        swap.write_text(''.join(json.dumps(line) + '\n' for line in kept))
        os.replace(swap, path)
        self._file = path.open('a')

    def write(self, step: int, metrics: Metrics) -> None:
        self._file.write(json.dumps({'step': step, **metrics}) + '\n')
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_lines(path: pathlib.Path) -> list[Metrics]:
    """The objects of a JSON-lines file; a last line that was cut by a kill is dropped."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    objects = []
    for number, line in enumerate(lines):
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise ValueError(f'{path}:{number + 1} is not JSON') from None
    return objects


class TensorBoard:
    """Event files in `tensorboard/`; scalars only."""

    def __init__(self, folder: pathlib.Path) -> None:
        from tensorboardX import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), write_to_disk=True)

    def write(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if not isinstance(value, list):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Plot:
    """`loss.png` from `metrics.jsonl`: training and evaluation loss against the step, drawn at the end."""

    def __init__(self, lines: pathlib.Path, picture: pathlib.Path) -> None:
        self._lines, self._picture = lines, picture

    def write(self, step: int, metrics: Metrics) -> None:
        pass

    def close(self) -> None:
        from jattn.training.pictures import draw_losses  # matplotlib is slow to import

        draw_losses(read_lines(self._lines), self._picture)


class Terminal:
    """The run as it goes: a live table on a terminal, plain lines elsewhere; `log.txt` gets the plain lines."""

    def __init__(self, log: pathlib.Path, steps: int, stream: TextIO | None = None) -> None:
        self._log, self._steps, self._started = log.open('a'), steps, time.monotonic()
        self._first: int | None = None
        self._console = rich.console.Console(file=stream or sys.stdout)
        self._live = rich.live.Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._rows: list[tuple[int, Metrics]] = []
        if self._live:
            self._live.start()

    def say(self, line: str) -> None:
        """One plain line, on the terminal and in the log."""
        self._log.write(line + '\n')
        self._log.flush()
        # Not print: rich keeps the line above the live table.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def write(self, step: int, metrics: Metrics) -> None:
        # Curves and details (a/b/c) are for the files.
        scalars = {k: v for k, v in metrics.items() if not isinstance(v, list) and k.count('/') < 2}
        text = '  '.join(f'{name} {show(value)}' for name, value in scalars.items())
        line = f'step {step}/{self._steps}  {text}'
        if not self._live:
            self.say(line)
            return
        self._log.write(line + '\n')
        self._log.flush()
        self._rows = [*self._rows[-11:], (step, scalars)]
        self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        if self._live:
            self._live.stop()
        self._log.close()

    def _table(self) -> rich.table.Table:
        names = list(dict.fromkeys(name for _, row in self._rows for name in row))
        table = rich.table.Table(caption=f'{time.monotonic() - self._started:.0f} s')
        for name in ('step', *names):
            table.add_column(name.replace('/', '\n').replace('_per_', '\nper '), justify='right')
        for step, row in self._rows:
            table.add_row(f'{step}/{self._steps}', *(show(row[name]) if name in row else '' for name in names))
        return table


def show(value: float) -> str:
    """A number in four significant digits.

    >>> show(0.00123456), show(12345.6), show(3)
    ('0.001235', '12346', '3')
    """
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f'{value:.0f}' if abs(value) >= 10_000 else f'{value:.4g}'
