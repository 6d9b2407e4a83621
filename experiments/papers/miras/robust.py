"""A memory without training whose values hold outliers: the first claim of paper 52.

d = 32, 16 random pairs, 8 passes, theta = 0.3; with outliers, a tenth of the values are 20 times as large
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.contract import Line
from experiments.papers.streams import random_pairs, read_back, relative_error
from jattn.memories import MemoryConfig
from jattn.memories.bias import L1, L2, Dot, Huber
from jattn.typing import Key

PAPER = '52'
DIM, PAIRS, PASSES, STEP = 32, 16, 8, 0.3
SHARE, SIZE = 0.1, 20.0

# name -> (the loss, errors on the clean pairs that the sheet measured over 16 seeds: with outliers, without).
LOSSES = {
    'l2': (L2(), 0.98, 0.288),
    'vector Huber, delta 7': (Huber(threshold=7.0), 0.33, 0.288),
    'coordinate Huber, delta 2': (Huber(form='coordinate', threshold=2.0), 0.39, 0.290),
    'sign': (L1(form='exact'), 0.37, 0.360),
    'dot': (Dot(), 7.9, None),
}


def errors(seeds: int, key: Key) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """loss -> relative errors on the clean pairs of every seed, with outliers and without; all on the same pairs."""
    pair_key, outlier_key = jax.random.split(key)
    keys, values = random_pairs(pair_key, seeds, PAIRS, DIM)
    is_outlier = jax.random.bernoulli(outlier_key, SHARE, (seeds, PAIRS))
    shown = jnp.where(is_outlier[:, :, None], SIZE * values, values)
    clean = (~is_outlier).astype(values.dtype)
    found = {}
    for name, (loss, _, _) in LOSSES.items():
        cfg = MemoryConfig(width=DIM, heads=1, bias=loss)
        found[name] = tuple(
            np.asarray(relative_error(read_back(cfg, keys, told, STEP, PASSES), values, counted))
            for told, counted in ((shown, clean), (values, None))
        )
    return found


def lines(found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[Line]:
    """The sheet's figures and its rule of thumb: Huber below half of l2 with outliers, within 2% of it without."""
    out = []
    for name, (_, with_outliers, without) in LOSSES.items():
        for which, expected, values in zip(('with outliers', 'no outliers'), (with_outliers, without), found[name]):
            if expected is None:
                continue
            # The sheet's figure is a mean of 16 draws: 2.5 of its standard errors.
            apart = 2.5 * float(values.std()) / 4
            note = f'mean of {len(values)} draws, standard error {values.std() / len(values) ** 0.5:.3f}'
            claim = f'recall error of clean pairs, {which}: {name}'
            out.append(Line.number(PAPER, claim, values.mean(), near=(expected, apart), note=note))
    (l2, l2_clean), (huber, huber_clean) = found['l2'], found['vector Huber, delta 7']
    return [
        *out,
        Line.number(PAPER, 'vector Huber over l2, with outliers', huber.mean() / l2.mean(), below=0.5),
        Line.number(PAPER, 'vector Huber over l2, no outliers', huber_clean.mean() / l2_clean.mean(), near=(1.0, 0.02)),
    ]
