"""Paper 02, density-adaptive attention (DAAM) in a speech network: a gate of a few Gaussians before a small classifier.

    python -m experiments.claims --only=02 --data_dir=DIR --out=runs/claims          2 minutes, DIR/fsdd
    python -m experiments.claims --only=02 --out=runs/claims                         without the recordings
    python -m experiments.claims --only=02 --size=tiny                               half a minute: that everything runs

Claims: the same classifier is better behind the gate where data is little; the gate has 2 H K = 32 parameters; its
mean weights go with how much the classifier needs each bin; the published product with a clamped sum fails more often
the more Gaussians there are; cost is linear in the length, where attention's is quadratic.

Choices: the authors' clinical recordings are licensed, so that the task is the digit, or the speaker, of four
recordings of each digit by each speaker (FSDD), scored on the set's own test split. A softmax normalises the gate. One
LSTM of width 64 where the paper has two of 128; squeeze-excite has hidden layers of 10.
"""

import dataclasses

import numpy as np

from experiments.papers import cost
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.density_adaptive import explain
from experiments.papers.density_adaptive.settings import SIZES, Size
from experiments.papers.forward import forward, parameters
from experiments.papers.ranks import spearman
from experiments.papers.small_models import (
    Found,
    Setting,
    Variables,
    compare,
    mean,
    outputs,
    score,
    stacked_rows,
    values,
)
from jattn.data import FSDDConfig
from jattn.mixers import DensityAdaptiveConfig, SoftmaxConfig

PAPER = '02'
GATE = 'density'
CLAMPED = {5: (0.002, 0.003), 16: (0.21, 0.03), 24: (0.83, 0.03)}  # K -> the sheet's share, and how near


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its picture."""
    size = SIZES[context.size]
    lines = [parameter_line(size), *clamp_lines(size)]
    found, explained = {}, []
    if context.lacks('fsdd'):
        lines += missing()
    else:
        for number, target in enumerate(('digit', 'speaker')):
            context.say(f'{target} of few recordings')
            found[target] = gates(context, size, size.speech(context.data('fsdd'), target), 100 + number)
            lines.append(gate_line(found[target], target, size, 'f1'))
        explained = explain.explain(context, size)
        lines.append(explanation_line(explained))
    context.say('synthetic bins')
    found['bins'] = gates(context, size, size.bins, 200)
    lines.append(gate_line(found['bins'], 'synthetic bins', size, 'f1'))
    if context.size != 'tiny':
        lines += cost_lines(context)
    explain.draw(found, explained, context.out / 'density_adaptive.png')
    return lines


def missing() -> list[Line]:
    """The lines that need recordings."""
    names = [f'{task}: macro F1 behind the gate minus without' for task in ('digit', 'speaker')]
    names.append('weights and needs of the bins: Spearman')
    return [Line.missing(PAPER, name, '> 0', needs('fsdd')) for name in names]


def parameter_line(size: Size) -> Line:
    """Of the gate."""
    count = parameters(dataclasses.replace(size.model, input_size=40).density, 40)
    expected = 2 * size.model.heads * size.model.gaussians
    return Line.number(PAPER, 'parameters of the gate, 2 H K', count, near=(expected, 0))


def clamp_lines(size: Size) -> list[Line]:
    """How often max(sum, 1e-8) fires in the published product, on 10 standard normal numbers with new widths."""
    draws = np.random.default_rng(0)
    x = draws.normal(size=(size.draws, 10))
    z = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, ddof=1, keepdims=True)
    lines = []
    for count, near in CLAMPED.items():
        log_width = draws.normal(size=(size.draws, count))
        each = (
            -np.square(z[:, :, None]) / (2 * np.exp(2 * log_width))[:, None]
            - (log_width + np.log(2 * np.pi) / 2)[:, None]
        )
        fires = np.mean(np.exp(each.sum(axis=-1)).sum(axis=1) < 1e-8)
        lines.append(
            Line.number(PAPER, f'published product of {count} Gaussians: share that the clamp cuts', fires, near=near)
        )
    return lines


def gates(context: ClaimContext, size: Size, data: FSDDConfig | object, number: int) -> dict[str, Found]:
    """Macro F1 (synthetic bins: accuracy) of every gate and seed."""
    settings = {gate: size.setting(data, gate) for gate in size.gates}

    def measure(setting: Setting, variables: Variables) -> dict[str, float]:
        if not isinstance(data, FSDDConfig):
            return {'f1': score(setting, variables, data, 512, 4, context.key(900))['accuracy']}
        rows = stacked_rows(data, 'test')
        return {'f1': macro_f1(np.asarray(outputs(setting, variables, rows)).argmax(axis=1), rows.targets)}

    return compare(settings, size.seeds, measure, context.say, context.key(number))


def macro_f1(guesses: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN).

    >>> macro_f1(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])) == (2 / 3 + 4 / 5) / 2
    True
    """
    scores = []
    for label in np.unique(labels):
        both = np.sum((guesses == label) & (labels == label))
        scores.append(2 * both / (np.sum(guesses == label) + np.sum(labels == label)))
    return float(np.mean(scores))


def gate_line(found: Found, task: str, size: Size, score: str) -> Line:
    """The gate is no loss; beside it, in the note, what else was tried."""
    gain = (
        f'{mean(found[GATE], score) - mean(found["gain"], score):+.3f} against a gain a bin; '
        if 'gain' in found
        else ''
    )
    return Line.number(
        PAPER,
        f'{task}: {"accuracy" if task == "synthetic bins" else "macro F1"} behind the gate minus without',
        mean(found[GATE], score) - mean(found['none'], score),
        above=0.0,
        note=gain + ', '.join(f'{gate} {values(runs, score)}' for gate, runs in found.items()),
    )


def explanation_line(explained: list[dict[str, np.ndarray]]) -> Line:
    """The weights go with what the classifier needs."""
    found = [spearman(run['weight'], run['growth']) for run in explained]
    return Line.number(
        PAPER,
        'weights and needs of the bins: Spearman',
        float(np.mean(found)),
        above=0.0,
        note='ten of forty bins drowned in noise; by seed ' + '/'.join(f'{value:.2f}' for value in found),
    )


def cost_lines(context: ClaimContext) -> list[Line]:
    """Of the gate over time, and of softmax attention."""
    makes = {
        'density over time': forward(DensityAdaptiveConfig(), 64),
        'softmax': forward(SoftmaxConfig(causal=False, heads=4), 64),
    }
    found = cost.measure(makes, say=context.say)
    shortest, title = cost.slopes_from(cost.LENGTHS), 'a layer of width 64, one row of T tokens'
    cost.print_table(title, found, shortest)
    cost.draw(found, context.out / 'cost.png', title, shortest)
    span = f'T from {shortest} to {cost.LENGTHS[-1]}'
    return [
        Line.number(PAPER, f'exponent of T in the time, {span}: {name}', own.slope(shortest=shortest), near=near)
        for (name, own), near in zip(found.items(), ((1.0, 0.2), (2.0, 0.3)), strict=True)
    ]
