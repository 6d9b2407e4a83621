"""The picture of paper 33's rerun: what is held without training, what the parts are worth, longer rows."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.papers.small_models import Found
from experiments.papers.titans.settings import Size


def draw(
    held: Mapping[str, Mapping[int, np.ndarray]],
    found: Found,
    curves: Mapping[str, np.ndarray],
    size: Size,
    path: pathlib.Path,
) -> None:
    """Three panels; a mark is a seed, a line or a bar the mean."""
    figure = Figure(figsize=(15, 4.4), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    for name, errors in held.items():
        left.plot(list(errors), [values.mean() for values in errors.values()], marker='o', label=name)
    left.set(xlabel='pairs', ylabel='relative error', title='a 32 x 32 memory without training')
    left.set_ylim(0, 1.45)  # room for the legend
    left.set_xticks(list(next(iter(held.values()))))
    left.legend(fontsize=8)

    for place, (name, runs) in enumerate(found.items()):
        scores = [run['accuracy'] for run in runs if run]
        color = 'tab:gray' if name.startswith('without') else 'tab:blue'
        middle.barh(place, np.mean(scores) if scores else 0, color=color, alpha=0.5)
        middle.plot(scores, [place] * len(scores), 'k|', markersize=12)
    middle.set_yticks(range(len(found)), list(found), fontsize=8)
    middle.invert_yaxis()
    middle.set(xlabel='accuracy', xlim=(0, 1.02), title=f'recall with {size.recall.overwrites} overwritten keys')

    for name, values in curves.items():
        (line,) = right.plot(size.lengths, values.mean(axis=0), label=name)
        for seed in values:
            right.plot(size.lengths, seed, '.', color=line.get_color())
    if not curves:
        right.set_visible(False)
        figure.savefig(path, dpi=110)
        return
    right.axhline(0.1, color='0.6', linestyle=':', label='chance')
    right.set_xscale('log', base=2)
    right.set_xticks(size.lengths, [str(length) for length in size.lengths])
    right.set(xlabel='T', ylabel='accuracy', ylim=(0, 1.02), title=f'passkey, trained at T = {size.passkey.tokens}')
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)
