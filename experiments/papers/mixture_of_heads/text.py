"""Decoders on novels, byte by byte: MoH beside softmax attention of 8, 6 and 4 heads of the same size."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.papers import novels
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.mixture_of_heads import gates
from experiments.papers.mixture_of_heads.settings import (
    BALANCE,
    FOUR,
    FULL,
    MOH_50,
    MOH_75,
    PAPER,
    PRINTED,
    SIX,
    UNBALANCED,
    Size,
    attentions,
)
from experiments.papers.small_models import Setting, Variables, compare, score_rows
from jattn.mixers.mixture_of_heads import MixtureOfHeadsConfig
from jattn.models.decoder import DecoderConfig
from jattn.training.experiment import LossWeights
from jattn.training.optimizer import AdamWConfig

Run = Mapping[str, Any]  # variables; loss; load [L, E] of MoH
Found = Mapping[str, Sequence[Run]]


def settings(context: ClaimContext, size: Size) -> dict[str, Setting]:
    """The trainings, by name."""
    data = novels.windows(context, size.tokens, size.held_out_bytes, size.titles)

    def setting(mixer: object, balance: float = BALANCE) -> Setting:
        return Setting(
            model=DecoderConfig(width=size.width, layers=size.layers, mixer=(mixer,), remat='none'),
            data=data,
            steps=size.steps,
            batch=size.batch,
            optimizer=AdamWConfig(peak_lr=size.peak_lr, warmup_steps=size.steps // 20),
            losses=LossWeights(load_balance=balance / size.layers),
        )

    mixers = attentions(size)
    return {name: setting(mixer) for name, mixer in mixers.items()} | {UNBALANCED: setting(mixers[MOH_75], 0.0)}


def measure(context: ClaimContext, size: Size) -> Found:
    """name -> runs, by seed."""

    def measured(setting: Setting, variables: Variables) -> Run:
        found = {'variables': variables, 'loss': score_rows(setting, variables, 64)['loss']}
        if isinstance(setting.model.mixer[0], MixtureOfHeadsConfig):
            found['load'] = gates.load(gates.read(setting, variables), setting.model.mixer[0])
        return found

    return compare(settings(context, size), size.seeds, measured, context.say, context.key(0))


def evenness(load: np.ndarray, active: int) -> float:
    """How evenly heads are used, mean over layers: 1 for all alike, 0 where all tokens take the same ones.

    >>> round(evenness(np.full((2, 6), 4 / 6), 4), 6), evenness(np.array([[1.0, 1.0, 0.0, 0.0]]), 2)
    (1.0, 0.0)
    """
    share = np.maximum(load / active, 1e-12)
    entropy = -np.sum(share * np.log(share), axis=-1).mean()
    least, most = math.log(active), math.log(load.shape[-1])
    return float(round((entropy - least) / (most - least), 9) + 0.0)


def lines(found: Found, size: Size) -> list[Line]:
    """MoH against all heads, and against as many heads as it uses; what the balance loss is for."""
    losses = {name: [run['loss'] for run in runs if run] for name, runs in found.items()}
    loss = {name: statistics.mean(runs) for name, runs in losses.items()}
    spread = max(max(runs) - min(runs) for runs in losses.values())
    note = f'nats a byte: {", ".join(f"{name} {mean:.4f}" for name, mean in loss.items())}'
    if size.seeds > 1:
        note += f'; seeds alone move a row by up to {spread:.4f}'
    where = f'novels, {size.steps} steps, seeds: {size.seeds}'
    even = {
        name: statistics.mean(evenness(run['load'], 6 - size.shared) for run in found[name])
        for name in (MOH_75, UNBALANCED)
    }
    out = [
        Line.number(PAPER, f'{where}: loss of {MOH_75} minus {FULL}', loss[MOH_75] - loss[FULL], below=0.01, note=note),
        Line.number(PAPER, f'{where}: loss of {FOUR} minus {MOH_50}', loss[FOUR] - loss[MOH_50], above=0.01),
        Line.number(PAPER, f'{where}: loss of {SIX} minus {MOH_75}', loss[SIX] - loss[MOH_75], above=0.0),
    ]
    evenly = 'evenness of head use (entropy, 0: always the same heads, 1: all alike)'
    cost = f'its loss is {loss[UNBALANCED] - loss[MOH_75]:+.4f} nats'
    return [
        *out,
        Line.number(PAPER, f'{where}: {evenly}, {MOH_75}', even[MOH_75], above=0.9),
        Line.number(PAPER, f'{where}: {evenly}, {UNBALANCED}', even[UNBALANCED], below=0.5, note=cost),
        Line.number(
            PAPER,
            f'{where}: loss of {PRINTED} minus {MOH_75}',
            loss[PRINTED] - loss[MOH_75],
            above=-0.01,
            note='the public code has other gates than the paper prints: they should be no worse',
        ),
    ]


def missing() -> list[Line]:
    """The main lines without data."""
    claims = {f'loss of {MOH_75} minus {FULL}': '< 0.01', f'loss of {FOUR} minus {MOH_50}': '> 0.01'}
    return [Line.missing(PAPER, f'novels: {claim}', rule, needs('books')) for claim, rule in claims.items()]
