"""Trains decoders on rows that are read once or more often, and says which of the sheet's expectations come out."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.re_reading.settings import FILLER, PAPER, SOFTMAX, Reads, Size, memory_of
from experiments.papers.small_models import Setting, Variables, compare, read_site, score
from jattn.typing import Array, Float, Key
from jattn.understanding.forward_mass import forward_mass


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured of one trained decoder.

    Attributes:
        accuracy: of the answers.
        forward, at_start: attention of the second copy to later tokens of the first, by layer, after the training and
            before it; None: the mixer has no attention, or there is no second copy.
    """

    accuracy: float
    forward: Float[Array, 'L'] | None = None
    at_start: Float[Array, 'L'] | None = None


Runs = Mapping[tuple[str, Reads], Sequence[Found | None]]  # (mixer, reads) -> by seed; None: the training failed


def measure(context: ClaimContext, size: Size) -> Runs:
    """Every mixer at every number of reads; equal seeds see equal pairs and questions, all are scored on equal ones."""
    cells = [(name, reads) for name in size.mixers for reads in size.reads(name)]
    names = {f'{name}, {told_of(reads)}': (name, reads) for name, reads in cells}

    def measured(setting: Setting, variables: Variables) -> Found:
        accuracy = score(setting, variables, setting.data, size.rows, size.batches, context.key(900))['accuracy']
        if setting.data.reads != 2 or setting.model.mixer[0] != size.mixers[SOFTMAX]:
            return Found(accuracy)
        masses = [
            _forward(setting, size, own, context.key(901)) for own in (variables, _fresh(setting, context.key(902)))
        ]
        return Found(accuracy, *masses)

    settings = {told: size.setting(*cell) for told, cell in names.items()}
    found = compare(settings, size.seeds, measured, context.say, context.key(0))
    return {names[told]: runs for told, runs in found.items()}


def told_of(reads: Reads) -> str:
    """In words.

    >>> told_of(1), told_of(2), told_of(FILLER)
    ('one read', '2 reads', 'one read and a filler')
    """
    if reads == FILLER:
        return 'one read and a filler'
    return 'one read' if reads == 1 else f'{reads} reads'


@functools.partial(jax.jit, static_argnums=0)
def _fresh(setting: Setting, key: Key) -> Variables:
    """A model before its training."""
    return nn.unbox(setting.module.init(key, setting.data.sample(key, 1).inputs))


def _forward(setting: Setting, size: Size, variables: Variables, key: Key) -> Float[Array, 'L']:
    """Forward mass by layer, the mean over rows, heads and tokens."""
    pattern = read_site(setting, variables, setting.data.sample(key, size.shown), 'pattern')
    return np.asarray(jnp.mean(forward_mass(pattern, size.task.tokens), axis=(1, 2, 3)))


def mean(runs: Sequence[Found | None], name: str = 'accuracy') -> Float[Array, '*L']:
    """A measure, the mean over seeds; nan where a training has failed."""
    if any(run is None for run in runs):
        return np.float64('nan')
    return np.mean([getattr(run, name) for run in runs], axis=0)


def by_seed(runs: Sequence[Found | None]) -> str:
    """The accuracies, as text."""
    return '/'.join('failed' if run is None else f'{run.accuracy:.3f}' for run in runs)


def table(runs: Runs, size: Size) -> list[str]:
    """Accuracies of every mixer by reads and seeds."""
    return [f'{name}: {_accuracies(runs, size, name)}' for name in size.mixers]


def lines(runs: Runs, size: Size) -> list[Line]:
    """Two reads help a small state, a larger one less, attention not at all; neither a filler nor more reads help."""
    accuracy = {cell: float(mean(found)) for cell, found in runs.items()}
    gain = {name: accuracy[name, 2] - accuracy[name, 1] for name in size.mixers}
    told = {name: _accuracies(runs, size, name) for name in size.mixers}
    small, large = memory_of(size.states[0]), memory_of(size.states[-1])
    wins = sum(two.accuracy - one.accuracy > 0.2 for one, two in zip(runs[small, 1], runs[small, 2]) if one and two)
    more = [reads for reads in size.sweep if reads > 2]
    best = f'{told_of(more[0])} minus' if len(more) == 1 else f'the best of {more[0]} to {more[-1]} reads minus'
    where = f'recall of one of {size.task.pairs} pairs: accuracy'
    return [
        Line.number(PAPER, f'{where} of {small}, two reads minus one', gain[small], above=0.2, note=told[small]),
        Line.count(PAPER, f'{where} of {small}, seeds with more than 0.2 by two reads', wins, of=size.seeds),
        Line.number(
            PAPER,
            f'{where} of {small}, one read and a filler minus one read',
            accuracy[small, FILLER] - accuracy[small, 1],
            below=0.05,
        ),
        Line.number(
            PAPER,
            f'{where} of {small}, {best} two',
            float(np.max([accuracy[small, reads] for reads in more])) - accuracy[small, 2],  # nan where one is
            below=0.0,
            note='of published models that are prompted, two reads are the best',
        ),
        Line.number(
            PAPER,
            f'{where}, two reads minus one, of {small} minus of {large}',
            gain[small] - gain[large],
            above=0.0,
            note=told[large],
        ),
        Line.number(PAPER, f'{where} of {SOFTMAX}, one read', accuracy[SOFTMAX, 1], above=0.9),
        Line.number(
            PAPER, f'{where} of {SOFTMAX}, two reads minus one', gain[SOFTMAX], near=(0.0, 0.05), note=told[SOFTMAX]
        ),
        *_masses(runs, size),
    ]


def _accuracies(runs: Runs, size: Size, name: str) -> str:
    return ', '.join(f'{told_of(reads)} {by_seed(runs[name, reads])}' for reads in size.reads(name))


def _masses(runs: Runs, size: Size) -> list[Line]:
    """Attention looks further ahead after the training than before it, in every layer."""
    before, after = (np.broadcast_to(mean(runs[SOFTMAX, 2], name), size.layers) for name in ('at_start', 'forward'))
    return [
        Line.number(
            PAPER,
            f'{SOFTMAX}, layer {layer}: forward mass of the second copy, trained minus new',
            float(new - old),
            above=0.0,
            note=f'{new:.3f} and {old:.3f}',
        )
        for layer, (old, new) in enumerate(zip(before, after))
    ]
