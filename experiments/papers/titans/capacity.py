"""How much a matrix memory of 32 x 32 holds, by how it writes: the lines of paper 33 that need no training."""

from collections.abc import Mapping

import jax
import numpy as np

from experiments.papers.contract import Line
from experiments.papers.streams import random_pairs, read_back, relative_error
from jattn.memories import MemoryConfig
from jattn.memories.bias import L2, Dot
from jattn.memories.gates import Gate, Gates
from jattn.memories.learner import Learner
from jattn.typing import Key

PAPER = '33'
DIM, PAIRS = 32, (8, 16, 32)
MATRIX = dict(width=DIM, heads=1)
HEBBIAN = MemoryConfig(bias=Dot(), **MATRIX)
DELTA = MemoryConfig(bias=L2(), **MATRIX)
MOMENTUM = MemoryConfig(learner=Learner(momentum=True), gates=Gates(momentum=Gate()), **MATRIX)

# name -> (memory, step, passes, momentum, {pairs: error that the sheet measured}, how far the mean may lie from it).
# The sheet measured one draw or few: errors after one pass vary by .02 with the draw, after four by .05.
WRITERS = {
    'Hebbian, one pass': (HEBBIAN, 1.0, 1, 0.0, {8: 0.48, 16: 0.69, 32: 1.00}, 0.03),
    'delta rule, one pass': (DELTA, 1.0, 1, 0.0, {8: 0.37, 16: 0.54, 32: 0.78}, 0.03),
    'delta rule, four passes': (DELTA, 1.0, 4, 0.0, {8: 0.04, 16: 0.20, 32: 0.55}, 0.05),
    'delta rule, step 0.5, four passes': (DELTA, 0.5, 4, 0.0, {32: 0.52}, 0.05),
    'momentum 0.9, step 0.1, four passes': (MOMENTUM, 0.1, 4, 0.9, {32: 0.46}, 0.05),
}


def errors(seeds: int, key: Key) -> dict[str, dict[int, np.ndarray]]:
    """writer -> pairs -> relative errors of every seed, where a figure is expected; all read the same pairs."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for pairs in PAIRS:
        keys, values = random_pairs(jax.random.fold_in(key, pairs), seeds, pairs, DIM)
        for name, (cfg, step, passes, momentum, expected, _) in WRITERS.items():
            if pairs not in expected:
                continue
            answers = read_back(cfg, keys, values, step, passes, momentum)
            found.setdefault(name, {})[pairs] = np.asarray(relative_error(answers, values))
    return found


def lines(found: Mapping[str, Mapping[int, np.ndarray]]) -> list[Line]:
    """The sheet's numbers, and the order of the writers."""
    out = []
    for name, (_, _, _, _, expected, apart) in WRITERS.items():
        for pairs, value in expected.items():
            errors = found[name][pairs]
            note = f'mean of {len(errors)} draws, standard deviation {errors.std():.3f}'
            out.append(
                Line.number(
                    PAPER,
                    f'recall error, {pairs} pairs in d = 32: {name}',
                    errors.mean(),
                    near=(value, apart),
                    note=note,
                )
            )
    gain = found['momentum 0.9, step 0.1, four passes'][32] - found['delta rule, step 0.5, four passes'][32]
    out.append(
        Line.number(
            PAPER,
            'recall error, 32 pairs, four passes: momentum minus the plain step',
            gain.mean(),
            below=0.0,
            note=f'the plain step at its better size, 0.5; smaller in {(gain < 0).sum()} of {len(gain)} draws',
        )
    )
    return out
