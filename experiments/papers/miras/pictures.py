"""The picture of paper 52's rerun: outliers without training, corrupted recall, longer rows."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.papers.miras.recall import Found, corrupted
from experiments.papers.miras.settings import Size


def draw(
    held: Mapping[str, tuple[np.ndarray, np.ndarray]],
    found: Found,
    curves: Mapping[str, np.ndarray],
    size: Size,
    path: pathlib.Path,
) -> None:
    """Three panels; a mark is a seed, a bar or a line the mean."""
    figure = Figure(figsize=(15, 4.4), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    place = np.arange(len(held))
    for shift, label, column in ((-0.2, 'a tenth of the values 20 times as large', 0), (0.2, 'no outliers', 1)):
        left.bar(place + shift, [errors[column].mean() for errors in held.values()], 0.4, label=label)
    left.set_xticks(place, [name.replace(', ', '\n') for name in held], fontsize=8)
    left.set(ylabel='relative error on clean pairs', yscale='log', title='a 32 x 32 memory without training')
    left.legend(fontsize=8)

    for place, (name, runs) in enumerate(found.items()):
        scores = [run for run in runs if run is not None]
        color = 'tab:orange' if 'corrupted' in name else 'tab:blue'
        middle.barh(place, np.mean(scores) if scores else 0, color=color, alpha=0.5)
        middle.plot(scores, [place] * len(scores), 'k|', markersize=12)
    middle.axvline(corrupted(size).facts()['look_up_accuracy'], color='0.4', linestyle=':')
    middle.set_yticks(range(len(found)), list(found), fontsize=8)
    middle.invert_yaxis()
    middle.set(xlabel='accuracy (dotted: a vote of the shown values)', xlim=(0, 1.02), title='recall, values corrupted')

    if not curves:
        right.set_visible(False)
        figure.savefig(path, dpi=110)
        return
    for name, values in curves.items():
        (line,) = right.plot(size.lengths, values.mean(axis=0), label=name)
        for seed in values:
            right.plot(size.lengths, seed, '.', color=line.get_color())
    right.axhline(0.1, color='0.6', linestyle=':', label='chance')
    right.set_xscale('log', base=2)
    right.set_xticks(size.lengths, [str(length) for length in size.lengths])
    right.set(xlabel='T', ylabel='accuracy', ylim=(0, 1.02), title=f'passkey, trained at T = {size.passkey.tokens}')
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)
