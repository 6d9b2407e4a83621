"""Pictures of what the tools find."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from jattn.typing import Array, Float
from jattn.understanding.heads import SCORES, HeadScores


def draw_head_scores(scores: HeadScores, path: pathlib.Path, uniform: float | None = None) -> None:
    """One map of layers x heads a score, all on one scale; `uniform` is what an indifferent head would get."""
    figure = Figure(figsize=(3.4 * len(SCORES), 0.55 * len(scores.layers) + 1.6), layout='constrained')
    for axis, name in zip(figure.subplots(1, len(SCORES)), SCORES):
        image = _draw_map(axis, getattr(scores, name), scores.layers)
        axis.set_title(name.replace('_', ' '))
    figure.colorbar(image, ax=figure.axes, label='share of attention')
    if uniform is not None:
        figure.suptitle(f'what heads attend to (uniform attention: {uniform:.3f})', fontsize=10)
    figure.savefig(path, dpi=120)


def _draw_map(axis: object, values: Float[Array, 'L H'], layers: tuple[int, ...]) -> object:
    values = np.asarray(values)
    image = axis.imshow(values, vmin=0, vmax=1, cmap='viridis', aspect='auto')
    for (row, head), value in np.ndenumerate(values):
        axis.text(head, row, f'{value:.2f}', ha='center', va='center', color='white' if value < 0.6 else 'black')
    axis.set_xticks(range(values.shape[1]))
    axis.set_yticks(range(len(layers)), layers)
    axis.set_xlabel('head')
    axis.set_ylabel('layer')
    return image
