"""Trained at T = 256, tested on longer rows: Titans' memory, alone and as context, against windowed softmax alone."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.lengths import accuracies, curve
from experiments.papers.titans.settings import HEADS, WINDOW, Size, lmm
from jattn.contract import MixerConfig
from jattn.mixers import MIXERS, SoftmaxConfig

PAPER = '33'
CHUNK = 16
CHANCE = 0.1
Curves = Mapping[str, np.ndarray]


def mixers() -> dict[str, MixerConfig]:
    """Memory as context of segments as long as the window, memory alone, the window alone; the slowest first."""
    memory = lmm(CHUNK)
    context = dataclasses.replace(
        MIXERS['titans_mac'], memory=dataclasses.replace(memory, persistent=0), segment=WINDOW
    )
    return {'MAC': context, 'LMM': memory, 'windowed softmax': SoftmaxConfig(heads=HEADS, window=WINDOW)}


def measure(context: ClaimContext, size: Size) -> Curves:
    """name -> accuracies [seeds, lengths]."""
    return accuracies(
        size.passkey,
        mixers(),
        size.lengths,
        width=size.width,
        steps=size.passkey_steps,
        batch=size.passkey_batch,
        seeds=size.passkey_seeds,
        say=context.say,
        key=context.key(200),
    )


def lines(curves: Curves, size: Size) -> list[Line]:
    """What is kept from the training length to the longest."""
    trained, longest = size.lengths[0], size.lengths[-1]
    where = f'passkey, {size.passkey_steps} steps, seeds: {size.passkey_seeds}'
    out = []
    for name in ('LMM', 'MAC'):
        first, last = curves[name].mean(axis=0)[[0, -1]]
        note = f'{curve(curves[name], size.lengths)}; chance {CHANCE}'
        out += [
            Line.number(PAPER, f'{where}: accuracy of {name} at T = {trained}', first, above=0.5, note=note),
            Line.number(
                PAPER,
                f'{where}: accuracy of {name} lost from T = {trained} to {longest}',
                first - last,
                below=0.1,
                note=note,
            ),
        ]
    window = curves['windowed softmax']
    note = f'{curve(window, size.lengths)}; two layers see {2 * WINDOW} tokens back'
    return [
        *out,
        Line.number(
            PAPER,
            f'{where}: accuracy of windowed softmax alone at T = {longest}',
            window.mean(axis=0)[-1],
            near=(CHANCE, 0.05),
            note=note,
        ),
        *(
            Line.number(
                PAPER,
                f'{where}: accuracy of {name} minus windowed softmax at T = {longest}',
                (curves[name] - window).mean(axis=0)[-1],
                above=0.3,
            )
            for name in ('LMM', 'MAC')
        ),
    ]
