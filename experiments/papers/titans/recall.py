"""Associative recall with overwritten keys: Titans' memory beside others, and without each of its parts."""

import dataclasses
import itertools

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.small_models import Found, Setting, Variables, compare, mean, score, values
from experiments.papers.titans.settings import HEADS, Size, lmm, without
from jattn.contract import MixerConfig
from jattn.memories import MEMORIES
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.training.optimizer import AdamWConfig

PAPER = '33'
CHUNK = 4  # the contexts are short: a key must be able to come back in a later chunk
FULL = 'Titans LMM'


def settings(size: Size) -> dict[str, Setting]:
    """Everything that is trained on the task."""
    memory, exact = lmm(CHUNK), dict(heads=HEADS, tile=16)
    others: dict[str, MixerConfig] = {
        'Gated DeltaNet': dataclasses.replace(MEMORIES['gated_deltanet'], **exact),
        'linear attention': dataclasses.replace(MEMORIES['linear_attention'], **exact),
        'softmax': SoftmaxConfig(heads=HEADS),
    }
    mixers = {
        FULL: memory,
        **{name: others[name] for name in size.others},
        **{f'without {part}': without(part, memory) for part in size.ablations},
    }
    return {name: _setting(size, mixer) for name, mixer in mixers.items()}


def _setting(size: Size, mixer: MixerConfig) -> Setting:
    return Setting(
        model=DecoderConfig(width=size.width, layers=2, mixer=(mixer,), feed_forward=None, remat='none'),
        data=size.recall,
        steps=size.recall_steps,
        batch=size.recall_batch,
        optimizer=AdamWConfig(peak_lr=5e-3, warmup_steps=50),
    )


def measure(context: ClaimContext, size: Size) -> Found:
    """Metrics of every mixer and seed, on the same fresh rows."""

    def metrics(setting: Setting, variables: Variables) -> dict[str, float]:
        return score(setting, variables, size.recall, 256, 4, context.key(900))

    return compare(settings(size), size.seeds, metrics, context.say, context.key(100))


def lines(found: Found, size: Size) -> list[Line]:
    """LMM >= Gated DeltaNet >> linear attention, and what each part is worth."""
    task, accuracy = size.recall, {name: mean(runs, 'accuracy') for name, runs in found.items()}
    where = f'recall of {task.pairs} pairs, {task.overwrites} overwritten, T = {task.tokens}, {size.recall_steps} steps'
    note = ', '.join(f'{name} {values(found[name], "accuracy")}' for name in found if 'without' not in name)
    pairs = [
        (FULL, 'Gated DeltaNet', -0.02),
        ('Gated DeltaNet', 'linear attention', 0.3),
        (FULL, 'linear attention', 0.3),
    ]
    out = [
        Line.number(
            PAPER,
            f'{where}: accuracy of {better} minus {worse}',
            accuracy[better] - accuracy[worse],
            above=bound,
            note=f'{note}; linear attention has no convolution, as published',
        )
        for better, worse, bound in pairs
        if better in accuracy and worse in accuracy
    ]
    return out + (ablation_lines(found, size) if size.ablations else [])


def ablation_lines(found: Found, size: Size) -> list[Line]:
    """How much loss each part saves, and the order of the parts."""
    base = mean(found[FULL], 'loss')
    added = {part: mean(found[f'without {part}'], 'loss') - base for part in size.ablations}
    out = [
        Line.number(
            PAPER,
            f'recall, {FULL} without {part}: loss added',
            value,
            above=0.0,
            note=f'loss {values(found[f"without {part}"], "loss")} against {values(found[FULL], "loss")}, accuracy '
            f'{values(found[f"without {part}"], "accuracy")} against {values(found[FULL], "accuracy")}',
        )
        for part, value in added.items()
    ]
    pairs = list(itertools.pairwise(size.ablations))
    return [
        *out,
        Line.count(
            PAPER,
            f'recall: parts that save more loss than the next, of {", ".join(size.ablations)}',
            sum(added[part] > added[after] for part, after in pairs),
            of=len(pairs),
            note="the paper's order is that of language models; losses added: "
            + ', '.join(f'{part} {value:+.3f}' for part, value in added.items()),
        ),
    ]
