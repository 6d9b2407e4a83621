"""Passkey recall trained at T = 256, tried on longer rows: Moneta, Yaad, Memora, DeltaNet and linear attention."""

from collections.abc import Mapping

import numpy as np

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.lengths import accuracies, curve
from experiments.papers.miras.settings import Size, memory

PAPER = '52'
CHUNK = 16
BASELINES = ('deltanet', 'linear_attention')
Curves = Mapping[str, np.ndarray]


def measure(context: ClaimContext, size: Size) -> Curves:
    """name -> accuracies [seeds, lengths]."""
    return accuracies(
        size.passkey,
        {name: memory(name, CHUNK) for name in size.passkey_mixers},
        size.lengths,
        width=size.width,
        steps=size.passkey_steps,
        batch=size.passkey_batch,
        seeds=size.passkey_seeds,
        say=context.say,
        key=context.key(200),
    )


def lines(curves: Curves, size: Size) -> list[Line]:
    """The three at the longest length, against each baseline."""
    longest = size.lengths[-1]
    return [
        Line.number(
            PAPER,
            f'passkey trained at T = {size.lengths[0]}, {size.passkey_steps} steps, seeds: {size.passkey_seeds}: '
            f'accuracy of {name} minus {other} at T = {longest}',
            (curves[name] - curves[other]).mean(axis=0)[-1],
            above=0.0,
            note=f'{name} {curve(curves[name], size.lengths)}; {other} {curve(curves[other], size.lengths)}',
        )
        for name in size.passkey_mixers
        if name not in BASELINES
        for other in BASELINES
    ]
