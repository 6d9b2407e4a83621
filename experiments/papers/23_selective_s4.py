"""Paper 23, "Selective Structured State-Spaces for Long-Form Video Understanding": which tokens are worth reading.

    python -m experiments.claims --only=23 --data_dir=DIR --out=runs/claims          5 minutes, digits of DIR/mnist
    python -m experiments.claims --only=23                                           synthetic patterns as digits
    python -m experiments.claims --only=23 --size=tiny                               a minute: that everything runs

Claims: a generator that is guided by a momentum copy of the S4 classifier keeps the tokens on which something happens
and loses nothing against reading all of them, with 60% fewer tokens; random tokens lose; guided by the raw tokens it
is worse; contrast of long and short clips before the labels helps, most where there are few; memory falls with what is
kept.

Choices: videos of 64 frames of 8 x 8 pixels, a token each, in which a digit of three classes comes by four to six times
among drifting noise; the label is the first and the last one's class, 9 in all. Evaluation takes the kept tokens out as
a shorter sequence whose gaps S4 knows. The paper gives no code: the generator and LSMCL follow its text.
"""

import concurrent.futures
import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.selective import training
from experiments.papers.selective.settings import MASKED, MOMENTUM, PACKED, PLAIN, PRETRAINED, RANDOM, RAW, SIZES, Size
from experiments.papers.selective.training import SELECTION
from jattn.typing import Key, PyTree

PAPER = '23'
NO_WORSE = 0.02  # what counts as no worse: about two standard errors
BY_MASKS, AS_NEIGHBOURS = 'momentum features, by masks', 'momentum features, as neighbours'
Found = Mapping[str, list[dict[str, float]]]
Fitted = Mapping[str, tuple[PyTree, PyTree]]


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its picture."""
    size = SIZES[context.size]
    found, fitted = measure(context, size)
    draw(context, size, found, fitted)
    return accuracy_lines(found, size) + selection_lines(found, size) + [memory_line(size)]


def measure(context: ClaimContext, size: Size) -> tuple[Found, Fitted]:
    """classifier -> the scores of every seed; few labels, and evaluation by masks, stand under their own names."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(size.seeds):
        fitted = fit(context, size, context.key(seed))
        for name, (kind, _) in _trainings().items():
            found.setdefault(name, []).append(training.score(context, size, kind, *fitted[name], context.key(99)))
        for name, how in ((BY_MASKS, MASKED), (AS_NEIGHBOURS, PACKED)):
            scores = training.score(context, size, MOMENTUM, *fitted[MOMENTUM], context.key(99), how)
            found.setdefault(name, []).append(scores)
    return found, fitted


