"""Paper 32, "Unveiling and Harnessing Hidden Attention Sinks" (attention calibration, ACT), on SmolLM2-135M.

    make models
    python -m experiments.claims --only=32 --data_dir=DIR --out=runs/claims       minutes; DIR/books and DIR/sst2
    python -m experiments.claims --only=32 --size=tiny                            seconds: a random model, that it runs

Claims: attention gathers not at the first token alone but at tokens in the middle too; not all sinks help: with those
but the first damped in chosen heads a model classifies better, without training; damped in every head, worse.

Choices: windows of a novel without a token in front; zero-shot sentiment by the likelier of two words. A column mean
counts as a sink in the middle where 64 queries see the column: of fewer it is noise. Heads are searched in groups of
three layers, all heads of a layer together: single heads are 234 passes over the calibration set. Where the expected
figures are from: this model, measured before this was written; the paper's own gains are of models of 7 to 30 billion.
"""

import dataclasses

import numpy as np

from experiments.papers import real_model
from experiments.papers.attention_calibration import pictures, reviews, sinks
from experiments.papers.attention_calibration.reviews import Classifier
from experiments.papers.attention_calibration.sinks import Windows
from experiments.papers.contract import ClaimContext, Line
from experiments.papers.real_model import Real

PAPER = '32'
# Layers of SmolLM2 by what the first token receives, and where sinks in the middle were seen.
GROUPS = {'0-2': range(3), '3-9': range(3, 10), '10-11': range(10, 12), '12-29': range(12, 30)}
FIRST = {'0-2': (0.025, 0.015), '3-9': (0.145, 0.015), '10-11': (0.015, 0.005), '12-29': (0.5, 0.2)}
THE = 3  # the first ones of a window


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        long, short: (windows, tokens of each): for the first token, and for sinks in the middle.
        least: queries that see a column in the middle.
        tested, searched, kept_for: reviews: of the whole, to search with, and others to test what was found.
        tokens: of the longest prompt.
        batch: reviews at once.
    """

    long: tuple[int, int]
    short: tuple[int, int]
    least: int
    tested: int
    searched: int
    kept_for: int
    tokens: int
    batch: int


SIZES = {
    'tiny': Size((2, 48), (2, 32), least=8, tested=8, searched=8, kept_for=8, tokens=48, batch=8),
    'small': Size((6, 512), (8, 256), least=64, tested=200, searched=64, kept_for=144, tokens=56, batch=8),
    'paper': Size((24, 1024), (24, 256), least=64, tested=400, searched=200, kept_for=200, tokens=72, batch=8),
}


def run(context: ClaimContext) -> list[Line]:
    """Every line, and the picture."""
    lacking = context.lacking('books', 'sst2')
    real = None if lacking else real_model.open_real(context)
    if real is None:
        return [Line.missing(PAPER, 'attention sinks of SmolLM2', 'as the sheet says', lacking or real_model.NEEDS)]
    size, novel = SIZES[context.size], context.data('books')
    told = 'SmolLM2' if context.size != 'tiny' else 'a random model'
    long = sinks.read(real, sinks.read_novel(real, novel, *size.long))
    context.say(f'{size.long[0]} windows of {size.long[1]} tokens read')
    short = sinks.read(real, sinks.read_novel(real, novel, *size.short))
    lines = first_lines(told, long, size)
    middle, places, ablated = middle_lines(real, told, short, size)
    context.say(f'strongest later keys at {places.tolist()}')
    accuracies = calibrated(context, real, size)
    pictures.draw(long, short, places, ablated, accuracies, context.out / 'attention_calibration.png')
    return lines + middle + massive_lines(told, short, places) + accuracy_lines(told, accuracies)


def within(windows: Windows, layers: range) -> list[int]:
    """Those of some layers that a model has; all where it has none, at size tiny."""
    every = range(windows.columns.shape[1])
    return [layer for layer in layers if layer in every] or list(every)


def first_lines(told: str, windows: Windows, size: Size) -> list[Line]:
    """What the first token receives, by layer, and how many columns pass a threshold."""
    first, tokens = windows.columns[..., 0].mean(axis=0), windows.tokens.shape[1]
    lines = []
    for name, layers in GROUPS.items():
        own = first[within(windows, layers)].mean(axis=1)
        lines.append(
            Line.number(
                PAPER,
                f'{told}: column mean of the first token, layers {name}, T = {tokens}',
                own.mean(),
                near=FIRST[name],
                note=f'by layer {", ".join(f"{value:.2f}" for value in own)}',
            )
        )
    later = windows.columns[..., 1:]
    quarter = later[..., -tokens // 4 :]
    number = lambda line, value, **rule: Line.number(PAPER, f'{told}: {line}', float(value), **rule)
    return lines + [
        number('column mean of the first token, all layers', first.mean(), near=(0.33, 0.03)),
        number('share of heads whose first token has a column mean above .3', np.mean(first > 0.3), near=(0.5, 0.05)),
        number('share of later columns above .1', np.mean(later > 0.1), near=(0.0013, 0.0005)),
        number('share of later columns above 5 / T', np.mean(later > 5 / tokens), near=(0.06, 0.015)),
        number(
            'share above 5 / T in the last quarter, where few queries see a column',
            np.mean(quarter > 5 / tokens),
            near=(0.19, 0.03),
        ),
    ]


def middle_lines(
    real: Real, told: str, windows: Windows, size: Size
) -> tuple[list[Line], np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Sinks in the middle: how strong, on which token, and what is left of them without the massive channels."""
    layers, tokens = within(windows, GROUPS['3-9']), windows.tokens.shape[1]
    places = sinks.strongest_later(windows, layers, size.least)
    by_layer = windows.columns[np.arange(len(places)), :, :, places].mean(axis=2)  # [N, L]
    first = windows.columns[:, layers, :, 0].mean()
    has_one = (windows.later(size.least) > 0.1).any(axis=-1)  # [N, L, H]
    the = real.encode(' the')[0]
    early = [set(np.flatnonzero(row == the)[:THE].tolist()) for row in windows.tokens]
    on_the = sum(int(place) in own for place, own in zip(places, early))
    any_the = sum(int(row[place] == the) for row, place in zip(windows.tokens, places))
    edits = sinks.without_massive(real, windows.tokens, places, layers)
    without = sinks.read(real, windows.tokens, edits)
    left = without.columns[np.arange(len(places)), :, :, places].mean(axis=2)
    number = lambda line, value, **rule: Line.number(PAPER, f'{told}: {line}', float(value), **rule)
    where = f'T = {tokens}'
    lines = [
        number(f'highest mean of a later column in a layer of 3-9, {where}', by_layer[:, layers].max(),
               near=(0.32, 0.05), note=f'at places {places.tolist()}'),
        number(f'column mean of the first token in these layers, {where}', first, near=(0.19, 0.03)),
        number('share of heads of layers 4-10 with a later column above .1 in a window',
               has_one[:, within(windows, range(4, 11))].mean(), above=0.95,
               note=f'{size.least} queries at least see the column'),
        number('share of heads of layer 3 with one', has_one[:, within(windows, range(3, 4))].mean(),
               near=(0.85, 0.05)),
        number('share of heads of layers 12-29 with one', has_one[:, within(windows, GROUPS['12-29'])].mean(),
               below=0.5, note='sinks in the middle end where the first token takes all'),
        Line.count(PAPER, f'{told}: windows whose strongest later key is one of the first {THE} " the"',
                   on_the, of=len(places)),
        Line.count(PAPER, f'{told}: windows whose strongest later key is a " the"', any_the, of=len(places)),
        number('that column in layers 3-9 without the two largest channels of its token, over whole',
               left[:, layers].mean() / by_layer[:, layers].mean(), below=0.5,
               note='what the attention of these layers reads of that token has them at 0'),
    ]  # fmt: skip
    return lines, places, (by_layer.mean(axis=0), left.mean(axis=0))


