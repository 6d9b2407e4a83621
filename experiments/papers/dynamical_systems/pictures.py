"""The picture of paper 58's rerun: the state that each operator needs, and recall by what is compared."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.papers.dynamical_systems.recall import Found, best
from experiments.papers.dynamical_systems.settings import REVERSED, S6, SIGMOID, SOFTMAX, SSD, Size, linear
from experiments.papers.dynamical_systems.systems import SMALLEST, Operator


def draw(systems: Mapping[str, Operator], found: Found, gates: Found, size: Size, path: pathlib.Path) -> None:
    """Three panels; recall is at the best learning rate."""
    figure = Figure(figsize=(15, 4.4), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    for place, (name, system) in enumerate(systems.items()):
        spectrum = np.maximum(system.spectrum(), 1e-18)
        style = '-' if place % 2 else '--'  # several end at the same number
        left.semilogy(np.arange(1, len(spectrum) + 1), spectrum, style, marker='o', markersize=4, label=name)
    left.axhline(SMALLEST, color='0.6', linestyle=':')
    left.set(xlabel='singular value', ylabel='over the largest', title='what the first tokens tell the last')
    left.legend(fontsize=7)

    middle.plot(
        size.expansions, [best(found, linear(n)) for n in size.expansions], marker='o', label='linear attention'
    )
    middle.axhline(best(found, SOFTMAX), color='k', label='softmax')
    for name, mark in zip((*size.normalisers, S6, SSD), 's^vDx'):
        label = f'normalised, {name}' if name in size.normalisers else name
        middle.plot(size.expansion, best(found, name), mark, label=label)
    middle.axhline(size.task.facts()['context_value_accuracy'], color='0.6', linestyle=':', label='a value at random')
    middle.set_xscale('log', base=2)
    middle.set_xticks(size.expansions, list(map(str, size.expansions)))
    middle.set(xlabel='state expansion n', ylabel='accuracy', ylim=(0, 1.02))
    middle.set_title(f'recall of {size.task.pairs} pairs, T = {size.task.tokens}')
    middle.legend(fontsize=7)

    for name, style in ((REVERSED, '-'), (SIGMOID, '--')):
        for n, (tokens, task) in enumerate(size.tasks.items()):
            scores = [best(gates, name, width, tokens) for width in size.widths]
            label = f'{name}, {task.pairs} pairs, T = {tokens}'
            right.plot(size.widths, scores, style, color=f'C{n}', marker='o', label=label)
    right.set_xticks(size.widths, list(map(str, size.widths)))
    right.set(xlabel='width', ylabel='accuracy', ylim=(0, 1.02), title='forget gates')
    right.legend(fontsize=7)
    figure.savefig(path, dpi=110)
