"""Paper 51, "Low Rank Factorization for Compact Multi-Head Self-Attention" (LAMA): many maps from one query, cheaply.

    python -m experiments.claims --only=51 --data_dir=DIR --out=runs/claims          2 minutes, with DIR/sst2
    python -m experiments.claims --only=51 --out=runs/claims                         without the sentences of SST-2
    python -m experiments.claims --only=51 --size=tiny                               half a minute: that everything runs

Claims: on top of a bidirectional GRU LAMA classifies sentences no worse than the mean and one additive map, and within
a point of a Transformer layer that has 16 times as many parameters; its time and memory are linear in the length; where
the class depends on two words, these have the largest weights.

Choices: nothing is pre-trained, so that accuracies on SST-2 are far below published ones. Every model ends in a
classifier without a hidden layer. 'No worse' and 'within a point' are -0.01. Time and memory are those of the forward
pass of one row in 64 channels, without the GRU, which all share.
"""

from experiments.papers import cost
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.forward import forward, parameters
from experiments.papers.lama import maps
from experiments.papers.lama.settings import ATTENTION, LAMA, SIZES, Size
from experiments.papers.small_models import Found, Setting, Variables, compare, mean, score, score_rows, values
from jattn.data import SST2Config
from jattn.poolers import LAMAConfig
from jattn.training.optimizer import AdamWConfig

PAPER = '51'
TIE = -0.01


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its pictures."""
    size = SIZES[context.size]
    lines = [parameter_line(size)]
    found = {}
    if context.lacks('sst2'):
        lines += [
            Line.missing(PAPER, f'SST-2: accuracy of LAMA minus {other}', f'> {TIE}', needs('sst2'))
            for other in ('mean', 'additive', ATTENTION)
        ]
    else:
        context.say('sentences')
        found = sentences(context, size)
        lines += sentence_lines(found, size, context.data('sst2') is not None)
    context.say('two cues')
    cues = two_cues(context, size)
    lines += cue_lines(cues, size)
    context.say('time and memory')
    costs = measure_costs(context, size)
    lines += cost_lines(costs, size)
    maps.draw(found, cues, size, context.out / 'lama.png')
    return lines


def parameter_line(size: Size) -> Line:
    """Of the attention, without LAMA's output map and the feed-forward layer."""

    bare = parameters(LAMAConfig(heads=size.heads, project=False), size.width)
    whole, others = parameters(LAMAConfig(heads=size.heads), size.width), parameters(size.attention, size.width)
    return Line.number(
        PAPER,
        f'attention parameters of a Transformer layer over those of LAMA, D = {size.width}, H = {size.heads}',
        others / bare,
        near=(2 * size.width / size.heads, 0.01),
        note=f'4 D^2 = {others} over 2 D H = {bare}; with its map from H D to D LAMA has {whole}',
    )


def sentences(context: ClaimContext, size: Size) -> Found:
    """Accuracy of every model and seed on the test sentences."""
    data = SST2Config(path=context.data('sst2'), unit='words', tokens=size.tokens, vocabulary=size.vocabulary)
    settings = {
        name: Setting(
            model=model,
            data=data,
            steps=size.steps,
            batch=size.batch,
            optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=20),
        )
        for name, model in size.models().items()
    }
    return compare(settings, size.seeds, lambda *of: score_rows(*of), context.say, context.key(100))


def sentence_lines(found: Found, size: Size, real: bool) -> list[Line]:
    """LAMA is no worse than one map and the mean, and near a Transformer layer."""
    note = ', '.join(f'{name} {values(runs, "accuracy")}' for name, runs in found.items())
    where = f'{"SST-2" if real else "synthetic sentences"}, {size.steps} steps'
    accuracy = {name: mean(runs, 'accuracy') for name, runs in found.items()}
    return [
        Line.number(
            PAPER,
            f'{where}: accuracy of {LAMA} minus {other}',
            accuracy[LAMA] - accuracy[other],
            above=TIE,
            note=note if other == 'mean' else '',
        )
        for other in ('mean', 'additive', ATTENTION)
    ]


def two_cues(context: ClaimContext, size: Size) -> Found:
    """Accuracy, and the mean weight of every word, of LAMA by seed."""
    setting = Setting(
        model=size.models()[LAMA],
        data=size.cues,
        steps=size.cue_steps,
        batch=size.batch,
        optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=20),
    )

    def measure(setting: Setting, variables: Variables) -> dict[str, object]:
        accuracy = score(setting, variables, size.cues, 256, 2, context.key(900))['accuracy']
        return {'accuracy': accuracy, **maps.weights(setting, variables, context.key(901))}

    return compare({LAMA: setting}, size.seeds, measure, context.say, context.key(200))


def cue_lines(found: Found, size: Size) -> list[Line]:
    """The classes are told apart, and the words that decide weigh most."""
    runs = [run for run in found[LAMA] if run]
    largest = sum(bool(run['by_word'][:4].min() > run['by_word'][4:].max()) for run in runs)
    shares = '/'.join(f'{run["by_word"][:4].mean() * size.cues.tokens:.2f}' for run in runs)
    first = '/'.join(f'{run["two_largest"]:.2f}' for run in runs)
    return [
        Line.number(
            PAPER,
            f'two cues among {size.cues.tokens} words: accuracy of {LAMA}',
            mean(found[LAMA], 'accuracy'),
            above=0.95,
            note=f'{values(found[LAMA], "accuracy")}; chance is 0.25',
        ),
        Line.count(
            PAPER,
            'seeds whose cues have the largest mean weights of all words',
            largest,
            of=size.seeds,
            note=f'mean weight of a cue times T, where 1 is uniform, by seed {shares}; at most e^2 between two words; '
            f'share of rows whose two largest weights are the cues {first}',
        ),
    ]


def measure_costs(context: ClaimContext, size: Size) -> dict[str, cost.Cost]:
    """Of LAMA and of attention among all tokens."""
    makes = {LAMA: forward(LAMAConfig(heads=size.heads), size.width), 'attention': forward(size.attention, size.width)}
    found = cost.measure(makes, size.lengths, longest={'attention': size.longest}, say=context.say)
    cost.print_table('paper 51: one row, forward', found, size.fits_from)
    cost.draw(found, context.out / 'cost.png', 'LAMA against attention among all tokens, one row', size.fits_from)
    return found


def cost_lines(found: dict[str, cost.Cost], size: Size) -> list[Line]:
    """Linear against quadratic."""
    own, other = found[LAMA], found['attention']
    fitted = f'from T = {size.fits_from} on'
    at = size.longest
    note = f'at T = {at} attention takes {other.at(at) / own.at(at):.0f} times the time of LAMA'
    return [
        Line.number(
            PAPER,
            f'{LAMA}: slope of log time, {fitted}',
            own.slope(shortest=size.fits_from),
            near=(1.0, 0.2),
            note=note,
        ),
        Line.number(PAPER, f'{LAMA}: slope of log memory', own.slope('bytes', size.fits_from), near=(1.0, 0.1)),
        Line.number(
            PAPER, f'attention: slope of log time, {fitted}', other.slope(shortest=size.fits_from), near=(2.0, 0.3)
        ),
    ]
