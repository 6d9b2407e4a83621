"""Associative recall: what the state, the normaliser and the forget gate are worth."""

import itertools
from collections.abc import Mapping, Sequence

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.dynamical_systems.settings import (
    REVERSED,
    S6,
    SIGMOID,
    SOFTMAX,
    SSD,
    Size,
    linear,
    lstms,
    members,
)
from experiments.papers.small_models import Setting, Variables, compare, mean, score, values

PAPER = '58'
TIE = -0.02  # 'no worse': seeds alone move an accuracy by as much
Runs = Sequence[dict[str, float] | None]
Found = Mapping[tuple, Runs]  # (..., learning rate) -> metrics of every seed


def measure(context: ClaimContext, size: Size, settings: Mapping[tuple, Setting], root: int) -> dict[tuple, Runs]:
    """Metrics of every training, on the same fresh rows of its task."""

    def metrics(setting: Setting, variables: Variables) -> dict[str, float]:
        return score(setting, variables, setting.data, 256, 4, context.key(900))

    named = {', '.join(map(str, key)): setting for key, setting in settings.items()}
    return dict(zip(settings, compare(named, size.seeds, metrics, context.say, context.key(root)).values()))


def measure_all(context: ClaimContext, size: Size) -> tuple[dict[tuple, Runs], dict[tuple, Runs]]:
    """The members, and the qLSTMs."""
    return measure(context, size, members(size), 100), measure(context, size, lstms(size), 200)


def best(found: Found, *name: object) -> float:
    """The accuracy at the best learning rate, the mean over its seeds; failed runs are none."""
    scores = [mean(runs, 'accuracy') for key, runs in found.items() if key[:-1] == name]
    return max((score for score in scores if score == score), default=float('nan'))


def sweep(found: Found, *names: tuple) -> str:
    """All learning rates and seeds of these, as text."""
    return '; '.join(
        ' '.join(map(str, name))
        + ': '
        + ', '.join(f'{values(runs, "accuracy")} at {key[-1]:g}' for key, runs in found.items() if key[:-1] == name)
        for name in names
    )


def lines(found: Found, size: Size) -> list[Line]:
    """Linear attention over n, normalised attention, state spaces."""
    task = size.task
    where = f'recall of {task.pairs} pairs, T = {task.tokens}, {size.steps} steps: accuracy'
    by_state = [(linear(n),) for n in size.expansions]
    accuracy = {n: best(found, linear(n)) for n in size.expansions}
    first, last = size.expansions[0], size.expansions[-1]
    chance = task.facts()
    note = (
        f'{sweep(found, (SOFTMAX,), *by_state)}; guessing a value {chance["chance_accuracy"]:.3f}, one of the context '
        f'{chance["context_value_accuracy"]:.3f}'
    )
    rises = sum(accuracy[more] > accuracy[less] for less, more in itertools.pairwise(size.expansions))
    gap = {n: best(found, SOFTMAX) - accuracy[n] for n in (first, last)}
    states = ', '.join(map(str, size.expansions))
    return [
        Line.count(
            PAPER,
            f'{where} of linear attention rises with each doubling of n = {states}',
            rises,
            of=len(size.expansions) - 1,
            note=note,
        ),
        Line.number(PAPER, f'{where} of softmax minus linear attention, n = {first}', gap[first], above=0.0),
        Line.number(
            PAPER, f'{where}: gap to softmax closed from n = {first} to {last}', gap[first] - gap[last], above=0.0
        ),
        *_normaliser_lines(found, size, where),
    ]


def _normaliser_lines(found: Found, size: Size, where: str) -> list[Line]:
    note = sweep(found, *((name,) for name in (*size.normalisers, S6, SSD)))
    exact, at = best(found, 'exp'), f'n = {size.expansion}'
    out = [
        Line.number(
            PAPER,
            f'{where} of normalised minus linear attention, {at}',
            exact - best(found, linear(size.expansion)),
            above=0.0,
            note=note,
        )
    ]
    pairs = [(name, 'normalised attention', best(found, name) - exact) for name in (S6, SSD)]
    pairs += [('eta = exp', name, exact - best(found, name)) for name in size.normalisers[1:]]
    return out + [
        Line.number(PAPER, f'{where} of {better} minus {other}, {at}', gap, above=TIE) for better, other, gap in pairs
    ]


def lstm_lines(found: Found, size: Size) -> list[Line]:
    """The reversed gate is no worse, and the more so the longer the task."""
    gaps, out = {}, []
    for tokens, task in size.tasks.items():
        for width in size.widths:
            gaps[tokens, width] = best(found, REVERSED, width, tokens) - best(found, SIGMOID, width, tokens)
            claim = f'recall of {task.pairs} pairs, T = {tokens}: accuracy of the reversed minus the plain qLSTM'
            note = sweep(found, (REVERSED, width, tokens), (SIGMOID, width, tokens))
            out.append(Line.number(PAPER, f'{claim}, D = {width}', gaps[tokens, width], above=TIE, note=note))
    if size.longer is None:
        return out
    short, long = size.tasks
    grown = sum(gaps[long, width] - gaps[short, width] for width in size.widths) / len(size.widths)
    claim = f'gain of the reversed qLSTM, mean of its widths: T = {long} minus T = {short}'
    return [*out, Line.number(PAPER, claim, grown, above=0.0)]