def fit(context: ClaimContext, size: Size, key: Key) -> Fitted:
    """Every classifier's parameters and their copy."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        start = pool.submit(training.pretrain, context, size, key)

        def train(kind: str, has_few: bool) -> tuple[PyTree, PyTree]:
            clips = size.few if has_few else size.clips
            begun = start.result() if kind == PRETRAINED else None
            return training.train(context, size, kind, clips, key, begun)

        jobs = {name: pool.submit(train, *of) for name, of in _trainings().items()}
        return {name: job.result() for name, job in jobs.items()}


def _trainings() -> dict[str, tuple[str, bool]]:
    """name -> (the kind of classifier, whether it has few labels)."""
    many = {name: (name, False) for name in SELECTION}
    return many | {_few(name): (name, True) for name in (MOMENTUM, PRETRAINED)}


def _few(name: str) -> str:
    return f'{name}, few labels'


def _mean(found: Found, name: str, of: str = 'accuracy') -> float:
    return float(np.mean([scores[of] for scores in found[name]]))


def accuracy_lines(found: Found, size: Size) -> list[Line]:
    """Who is right how often."""
    at = lambda name: _mean(found, name)
    chance = 1 / size.video.outputs
    note = '; '.join(f'{name} {at(name):.3f}' for name in found) + f'; chance {chance:.3f}'
    where = f'{size.clips} videos, {size.steps} steps'
    gain, few_gain = at(PRETRAINED) - at(MOMENTUM), at(_few(PRETRAINED)) - at(_few(MOMENTUM))
    return [
        Line.number(PAPER, f'{where}: accuracy of {PLAIN}', at(PLAIN), above=3 * chance, note=note),
        Line.number(
            PAPER, f'{where}: accuracy of {MOMENTUM} minus {PLAIN}', at(MOMENTUM) - at(PLAIN), above=-NO_WORSE,
            note='no worse: two standard errors are left',
        ),
        Line.number(PAPER, f'{where}: accuracy of {PLAIN} minus {RANDOM}', at(PLAIN) - at(RANDOM), above=0.0),
        Line.number(PAPER, f'{where}: accuracy of {MOMENTUM} minus {RAW}', at(MOMENTUM) - at(RAW), above=0.0),
        Line.number(PAPER, f'{where}: accuracy of {PRETRAINED} minus {MOMENTUM}', gain, above=-NO_WORSE),
        Line.number(
            PAPER, f'{size.few} videos, {size.steps} steps: accuracy of {PRETRAINED} minus {MOMENTUM}', few_gain,
            above=0.0,
        ),
        Line.number(
            PAPER, f'what LSMCL adds with {size.few} videos minus with {size.clips}', few_gain - gain, above=0.0
        ),
    ]  # fmt: skip


def selection_lines(found: Found, size: Size) -> list[Line]:
    """What is kept."""
    model = training.classifier(size, 'generator', size.video.outputs)
    share = model.kept(size.video.tokens) / size.video.tokens
    events = _mean(found, MOMENTUM, 'events')
    note = f'events are {events:.3f} of all tokens: at most {min(1 / events, 1 / share):.2f} is possible'
    masked = _mean(found, BY_MASKS)
    return [
        Line.number(PAPER, 'tokens left out in evaluation, share', 1 - share, near=(0.6, 0.01)),
        Line.number(
            PAPER, f'{MOMENTUM}: kept tokens on events, over their share of all tokens',
            _mean(found, MOMENTUM, 'enriched'), above=2.0, note=note,
        ),
        Line.number(
            PAPER, f'{RAW}: kept tokens on events, over their share of all tokens', _mean(found, RAW, 'enriched'),
            above=1.0, note=note,
        ),
        Line.number(
            PAPER, f'{MOMENTUM}: accuracy by masks minus of tokens taken out, gaps known',
            masked - _mean(found, MOMENTUM), near=(0.0, 0.05), note='masks are what training saw',
        ),
        Line.number(
            PAPER, f'{MOMENTUM}: accuracy by masks minus of tokens taken out as neighbours',
            masked - _mean(found, AS_NEIGHBOURS), above=0.05, note='the sheet warns of this, without a figure',
        ),
    ]  # fmt: skip


def memory_line(size: Size) -> Line:
    """Temporaries of an evaluation by what is kept."""
    found = [training.memory(size, keep) for keep in size.shares]
    falls = sum(more > less for more, less in itertools.pairwise(found))
    note = ', '.join(f'r = {keep:g}: {value / 1e6:.1f} MB' for keep, value in zip(size.shares, found))
    line = f'{size.memory_frames} frames, from given features on: steps of r at which memory falls'
    return Line.count(PAPER, line, falls, len(size.shares) - 1, note)


def draw(context: ClaimContext, size: Size, found: Found, fitted: Fitted) -> None:
    """Two videos as strips of frames, what each generator keeps of them, and the accuracies."""
    glyphs = training.digits(context, size, 'test')
    batch = training.videos(size, glyphs, context.key(98), np.arange(2))
    frames = _frames(np.asarray(batch.inputs), size)
    strips = {'video': frames}
    for name in (MOMENTUM, RAW):
        model = training.classifier(size, SELECTION[name], size.video.outputs)
        params, copy = fitted[name]
        guide = training.guide(model, copy, batch.inputs, name == MOMENTUM)
        _, kept = training.selected(model, params, guide, batch.inputs)
        shown = np.asarray(batch.inputs) * np.asarray(kept)[:, :, None]
        strips[name] = np.where(
            _frames(np.broadcast_to(np.asarray(kept)[:, :, None], shown.shape), size) > 0, frames, np.nan
        )
    figure = Figure(figsize=(15, 6.5), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=(2.2, 1))
    axes = above.subplots(2 * len(strips), 1)
    for row in range(2):
        for place, (name, strip) in enumerate(strips.items()):
            axis = axes[row * len(strips) + place]
            axis.set_facecolor('#4477aa')
            axis.imshow(np.concatenate(list(strip[row]), axis=1), cmap='gray', vmin=-0.5, vmax=1.2, aspect='auto')
            axis.set_title(name, fontsize=8, loc='left', pad=2)
            axis.set_xticks([])
            axis.set_yticks([])
    axis = below.subplots()
    names = [name for name in found if name not in (BY_MASKS, AS_NEIGHBOURS)]
    for place, name in enumerate(names):
        values = [scores['accuracy'] for scores in found[name]]
        axis.barh(place, np.mean(values), alpha=0.6, color='tab:gray' if 'few' in name else 'tab:blue')
        axis.plot(values, [place] * len(values), 'k|', markersize=10)
    axis.axvline(1 / size.video.outputs, color='0.5', linestyle=':')
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel='accuracy on videos of held-out digits', xlim=(0, 1))
    figure.savefig(context.out / 'selective_s4.png', dpi=110)


def _frames(tokens: np.ndarray, size: Size) -> np.ndarray:
    """[B, frames, Y, X] of the tokens."""
    (rows, columns), patch = size.video.grid, size.video.patch
    x = tokens.reshape(len(tokens), size.video.frames, rows, columns, patch, patch)
    return x.transpose(0, 1, 2, 4, 3, 5).reshape(len(tokens), size.video.frames, rows * patch, columns * patch)
