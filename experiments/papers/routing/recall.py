"""Key-value recall where the pairs stand far outside of the local window: what finds them is content."""

import statistics
from collections.abc import Mapping, Sequence

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.routing.settings import FROZEN, FULL, LOCAL, PAPER, ROUTING, Size, attentions
from experiments.papers.small_models import Setting, Variables, compare, score
from jattn.models.decoder import DecoderConfig
from jattn.training.optimizer import AdamWConfig

NAMES = (FULL, LOCAL, ROUTING, FROZEN)
Found = Mapping[str, Sequence[float]]


def settings(size: Size) -> dict[str, Setting]:
    """The trainings, by name; decoders without feed-forward."""
    mixers = attentions(size.recall_window, size.recall_clusters, size.recall_members)
    return {
        name: Setting(
            model=DecoderConfig(
                width=size.width, layers=size.layers, mixer=(mixers[name],), feed_forward=None, remat='none'
            ),
            data=size.recall,
            steps=size.recall_steps,
            batch=size.recall_batch,
            optimizer=AdamWConfig(peak_lr=size.recall_lr, warmup_steps=size.recall_steps // 10),
        )
        for name in NAMES
    }


def measure(context: ClaimContext, size: Size) -> Found:
    """name -> accuracy, by seed."""

    def measured(setting: Setting, variables: Variables) -> float:
        return score(setting, variables, size.recall, 64, 4, context.key(99))['accuracy']

    return compare(settings(size), size.seeds, measured, context.say, context.key(0))


def lines(found: Found, size: Size) -> list[Line]:
    """Local attention is at chance, routing near full attention, frozen centroids between."""
    mean = {name: statistics.mean(runs) for name, runs in found.items()}
    chance = size.recall.facts()['chance_accuracy']
    task = size.recall
    where = f'recall of {task.pairs} pairs, T = {task.tokens}, {size.recall_steps} steps, seeds: {size.seeds}: accuracy'
    note = ', '.join(f'{name} {value:.3f}' for name, value in mean.items())
    return [
        Line.number(PAPER, f'{where} of {FULL}', mean[FULL], above=0.9, note=note),
        Line.number(PAPER, f'{where} of {LOCAL}, chance {chance:.3f}', mean[LOCAL], below=chance + 0.1),
        Line.number(PAPER, f'{where} of {ROUTING} minus {FULL}', mean[ROUTING] - mean[FULL], above=-0.1),
        Line.number(PAPER, f'{where} of {ROUTING} minus {LOCAL}', mean[ROUTING] - mean[LOCAL], above=0.3),
        Line.number(PAPER, f'{where} of {ROUTING} minus {FROZEN}', mean[ROUTING] - mean[FROZEN], above=0.0),
        Line.number(PAPER, f'{where} of {FROZEN} minus {LOCAL}', mean[FROZEN] - mean[LOCAL], above=0.0),
    ]