def massive_lines(told: str, windows: Windows, places: np.ndarray) -> list[Line]:
    """The norms of the residual stream at sinks."""
    others = np.median(windows.norms, axis=2)  # [N, L]
    first = windows.norms[..., 0]
    later = windows.norms[np.arange(len(places)), :, places]
    early, late = within(windows, range(2, 9)), within(windows, range(11, 27))
    ratio = lambda norms, layers: np.median(norms[:, layers] / others[:, layers])
    number = lambda line, value, **rule: Line.number(PAPER, f'{told}: {line}', float(value), **rule)
    return [
        number('norm of the residual stream at the first token, layers 2-8', np.median(first[:, early]),
               near=(900, 100)),
        number('norm of the residual stream at the first token, layers 11-26', np.median(first[:, late]),
               near=(25_000, 2_500)),
        number('median norm of all tokens, layers 11-26', np.median(others[:, late]), near=(357, 223)),
        number('norm at the later sink over the median, layers 2-8', ratio(later, early), above=3.0),
        number('norm at the later sink over the median, layers 11-26', ratio(later, late), below=2.0,
               note='it is large in layers 2-9 only'),
    ]  # fmt: skip


def calibrated(context: ClaimContext, real: Real, size: Size) -> dict[str, float]:
    """Accuracies: of the whole model and with all heads calibrated, by group of layers, and of the groups that gained.

    Raises:
        ValueError: there are too few reviews.
    """
    count = size.tested + size.searched + size.kept_for
    drawn = reviews.draw(real, context.data('sst2'), count, size.tokens, context.seed)
    tested, searched, others = (
        drawn[start : start + number]
        for start, number in ((0, size.tested), (size.tested, size.searched), (size.tested + size.searched, count))
    )
    classifier = Classifier(real, drawn, size.batch)
    layers = list(classifier.heads.counts)
    middle = layers[2:-2] or layers
    found = {}

    def note(name: str, value: float) -> None:
        found[name] = value
        context.say(f'{name}: accuracy {value:.3f}')

    note('whole', classifier.accuracy(tested, []))
    note('all heads', classifier.accuracy(tested, middle))
    too = Classifier(real, drawn, size.batch, keep_first=False)
    note('all heads, the first sink too', too.accuracy(tested, middle))
    note('whole, searched', classifier.accuracy(searched, []))
    gained = []
    for start in range(0, len(middle), 3):
        group = middle[start : start + 3]
        name = f'layers {group[0]}-{group[-1]}'
        note(name, classifier.accuracy(searched, group))
        gained += group if found[name] > found['whole, searched'] else []
    note('whole, others', classifier.accuracy(others, []))
    note('what gained, others', classifier.accuracy(others, gained) if gained else found['whole, others'])
    found['gained'] = len(gained)
    return found


def accuracy_lines(told: str, found: dict[str, float]) -> list[Line]:
    """What calibration does to the classifier."""
    number = lambda line, value, **rule: Line.number(PAPER, f'{told}, zero-shot sentiment: {line}', value, **rule)
    groups = ', '.join(f'{name} {value:.3f}' for name, value in found.items() if name.startswith('layers'))
    return [
        number('accuracy', found['whole'], near=(0.78, 0.03)),
        number('accuracy with all heads of layers 2-27 calibrated', found['all heads'], near=(0.715, 0.03)),
        number('all heads calibrated minus none', found['all heads'] - found['whole'], below=0.0),
        number(
            'all heads, the first sink damped too, minus kept',
            found['all heads, the first sink too'] - found['all heads'],
            below=0.0,
        ),
        number(
            'the groups of layers that gained, on other reviews, minus none',
            found['what gained, others'] - found['whole, others'],
            above=0.0,
            note=f'the paper; {found["gained"]} layers gained in the search: none {found["whole, searched"]:.3f}, '
            f'{groups}',
        ),
    ]
