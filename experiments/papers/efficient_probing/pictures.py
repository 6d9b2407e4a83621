"""The picture of paper 50's rerun: the maps of efficient probing on some images, and every head's accuracy."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.papers.efficient_probing.probes import Found
from experiments.papers.efficient_probing.settings import PATCH, Images

SHOWN = 6


def draw(
    images: Images, maps: Mapping[str, np.ndarray], found: Mapping[str, Mapping[str, Found]], path: pathlib.Path
) -> None:
    """Left: an image a row and a query a column, brighter where it looks. Right: a bar a head, a mark a seed."""
    queries = next(iter(maps.values())).shape[1]
    figure = Figure(figsize=(1.05 * queries * len(maps) + 6.5, 1.05 * SHOWN + 1.2), layout='constrained')
    *left, right = figure.subfigures(1, len(maps) + 1, width_ratios=[1.05 * queries] * len(maps) + [6.5])
    for part, (name, own) in zip(left, maps.items()):
        part.suptitle(f'{name}: a column a query')
        for row, axes in enumerate(part.subplots(SHOWN, queries)):
            for axis, one in zip(axes, own[row]):
                _show(axis, images.patches[row], one[1:])
    axis = right.subplots()
    bars = [(f'{encoder}: {head}', result) for encoder, heads in found.items() for head, result in heads.items()]
    for place, (name, result) in enumerate(bars):
        axis.barh(place, result.accuracy, color='tab:blue' if 'EP' in name else 'tab:gray', alpha=0.5)
        axis.plot(result.accuracies, [place] * len(result.accuracies), 'k|', markersize=10)
    axis.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
    axis.invert_yaxis()
    least = min(result.accuracies.min() for _, result in bars)
    axis.set(xlabel='accuracy', xlim=(max(least - 0.05, 0), 1))
    figure.savefig(path, dpi=100)


def _show(axis: Axes, patches: np.ndarray, weights: np.ndarray) -> None:
    side = round(len(patches) ** 0.5)
    image = patches.reshape(side, side, PATCH, PATCH).transpose(0, 2, 1, 3).reshape(side * PATCH, side * PATCH)
    axis.imshow(image, cmap='gray_r')
    axis.imshow(np.kron(weights.reshape(side, side), np.ones((PATCH, PATCH))), cmap='Reds', alpha=0.6)
    axis.set_xticks([])
    axis.set_yticks([])
