"""The picture of paper 06's rerun: accuracy by point beside the learners that need no training."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.papers.icl_boolean.learning import ALONE, Found, Long, exact_of
from experiments.papers.icl_boolean.settings import FUNCTIONS, SOFTMAX, Size

NAMES = {'nearest_neighbour': '1-NN', 'bayes': 'Bayes', 'elimination': 'elimination', 'three_neighbours': '3-NN'}


def draw(found: Found, known: Found, taught: Mapping[str, Long | None], size: Size, path: pathlib.Path) -> None:
    """A panel a class of functions, one for teaching and one for the heads."""
    figure = Figure(figsize=(16, 7), layout='constrained')
    axes = figure.subplots(2, 4).ravel()
    place = np.arange(size.points)
    for axis, function in zip(axes, FUNCTIONS):
        if function not in known['nearest_neighbour']:
            axis.set_visible(False)  # a small rerun leaves it out
            continue
        for n, (name, curves) in enumerate(found.items()):
            if function in curves:
                axis.plot(place, curves[function], color=f'C{n}', label=name)
        learner = exact_of(function, known)
        styles = {learner: 'k-', 'nearest_neighbour': 'k:', ALONE: 'k--'}
        black = [
            axis.plot(place, known[name][function], style, label=NAMES.get(name, name))[0]
            for name, style in styles.items()
            if function in known[name]
        ]
        axis.legend(handles=black, fontsize=7, loc='lower right')
        axis.set(title=f'{function}, n = {size.inputs}', xlabel='examples before', ylabel='accuracy', ylim=(0.4, 1.02))
    for n, name in enumerate(found):
        axes[-1].plot([], [], color=f'C{n}', label=name)
    axes[-1].legend(fontsize=8, loc='center', title='trained alike')
    axes[-1].axis('off')
    _draw_taught(axes[-3], taught, place)
    if taught[SOFTMAX] is None:
        axes[-2].set_visible(False)
    else:
        _draw_heads(axes[-2], taught[SOFTMAX])
    figure.savefig(path, dpi=100)


def _draw_taught(axis: Axes, taught: Mapping[str, Long | None], place: np.ndarray) -> None:
    """Taught rows are dashed."""
    for n, (name, found) in enumerate(taught.items()):
        if found is not None:
            axis.plot(place, found.taught, '--', color=f'C{n}', label=f'{name}, taught rows')
            axis.plot(place, found.untaught, color=f'C{n}', label=f'{name}, untaught rows')
            axis.plot(place, found.elimination, 'k', label=None if n else 'elimination, untaught rows')
    axis.set(title='conjunction, half of the rows taught', xlabel='examples before', ylim=(0.4, 1.02))
    axis.legend(fontsize=7)


def _draw_heads(axis: Axes, taught: Long) -> None:
    scores = np.asarray(taught.heads.scores)
    image = axis.imshow(scores, vmin=0, vmax=1, aspect='auto')
    for (row, head), value in np.ndenumerate(scores):
        axis.text(head, row, f'{value:.2f}', ha='center', va='center', color='white' if value < 0.6 else 'black')
    axis.set_xticks(range(scores.shape[1]))
    axis.set_yticks(range(scores.shape[0]), list(taught.heads.layers))
    axis.set(title='attention to the label of the nearest point', xlabel='head', ylabel='layer')
    axis.figure.colorbar(image, ax=axis)
