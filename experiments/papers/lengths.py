"""Decoders trained on passkey recall at one length and tried at longer ones.

A row has one question, so that long rows teach little for what they cost: nothing was learned from 2400 rows of 256
tokens. The training starts with `FIRST`, short rows, and ends with the task's own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.papers.small_models import Setting, Variables, compare, score
from jattn.contract import MixerConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Passkey
from jattn.training.optimizer import AdamWConfig
from jattn.typing import Float, Key

FIRST = dict(tokens=32, batch=64, steps=150)  # before the rows of the task's own length
ROWS = 2**15  # tokens of an evaluation batch: long rows come in small batches
QUESTIONS = 32  # at the least, one a row


def accuracies(
    task: Passkey,
    mixers: Mapping[str, MixerConfig],
    lengths: Sequence[int],
    *,
    width: int,
    steps: int,
    batch: int,
    seeds: int,
    say: Callable[[str], None],
    key: Key,
    peak_lr: float = 5e-3,
) -> dict[str, Float[np.ndarray, 'seeds lengths']]:
    """name -> accuracy of a digit by seed and length; nan where a training failed.

    Args:
        task: passkey, at the length of training.
        mixers: of decoders of two layers without feed-forward.
        lengths: at which they are tried.
        width: of the decoders.
        steps, batch: of a training, after `FIRST`.
        seeds: trainings a mixer.
        say: told of every training.
        key: root of all randomness.
        peak_lr: of AdamW; a third of it on the task's own rows.
    """

    def setting(mixer: MixerConfig) -> Setting:
        own = Setting(
            model=DecoderConfig(width=width, layers=2, mixer=(mixer,), feed_forward=None, remat='none'),
            data=task,
            steps=steps,
            batch=batch,
            optimizer=AdamWConfig(peak_lr=peak_lr / 3, warmup_steps=20),
        )
        short = dataclasses.replace(
            own,
            data=dataclasses.replace(task, tokens=FIRST['tokens']),
            steps=FIRST['steps'],
            batch=FIRST['batch'],
            optimizer=AdamWConfig(peak_lr=peak_lr, warmup_steps=20),
        )
        return dataclasses.replace(own, after=short)

    settings = {name: setting(mixer) for name, mixer in mixers.items()}

    def measure(setting: Setting, variables: Variables) -> list[float]:
        found = []
        for length in lengths:
            rows = max(ROWS // length, 1)
            longer = dataclasses.replace(task, tokens=length)
            found.append(score(setting, variables, longer, rows, -(-QUESTIONS // rows), key)['accuracy'])
        return found

    found = compare(settings, seeds, measure, say, key)
    missing = [float('nan')] * len(lengths)
    return {name: np.array([missing if run is None else run for run in runs]) for name, runs in found.items()}


def curve(values: Float[np.ndarray, 'seeds lengths'], lengths: Sequence[int]) -> str:
    """Means over seeds, as text.

    >>> curve(np.array([[1.0, 0.5], [0.5, 0.25]]), (256, 1024))
    '0.750 at 256, 0.375 at 1024'
    """
    return ', '.join(f'{mean:.3f} at {length}' for mean, length in zip(values.mean(axis=0), lengths, strict=True))
