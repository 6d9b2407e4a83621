"""What LAMA looks at, on rows where two words decide; and the picture of paper 51's rerun."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from experiments.papers.lama.cues import CUES
from experiments.papers.lama.settings import LAMA, Size
from experiments.papers.small_models import Found, Setting, Variables
from jattn.taps import TAPS
from jattn.training.step import batch_context
from jattn.typing import Key

ROWS = 512


def weights(setting: Setting, variables: Variables, key: Key) -> dict[str, object]:
    """The mean weight of every word, the share of rows whose two largest are the cues, and some rows; over heads."""
    batch = setting.data.sample(key, ROWS)
    (_, _), tapped = setting.module.apply(variables, batch.inputs, batch_context(batch), mutable=[TAPS])
    maps = np.asarray(tapped[TAPS]['maps']).mean(axis=1)
    words = np.asarray(batch.inputs)
    by_word = np.array([maps[words == word].mean() for word in range(setting.data.input_size)])
    two = np.take_along_axis(words, np.argsort(maps, axis=1)[:, -2:], axis=1)
    return {
        'by_word': by_word,
        'two_largest': float(np.mean(np.all(two < CUES, axis=1))),
        'maps': maps[:8],
        'words': words[:8],
    }


def draw(found: Found, cues: Found, size: Size, path: pathlib.Path) -> None:
    """Accuracies, the mean weight of every word, and the maps of some rows."""
    figure = Figure(figsize=(15, 4.2), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    for place, (name, runs) in enumerate(found.items()):
        scores = [run['accuracy'] for run in runs if run]
        left.barh(place, np.mean(scores) if scores else 0, color='tab:blue' if LAMA in name else 'tab:gray', alpha=0.5)
        left.plot(scores, [place] * len(scores), 'k|', markersize=12)
    left.set_yticks(range(len(found)), list(found), fontsize=8)
    left.invert_yaxis()
    left.set(xlabel='accuracy', xlim=(0.5, 1.0), title='sentences' if found else 'sentences: not run')

    runs = [run for run in cues[LAMA] if run]
    for run in runs:
        scaled = run['by_word'] * size.cues.tokens
        middle.plot(range(CUES), scaled[:CUES], 'o', color='tab:red')
        middle.plot(range(CUES, len(scaled)), scaled[CUES:], '.', color='tab:gray')
    middle.axhline(1, color='0.6', linestyle=':')
    middle.set(xlabel='word (the four cues first)', ylabel='mean weight x T', title='two cues decide: weights by word')

    shown = runs[0]
    image = right.imshow(shown['maps'] * size.cues.tokens, aspect='auto', cmap='Blues')
    for row, column in zip(*np.nonzero(shown['words'] < CUES)):
        right.text(column, row, 'x', ha='center', va='center', color='tab:red')
    figure.colorbar(image, ax=right, label='weight x T')
    right.set(xlabel='place', ylabel='row', title='mean over heads; x is a cue')
    figure.savefig(path, dpi=110)
