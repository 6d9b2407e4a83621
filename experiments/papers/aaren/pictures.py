"""The picture of paper 48's rerun: both models in every setting."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from experiments.papers.aaren.sequences import CLAIMS, Found
from experiments.papers.aaren.settings import AAREN, SOFTMAX


def draw(found: Found, path: pathlib.Path) -> None:
    """A panel a setting; a mark is a seed, a bar the mean."""
    shown = [where for where in CLAIMS if (where, AAREN) in found]
    figure = Figure(figsize=(2.6 * len(shown), 3.2), layout='constrained')
    for axis, where in zip(np.ravel(figure.subplots(1, len(shown))), shown):
        metric = CLAIMS[where][0]
        for place, name in enumerate((AAREN, SOFTMAX)):
            scores = [run[metric] for run in found[where, name] if run]
            axis.bar(place, np.mean(scores) if scores else 0, color=f'C{place}', alpha=0.5)
            axis.plot([place] * len(scores), scores, 'k_', markersize=12)
        axis.axhline(0, color='0.6', linewidth=0.5)
        axis.set_xticks([0, 1], [AAREN, SOFTMAX], fontsize=8)
        axis.set(ylabel='nats an event' if metric == 'loss' else metric, title=where)
    figure.savefig(path, dpi=110)
