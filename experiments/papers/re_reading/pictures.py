"""The picture of paper 44's rerun: what reads are worth by size of the state, and how far attention looks ahead."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.papers.re_reading.recall import Found, Runs, mean, told_of
from experiments.papers.re_reading.settings import FILLER, SOFTMAX, Size, memory_of


def draw(runs: Runs, size: Size, path: pathlib.Path) -> None:
    """Three panels: one and two reads of every mixer, the sweep of reads, forward mass by layer; dotted: 1 / pairs."""
    figure = Figure(figsize=(14, 4.2), layout='constrained')
    left, middle, right = figure.subplots(1, 3, width_ratios=(5, 4, 3))
    places = np.arange(len(size.mixers))
    for shift, reads in ((-0.2, 1), (0.2, 2)):
        left.bar(places + shift, [mean(runs[name, reads]) for name in size.mixers], 0.4, label=told_of(reads))
        for place, name in zip(places, size.mixers):
            _dots(left, place + shift, runs[name, reads])
    left.set_xticks(places, [name.replace(' of ', '\nof ') for name in size.mixers])
    left.set(ylabel='accuracy', title=f'one of {size.task.pairs} pairs is asked; dots: seeds')
    left.legend(loc='upper center', ncols=2)
    small = memory_of(size.states[0])
    middle.plot(size.sweep, [mean(runs[small, reads]) for reads in size.sweep], 'o-', label='copies')
    middle.axhline(mean(runs[small, FILLER]), color='0.4', linestyle='--', label=told_of(FILLER))
    middle.set_xticks(size.sweep)
    middle.set(xlabel='reads', ylabel='accuracy', title=small)
    middle.legend(loc='upper center', ncols=2)
    for panel in (left, middle):
        panel.axhline(1 / size.task.pairs, color='0.6', linestyle=':')
        panel.set_ylim(0, 1.15)
    layers = np.arange(size.layers)
    for shift, name, label in ((-0.2, 'at_start', 'before the training'), (0.2, 'forward', 'after it')):
        right.bar(layers + shift, np.broadcast_to(mean(runs[SOFTMAX, 2], name), size.layers), 0.4, label=label)
    right.set_xticks(layers, [f'layer {layer}' for layer in layers])
    right.set(ylabel='forward mass', title=f'{SOFTMAX}: from the second copy\nto later tokens of the first')
    right.legend()
    figure.savefig(path, dpi=110)


def _dots(panel: Axes, place: float, found: Sequence[Found | None]) -> None:
    """The seeds that did not fail."""
    accuracies = [run.accuracy for run in found if run is not None]
    panel.plot([place] * len(accuracies), accuracies, 'k.', markersize=5)
