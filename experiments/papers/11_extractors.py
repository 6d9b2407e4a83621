"""Paper 11, "Attention Is Not All You Need Anymore": four extractors in place of self-attention in a text generator.

    python -m experiments.claims --only=11 --data_dir=DIR --out=runs/claims         3 minutes, with DIR/books
    python -m experiments.claims --only=11 --out=runs/claims                        without the lines on text
    python -m experiments.claims --only=11 --size=tiny                              half a minute: that everything runs

Claims: at the same width and steps SHE predicts text better than causal self-attention and HE within .05 nats of it,
WE and ME less well than HE; their time grows as their cost model says, and HE, WE and ME are faster than attention;
none of them can look up a key, as their weights do not know what stands where.

Choices: HE, WE and ME as the sheet has them, unverified; lags, not places, are what weights belong to. The window is
the whole row. Learned positions for attention and for ME, which is blind to order. At equal width SHE has far more
parameters: the note says how many. Two layers with feed-forward on text, without on recall. Time is that of one layer
on one row, forward.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments.papers import cost, novels
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.cost import Cost
from experiments.papers.forward import forward, parameters
from experiments.papers.small_models import Data, Found, Setting, Variables, compare, mean, score, score_rows, values
from jattn.contract import MixerConfig
from jattn.data import Corpus
from jattn.mixers import ExtractorConfig, SoftmaxConfig
from jattn.mixers.extractor import KINDS
from jattn.models.decoder import DecoderConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.testbeds import AssociativeRecall
from jattn.training.optimizer import AdamWConfig

PAPER = '11'
SOFTMAX = 'softmax'
NOVELS = ('alice_in_wonderland', 'sherlock_holmes')  # one megabyte to read, as much as small models take in


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        width, layers, heads: of the text generators; the heads are attention's.
        tokens: T of a row of text, and the window.
        steps, batch: on text.
        seeds: of every training.
        held_out_bytes: scored of the held-out novel.
        recall: the recall task, for decoders of half the width.
        recall_steps: of its trainings.
        cost_lengths: of the cost table.
        longest: the longest row that a kind is timed on; attention and ME take all.
    """

    width: int
    layers: int
    heads: int
    tokens: int
    steps: int
    batch: int
    seeds: int
    held_out_bytes: int
    recall: AssociativeRecall
    recall_steps: int
    cost_lengths: tuple[int, ...]
    longest: Mapping[str, int]


