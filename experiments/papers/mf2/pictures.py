"""The picture of paper 57's rerun: what is judged right by kind of claim, by length of the log, and without it."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from experiments.papers.mf2.decoders import Runs
from experiments.papers.mf2.judging import Found, mean, of
from experiments.papers.mf2.settings import Size


def draw(runs: Runs, size: Size, path: pathlib.Path) -> None:
    """Three panels; dotted: a coin for each claim, dashed: the most that is won without knowledge."""
    runs = {name: [run for run in found if run is not None] for name, found in runs.items()}
    runs = {name: found for name, found in runs.items() if found}
    figure = Figure(figsize=(15, 4.4), layout='constrained')
    left, middle, right = figure.subplots(1, 3, width_ratios=(5, 4, 3))
    events, places = size.lengths[0], np.arange(len(size.kinds))
    for number, (name, found) in enumerate(runs.items()):
        shift, wide = (number - (len(runs) - 1) / 2) * 0.8 / len(runs), 0.8 / len(runs)
        kinds = [mean(found, events, f'kind/{kind}') for kind in size.kinds]
        left.bar(places + shift, kinds, wide, label=name)
        (line,) = middle.plot(
            size.lengths, [mean(found, length, 'pairwise') for length in size.lengths], 'o-', label=name
        )
        choice = [mean(found, length, 'forced_choice') for length in size.lengths]
        middle.plot(size.lengths, choice, '^:', color=line.get_color())
        right.bar(number - 0.2, _alone(found, 'pairwise'), 0.4, color=line.get_color())
        right.bar(number + 0.2, _alone(found, 'forced_choice'), 0.4, color=line.get_color(), alpha=0.4)
    for panel in (left, middle, right):
        panel.axhline(0.25, color='0.4', linestyle=':')
        panel.axhline(0.5, color='0.4', linestyle='--')
        panel.set_ylim(0, 1.02)
    left.set_xticks(places, [kind.replace('_', '\n') for kind in size.kinds])
    left.set(ylabel='pairwise accuracy', title=f'by kind of claim, {events} events')
    middle.set_xscale('log', base=2)
    middle.set_xticks(size.lengths, [str(length) for length in size.lengths])
    middle.set(xlabel='events', title='pairwise (lines) and forced choice (triangles)')
    right.set_xticks(range(len(runs)), [name.replace('_', '\n') for name in runs], fontsize=7)
    right.set(title='without the log (pale: forced choice)')
    figure.legend(*left.get_legend_handles_labels(), loc='outside lower center', ncols=len(runs), fontsize=9)
    figure.savefig(path, dpi=110)


def _alone(found: list[Found], name: str) -> float:
    """A number without the log, the mean over seeds."""
    return float(np.mean([of(run.alone, name) for run in found]))
