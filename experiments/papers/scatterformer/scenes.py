"""The class of every voxel of synthetic scenes: windows that meet, windows alone, and no attention."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.scatterformer.settings import ALONE, CROSS, NONE, PAPER, Size, mixers
from experiments.papers.small_models import Setting, Variables, compare, score
from jattn.models.encoder import EncoderConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.testbeds.voxels import CLASSES
from jattn.training.optimizer import AdamWConfig

Found = Mapping[str, Sequence[Mapping[str, Any]]]  # name -> runs: variables, metrics


def settings(size: Size) -> dict[str, Setting]:
    """The trainings, by name."""
    return {
        name: Setting(
            model=EncoderConfig(
                width=size.width,
                layers=len(layers),
                mixer=layers,
                feed_forward=FeedForwardConfig(expansion=2.0, activation='relu'),
                norm='layer',
                pooler=None,
                remat='none',
            ),
            data=size.scenes,
            steps=size.steps,
            batch=size.batch,
            optimizer=AdamWConfig(peak_lr=5e-3, warmup_steps=size.steps // 10),
        )
        for name, layers in mixers(size).items()
    }


def measure(context: ClaimContext, size: Size) -> Found:
    """name -> runs, by seed."""

    def measured(setting: Setting, variables: Variables) -> Mapping[str, Any]:
        metrics = score(setting, variables, size.scenes, size.batch, size.scored, context.key(99))
        return {'variables': variables, **metrics}

    return compare(settings(size), size.seeds, measured, context.say, context.key(0))


def lines(found: Found, size: Size) -> list[Line]:
    """Attention against none, windows that meet against windows alone, and where meeting helps."""
    mean = {
        name: {metric: statistics.mean(run[metric] for run in runs) for metric in runs[0] if metric != 'variables'}
        for name, runs in found.items()
    }
    iou = {name: statistics.mean(values[f'iou_{one}'] for one in CLASSES) for name, values in mean.items()}
    scenes = size.steps * size.batch
    where = f'{scenes} scenes, seeds: {size.seeds}: mean IoU of'
    note = '; '.join(f'{name} {iou[name]:.4f} ({by_class(values)})' for name, values in mean.items())
    gain = {side: mean[CROSS][f'accuracy_{side}'] - mean[ALONE][f'accuracy_{side}'] for side in ('cut', 'whole')}
    claim = f'{scenes} scenes: accuracy that {CROSS} gain on objects cut by borders minus on others'
    return [
        Line.number(PAPER, f'{where} {CROSS} minus {ALONE}', iou[CROSS] - iou[ALONE], above=0.0, note=note),
        Line.number(PAPER, f'{where} {ALONE} minus {NONE}', iou[ALONE] - iou[NONE], above=0.0),
        Line.number(
            PAPER,
            claim,
            gain['cut'] - gain['whole'],
            above=0.0,
            note=f'{gain["cut"]:+.4f} on cut objects, {gain["whole"]:+.4f} on others',
        ),
    ]


def by_class(metrics: Mapping[str, float]) -> str:
    """The IoU of every class, as text."""
    return ', '.join(f'{name} {metrics[f"iou_{name}"]:.3f}' for name in CLASSES)
