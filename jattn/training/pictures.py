"""The pictures of a training run."""

import pathlib
from typing import Any

from matplotlib.figure import Figure


def draw_losses(lines: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Training and evaluation loss against the step; with bits per byte on the right where the task has them."""
    figure = Figure(figsize=(7, 4), layout='constrained')  # no pyplot: a notebook's backend stays as it is
    axis = figure.subplots()
    bits = any('eval/bits_per_byte' in line for line in lines)
    for name, style in (('train/loss', dict(lw=1, alpha=0.6)), ('eval/loss', dict(lw=2, marker='o', ms=4))):
        points = [(line['step'], line[name]) for line in lines if name in line]
        if points:
            axis.plot(*zip(*points), label=name, **style)
        if points and name == 'eval/loss':
            axis.annotate(f'{points[-1][1]:.3f}', points[-1], textcoords='offset points', xytext=(0, 8), ha='center')
    axis.set_xlabel('step')
    axis.set_ylabel('loss (nats per byte)' if bits else 'loss')
    axis.margins(x=0.08)
    axis.grid(alpha=0.3)
    if bits:
        right = axis.secondary_yaxis('right', functions=(lambda nats: nats / 0.6931472, lambda bits: bits * 0.6931472))
        right.set_ylabel('bits per byte')
    if axis.lines:
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
