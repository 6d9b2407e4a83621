"""Associative recall whose shown values are partly wrong: losses that bend against l2, and Moneta's two norms."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.miras.settings import Size, memory, moneta
from experiments.papers.small_models import Setting, Variables, compare, score
from jattn.contract import MixerConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import AssociativeRecall
from jattn.training.optimizer import AdamWConfig

PAPER = '52'
CHUNK = 4
Runs = Sequence[float | None]  # accuracies by seed; None: the training failed
Found = Mapping[str, Runs]


def _setting(size: Size, mixer: MixerConfig, task: AssociativeRecall) -> Setting:
    return Setting(
        model=DecoderConfig(width=size.width, layers=2, mixer=(mixer,), feed_forward=None, remat='none'),
        data=task,
        steps=size.recall_steps,
        batch=size.recall_batch,
        optimizer=AdamWConfig(peak_lr=5e-3, warmup_steps=50),
    )


def corrupted(size: Size) -> AssociativeRecall:
    """The task with wrong values among those shown."""
    return dataclasses.replace(size.recall, corrupted=size.corrupted)


def measure(context: ClaimContext, size: Size) -> Found:
    """'name, clean' and 'name, corrupted' -> accuracies on such rows, the same for all; trained on corrupted ones."""
    tasks = {'clean': size.recall, 'corrupted': corrupted(size)}
    settings = {name: _setting(size, memory(name, CHUNK), tasks['corrupted']) for name in size.networks}

    def accuracies(setting: Setting, variables: Variables) -> dict[str, float]:
        return {kind: _accuracy(setting, variables, task, context) for kind, task in tasks.items()}

    found = compare(settings, size.seeds, accuracies, context.say, context.key(100))
    return {
        f'{name}, {kind}': [None if run is None else run[kind] for run in runs]
        for name, runs in found.items()
        for kind in tasks
    }


def measure_sweep(context: ClaimContext, size: Size) -> Found:
    """'p, q' of Moneta -> accuracies on clean values."""
    settings = {f'p = {p:g}, q = {q:g}': _setting(size, moneta(p, q, CHUNK), size.recall) for p, q in size.sweep}

    def accuracy(setting: Setting, variables: Variables) -> float:
        return _accuracy(setting, variables, size.recall, context)

    return compare(settings, 1, accuracy, context.say, context.key(100))


def _accuracy(setting: Setting, variables: Variables, task: AssociativeRecall, context: ClaimContext) -> float:
    return score(setting, variables, task, 256, 4, context.key(900))['accuracy']


def lines(found: Found, size: Size) -> list[Line]:
    """Equal on clean values, better on corrupted ones."""
    best = corrupted(size).facts()['look_up_accuracy']
    where = f'recall, every pair {size.recall.repeats} times, {size.corrupted:g} of the values corrupted'
    out = []
    for kind in ('clean', 'corrupted'):
        note = ', '.join(f'{name} {values(found[f"{name}, {kind}"])}' for name in size.networks)
        rule = dict(near=(0.0, 0.02)) if kind == 'clean' else dict(above=0.0)
        for name in size.networks:
            if name == 'l2' or 'l2' not in size.networks:
                continue
            gain = mean(found[f'{name}, {kind}']) - mean(found[f'l2, {kind}'])
            claim = f'{where}: accuracy of {name} minus the same network with l2, on {kind} rows'
            out.append(Line.number(PAPER, claim, gain, note=note, **rule))
    for name in size.networks:
        runs = found[f'{name}, corrupted']
        claim = f'{where}: accuracy of {name} against a vote of the shown values'
        out.append(Line.number(PAPER, claim, mean(runs), near=(best, 0.05), note=f'runs {values(runs)}'))
    return out


def sweep_lines(found: Found, size: Size) -> list[Line]:
    """p = 3 is best, p = 4 worst, at q = 4."""
    score = {pair: mean(found[f'p = {pair[0]:g}, q = {pair[1]:g}']) for pair in size.sweep}
    note = 'accuracies on clean values, one seed: ' + ', '.join(
        f'{name} {values(runs)}' for name, runs in found.items()
    )
    order = sorted({p for p, q in size.sweep if q == 4}, key=lambda p: -_or_low(score[p, 4.0]))
    best, worst = order[0], order[-1]
    return [
        Line(PAPER, 'Moneta, q = 4: the p with the best recall', '3', f'{best:g}', best == 3, note),
        Line(PAPER, 'Moneta, q = 4: the p with the worst recall', '4', f'{worst:g}', worst == 4, note),
        Line.number(
            PAPER,
            'Moneta, p = 3: accuracy with q = 4 minus q = 2',
            score[3.0, 4.0] - score[3.0, 2.0],
            above=0.0,
            note='the paper chose q = 4',
        ),
    ]


def mean(runs: Runs) -> float:
    """Over seeds; nan when a run has failed."""
    return math.nan if any(run is None for run in runs) else sum(runs) / len(runs)


def values(runs: Runs) -> str:
    """All seeds, as text."""
    return '/'.join('failed' if run is None else f'{run:.3f}' for run in runs)


def _or_low(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