_SMALL = Size(
    width=64,
    layers=2,
    heads=4,
    tokens=64,
    steps=400,
    batch=16,
    seeds=2,
    held_out_bytes=2**15,
    recall=AssociativeRecall(vocabulary=64, tokens=32, pairs=4),
    recall_steps=400,
    cost_lengths=(256, 512, 1024, 2048, 4096),
    longest={'she': 1024},
)
_TINY = dataclasses.replace(
    _SMALL,
    width=16,
    layers=1,
    heads=2,
    tokens=16,
    steps=5,
    batch=4,
    seeds=1,
    held_out_bytes=512,
    recall=AssociativeRecall().tiny(),
    recall_steps=5,
    cost_lengths=(32, 64),
    longest={},
)
_PAPER = dataclasses.replace(
    _SMALL,
    width=256,
    layers=6,
    heads=8,
    tokens=256,
    steps=20_000,
    batch=64,
    seeds=3,
    held_out_bytes=2**19,
    recall=AssociativeRecall(vocabulary=128, tokens=64, pairs=8),
    recall_steps=5000,
    cost_lengths=(256, 512, 1024, 2048, 4096, 8192),
    longest={'she': 2048},
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its picture."""
    size = SIZES[context.size]
    lines = []
    if context.lacks('books'):
        lines += missing()
    else:
        context.say('text')
        text = novels.windows(context, size.tokens, size.held_out_bytes, NOVELS)
        lines += text_lines(trained(context, size, text, 100), size)
    context.say('associative recall')
    lines += recall_lines(trained(context, size, size.recall, 200), size)
    context.say('time')
    return lines + cost_lines(costs(context, size), size)


def mixers(size: Size, tokens: int) -> dict[str, MixerConfig]:
    """Attention without positions of its own, and the extractors with a whole row as their window."""
    extractors = {kind: ExtractorConfig(kind=kind, window=tokens) for kind in KINDS}
    return {SOFTMAX: SoftmaxConfig(heads=size.heads, rotary_base=None), **extractors}


def settings(size: Size, data: Data) -> dict[str, Setting]:
    """Every mixer's training on text or on recall."""
    on_text = isinstance(data, Corpus)
    steps = size.steps if on_text else size.recall_steps
    return {
        name: Setting(
            model=DecoderConfig(
                width=size.width if on_text else size.width // 2,
                layers=size.layers if on_text else 2,
                mixer=(mixer,),
                feed_forward=FeedForwardConfig() if on_text else None,
                max_positions=data.tokens if name in (SOFTMAX, 'me') else None,
                remat='none',
            ),
            data=data,
            steps=steps,
            batch=size.batch if on_text else 2 * size.batch,
            optimizer=AdamWConfig(peak_lr=5e-3, warmup_steps=min(steps // 10, 500)),
        )
        for name, mixer in mixers(size, data.tokens).items()
    }


def trained(context: ClaimContext, size: Size, data: Data, root: int) -> Found:
    """Metrics of every mixer and seed."""

    def metrics(setting: Setting, variables: Variables) -> dict[str, float]:
        if isinstance(data, Corpus):
            return score_rows(setting, variables, 128)
        return score(setting, variables, data, 256, 4, context.key(900))

    return compare(settings(size, data), size.seeds, metrics, context.say, context.key(root))


# (better, worse, by how much the loss of the first may exceed that of the second)
ORDER = (('she', SOFTMAX, 0.0), ('he', SOFTMAX, 0.05), ('he', 'we', 0.0), ('he', 'me', 0.0))


def text_lines(found: Found, size: Size) -> list[Line]:
    """SHE before attention, HE near it, WE and ME behind."""
    counts = {name: parameters(mixer, size.width) for name, mixer in mixers(size, size.tokens).items()}
    note = 'loss ' + ', '.join(
        f'{name} {values(runs, "loss")} ({counts[name]} parameters a layer)' for name, runs in found.items()
    )
    loss = {name: mean(runs, 'loss') for name, runs in found.items()}
    where = f'novels, T = {size.tokens}, {size.steps} steps'
    return [
        Line.number(
            PAPER,
            f'{where}: nats a byte of {better.upper()} minus {worse if worse == SOFTMAX else worse.upper()}',
            loss[better] - loss[worse],
            below=bound,
            note=note if (better, worse) == ORDER[0][:2] else '',
        )
        for better, worse, bound in ORDER
    ]


def missing() -> list[Line]:
    """The same lines without data."""
    return [
        Line.missing(PAPER, f'novels: nats a byte of {better} minus {worse}', f'< {bound:g}', needs('books'))
        for better, worse, bound in ORDER
    ]


def recall_lines(found: Found, size: Size) -> list[Line]:
    """Attention looks up; the extractors know no more than which values were shown."""
    task, accuracy = size.recall, {name: mean(runs, 'accuracy') for name, runs in found.items()}
    random = task.facts()['context_value_accuracy']
    where = f'recall of {task.pairs} pairs, T = {task.tokens}, {size.recall_steps} steps: accuracy'
    note = f'a value of the context at random {random:.3f}'
    return [
        Line.number(
            PAPER, f'{where} of softmax', accuracy[SOFTMAX], above=0.9, note=values(found[SOFTMAX], 'accuracy')
        ),
        *(
            Line.number(
                PAPER,
                f'{where} of {kind.upper()}',
                accuracy[kind],
                below=random + 0.1,
                note=f'{values(found[kind], "accuracy")}; {note}',
            )
            for kind in KINDS
        ),
    ]


def operations(kind: str, tokens: int, width: int) -> float:
    """The cost model: multiplications of a layer on a row of T tokens with a window of T, all products of T x T whole.

    >>> operations('me', 8, 2), operations('we', 8, 2) - operations('me', 8, 2)
    (64, 128)
    """
    maps, pairs = tokens * width**2, tokens**2
    return {
        SOFTMAX: 4 * maps + 2 * pairs * width,
        'she': maps + pairs * width**2,
        'he': 2 * maps + pairs * width,
        'we': 2 * maps + pairs * width,
        'me': 2 * maps,
    }[kind]


def costs(context: ClaimContext, size: Size) -> dict[str, Cost]:
    """Time and memory of a layer whose window is the row, printed and drawn."""
    makes = {
        name: (lambda tokens, name=name: forward(mixers(size, tokens)[name], size.width)(tokens))
        for name in (SOFTMAX, *KINDS)
    }
    found = cost.measure(makes, size.cost_lengths, longest=size.longest, say=context.say)
    title = f'one layer of width {size.width} on a row of T tokens, the window the whole row'
    cost.print_table(title, found)
    cost.draw(found, context.out / 'extractors.png', title)
    return found


def cost_lines(found: Mapping[str, Cost], size: Size) -> list[Line]:
    """Time grows as the model says, and is below attention's."""
    out = []
    for kind in (SOFTMAX, *KINDS):
        own = found[kind]
        counted = np.array([float(operations(kind, tokens, size.width)) for tokens in own.lengths])
        counted[np.isnan(own.seconds)] = np.nan
        expected = dataclasses.replace(own, seconds=counted).slope()
        name = kind if kind == SOFTMAX else kind.upper()
        claim = f'exponent of T in the time of {name}, T to {max(np.array(own.lengths)[np.isfinite(own.seconds)])}'
        out.append(
            Line.number(PAPER, claim, own.slope(), near=(expected, 0.3), note='expected is that of the cost model')
        )
    for kind in ('he', 'we', 'me'):
        ratios = {tokens: found[SOFTMAX].at(tokens) / found[kind].at(tokens) for tokens in size.cost_lengths}
        note = 'time of softmax over it: ' + ', '.join(f'{ratio:.2f} at {tokens}' for tokens, ratio in ratios.items())
        faster = sum(ratio > 1 for ratio in ratios.values())
        claim = f'lengths from T = {size.cost_lengths[0]} on at which {kind.upper()} is faster than softmax'
        out.append(Line.count(PAPER, claim, faster, of=len(ratios), note=note))
    return out
