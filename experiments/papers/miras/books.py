"""Language models on novels, byte by byte: every row of Table 1 from one class. Only at the authors' size, on a GPU."""

import dataclasses
import io
import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from experiments.configs import lm_books
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.miras.settings import Size
from jattn.memories import MEMORIES
from jattn.training.experiment import Experiment
from jattn.training.loop import train

PAPER = '52'
# From worst to best as expected; the last group's order is noise at this size.
ORDER = (
    ('linear_attention',),
    ('retnet',),
    ('gla', 'deltanet'),
    ('gated_deltanet',),
    ('titans_lmm', 'moneta', 'yaad', 'memora'),
)
OTHERS = ('lightning', 'mamba2', 'hgrn2', 'longhorn', 'rwkv7', 'delta_product', 'ttt_linear', 'ttt_mlp')
Found = Mapping[str, Sequence[float]]


def experiment(context: ClaimContext, size: Size) -> Experiment:
    """The novels of DATA_DIR/books in rows of 1024 bytes; 10 to 20 million parameters."""
    base = lm_books.config('paper')
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, width=size.book_width, layers=size.book_layers),
        data=dataclasses.replace(base.data, path=context.data('books'), tokens=1024),
        training=dataclasses.replace(base.training, steps=size.book_steps, batch=size.book_batch),
    )


def measure(base: Experiment, names: Sequence[str], seeds: int, folder: pathlib.Path) -> Found:
    """member -> bits per byte of the held-out novel, by seed; a run each in its own folder."""
    found = {}
    for name in names:
        model = dataclasses.replace(base.model, mixer=(MEMORIES[name],))
        found[name] = []
        for seed in range(seeds):
            training = dataclasses.replace(base.training, seed=base.training.seed + seed)
            own = dataclasses.replace(base, model=model, training=training)
            last = train(own, folder / f'{name}_{seed}', stream=io.StringIO())
            found[name].append(float(last['eval/bits_per_byte']))
    return found


def lines(found: Found) -> list[Line]:
    """The order of the groups, and how far seeds alone move a row."""
    means = {name: statistics.mean(runs) for name, runs in found.items()}
    noise = max(max(runs) - min(runs) for runs in found.values())
    table = ', '.join(f'{name} {mean:.4f}' for name, mean in sorted(means.items(), key=lambda item: -item[1]))
    out = []
    for worse, better in itertools.pairwise(ORDER):
        gap = min(means[name] for name in worse) - max(means[name] for name in better)
        claim = f'novels, bits per byte: best of {", ".join(worse)} minus worst of {", ".join(better)}'
        note = f'seeds alone move a row by up to {noise:.4f}; less than that is noise. {table}'
        out.append(Line.number(PAPER, claim, gap, above=0.0, note=note))
    return out


def missing() -> list[Line]:
    """The same lines without data."""
    claims = [f'{", ".join(worse)} above {", ".join(better)}' for worse, better in itertools.pairwise(ORDER)]
    return [Line.missing(PAPER, f'novels, bits per byte: {claim}', '> 0', needs('books')) for claim in claims]
