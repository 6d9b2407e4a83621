"""A trained softmax decoder goes on as MoH: its heads are routed by the norms of their queries, with new gradients.

at once      the loss with 6 of 8 heads a token, untuned
tuned        after some hundred steps with straight-through gates and the balance loss
"""

import dataclasses
import statistics
from collections.abc import Sequence

import jax

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.mixture_of_heads.settings import FULL, MOH_75, PAPER, Size
from experiments.papers.mixture_of_heads.text import Found, settings
from experiments.papers.small_models import Setting, score_rows, train
from jattn.mixers.mixture_of_heads import from_softmax
from jattn.training.optimizer import AdamWConfig

SHARED, ACTIVE = 4, 2  # of 8, as LLaMA: half are shared, a quarter routed


def stages(context: ClaimContext, size: Size) -> dict[str, Setting]:
    """The tunings, of the same steps: as MoH by query norms, as MoH with new routers, and, for comparison, as it is."""
    base = settings(context, size)
    full = dataclasses.replace(
        base[FULL],
        steps=size.tune_steps,
        optimizer=AdamWConfig(peak_lr=size.peak_lr / 5, warmup_steps=size.tune_steps // 10),
    )
    softmax = full.model.mixer[0]
    mixers = {
        'query norms': from_softmax(softmax, SHARED, ACTIVE),
        'new routers': base[MOH_75].model.mixer[0],
        'softmax': softmax,
    }
    return {
        name: dataclasses.replace(
            full, model=dataclasses.replace(full.model, mixer=(mixer,)), losses=base[MOH_75].losses
        )
        for name, mixer in mixers.items()
    }


def measure(context: ClaimContext, size: Size, found: Found) -> dict[str, list[tuple[float, float]]]:
    """name -> (loss before, loss after) of tuning, by seed of the softmax decoder; that of query norms is converted."""
    tuned: dict[str, list[tuple[float, float]]] = {}
    for name, setting in stages(context, size).items():
        tuned[name] = []
        for seed, run in enumerate(found[FULL]):
            start = run['variables']
            before = run['loss'] if name != 'query norms' else score_rows(setting, start, 64)['loss']
            key = jax.random.fold_in(context.key(50), seed)
            variables, _ = train(setting, key, start=start['params'])
            tuned[name].append((before, score_rows(setting, variables, 64)['loss']))
            context.say(f'{name}, seed {seed}: {tuned[name][-1][0]:.4f} -> {tuned[name][-1][1]:.4f}')
    return tuned


def lines(tuned: dict[str, Sequence[tuple[float, float]]], found: Found, size: Size) -> list[Line]:
    """The jump at once, and how much of it tuning takes back."""
    mean = {name: tuple(statistics.mean(side) for side in zip(*runs)) for name, runs in tuned.items()}
    trained = statistics.mean(run['loss'] for run in found[FULL])
    at_once, after = mean['query norms']
    where = f'trained softmax goes on as MoH, {SHARED} shared and {ACTIVE} of {8 - SHARED} routed heads'
    note = (
        f'nats a byte: trained {trained:.4f}, converted {at_once:.4f}, tuned {after:.4f}; the softmax decoder tuned as '
        f'long {mean["softmax"][1]:.4f}, MoH with new routers, 6 of 8 heads, {mean["new routers"][1]:.4f}'
    )
    share = (at_once - after) / (at_once - trained)
    claim = f'{where}: share of the jump that {size.tune_steps} steps take back'
    fair = (at_once - after) / (at_once - mean['softmax'][1])
    return [
        Line.number(PAPER, f'{where}: loss added at once', at_once - trained, above=0.0, note=note),
        Line.number(PAPER, claim, share, above=0.95),
        Line.number(PAPER, f'{claim}, against softmax tuned as long', fair, above=0.95, note='our stricter rule'),
    ]
