"""Pictures of what the tools find."""

import math
import pathlib

import numpy as np
from matplotlib.figure import Figure

from jattn.typing import Array, Float
from jattn.understanding.heads import SCORES, HeadScores
from jattn.understanding.surprise import Surprise

LINE = 80  # characters of a line of `draw_surprise`
SIGNS = {'\n': '\u21b5', '\t': '\u2192', ' ': '\u00b7'}  # what a character without ink is drawn as


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


def draw_surprise(found: Surprise, text: str, path: pathlib.Path, row: int = 0) -> None:
    """A text with its surprise under every character: a line a layer (mean over heads), and the model's own bits.

    Every line is in units of its mean over the text: dark is as expected, bright is new.

    Args:
        found: the readings.
        text: as many characters as tokens.
        path: of the picture.
        row: which row of the batch.

    Raises:
        ValueError: the text has another length.
    """
    readings = np.asarray(found.surprise[:, row].mean(axis=-1), np.float32)
    if len(text) != readings.shape[1]:
        raise ValueError(f'draw_surprise: text has {len(text)} characters, but there are {readings.shape[1]} tokens')
    values = np.concatenate([readings, np.asarray(found.nats, np.float32)[row : row + 1]])
    values = values / np.maximum(np.nanmean(values, axis=1, keepdims=True), 1e-12)
    names = [*(f'layer {layer}' for layer in found.layers), 'bits']
    lines = math.ceil(len(text) / LINE)
    width = min(LINE, len(text))
    figure = Figure(figsize=(0.165 * width + 2.2, lines * (0.24 * len(names) + 0.45) + 0.7), layout='constrained')
    axes = np.atleast_1d(figure.subplots(lines, 1))
    bright = float(np.nanquantile(values, 0.98))
    for number, axis in enumerate(axes):
        part = slice(number * LINE, (number + 1) * LINE)
        shown = np.full((len(names), width), np.nan)
        shown[:, : len(text[part])] = values[:, part]
        image = axis.imshow(shown, vmin=0, vmax=bright, cmap='magma', aspect='auto')
        signs = [SIGNS.get(sign, sign if sign.isprintable() else '\u25a1') for sign in text[part]]
        axis.set_xticks(range(len(signs)), signs, family='monospace')
        axis.xaxis.tick_top()
        axis.tick_params(axis='both', length=0, labelsize=9)
        axis.set_yticks(range(len(names)), names)
        axis.axhline(len(names) - 1.5, color='white', linewidth=1.5)
    figure.colorbar(image, ax=axes, label='times the mean', fraction=0.03, pad=0.01)
    figure.suptitle('surprise of the memories (norm of the inner gradient), and bits of the model', fontsize=10)
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
