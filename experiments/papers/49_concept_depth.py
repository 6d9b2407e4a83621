"""Paper 49, "Exploring Concept Depth: How Large Language Models Acquire Knowledge at Different Layers?".

    make models
    python -m experiments.claims --only=49 --data_dir=DIR --out=runs/claims       minutes; DIR/sst2
    python -m experiments.claims --only=49 --size=tiny                            seconds: a random model, that it runs

Claims: what must be inferred can be read from deep layers only, with a jump on the way, what stands in the text from
shallow ones; noise in front of the input and weights of 8 bits move the curve to deeper layers, 16 bits do not. Shown
on SmolLM2-135M with the sentiment of film reviews against two concepts that single tokens tell.

Choices: the stream behind every layer at the last token (the published code reads the feed-forward's input), and the
embeddings as layer 0. Standardised features and a strong penalty, as there are hardly more reviews than channels.
Five random splits of the same reviews; their mean is the curve. Noise and rounding are tried on every second review,
and held against the plain model's probes on the same ones. The other eight of the paper's data sets and its larger
models are not rerun. What the depth of a curve is: `jattn/understanding/depth.py`, with its checks in
`tests/understanding/depth_test.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.papers import real_model
from experiments.papers.concept_depth import reading, reviews
from experiments.papers.concept_depth.reviews import LEXICAL, Reviews
from experiments.papers.contract import ClaimContext, Line
from experiments.papers.real_model import Real
from jattn.typing import Array, Float, Int32
from jattn.understanding import probes
from jattn.understanding.depth import Depth, find_depth
from jattn.understanding.probes import Parts, Probed
from jattn.understanding.rounding import round_weights

PAPER = '49'
PENALTY = 200.0  # twice scikit-learn's 1/C, for two opposite columns of weights: 1/C = 100
DEPTH = 30  # layers of SmolLM2, whose places are given below
# First and last layer of a stretch of the curve -> accuracy, found before this was written.
STRETCHES = {(0, 0): 0.515, (1, 3): 0.665, (4, 14): 0.715, (15, 15): 0.81, (16, 30): 0.84}
PLAIN, SOME = 'sentiment', 'some reviews'
NEAR = 0.03  # one deviation of an accuracy over 400 rows is .02
ZERO_SHOT, BAG = 0.78, 0.68  # found before as well
JUMPS = {'first': '1', 'second': '15'}  # the first from an embedding that is the same in all reviews
# What changes do to where the curve is flat, and to its mean: the paper of noise and 8 bits, the sheet of the rest.
CHANGES = {
    'noise': (dict(above=0), dict(below=0)),
    '16 bits': (dict(near=(0, 0)), dict(near=(0, 0.01))),
    '8 bits': (dict(above=0), dict(near=(0, 0.01))),
    '4 bits': (dict(above=0), dict(below=0)),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        train, held_out: reviews of the two files.
        splits: of all of them into as many to fit and to score.
        every: how many reviews there are to one that is read with noise and with rounded weights.
        bits: of the rounded weights.
    """

    train: int
    held_out: int
    splits: int
    every: int
    bits: tuple[int, ...]


SIZES = {
    'tiny': Size(train=60, held_out=30, splits=2, every=2, bits=(8,)),
    'small': Size(train=900, held_out=400, splits=5, every=2, bits=(8,)),
    'paper': Size(train=6920, held_out=872, splits=5, every=1, bits=(16, 8, 4)),
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracies of probes behind every layer, over splits.

    Attributes:
        mean, deviation: [L+1], of the splits.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @property
    def depth(self) -> Depth:
        """Where it jumps, goes flat and is best."""
        return find_depth(self.mean)


def run(context: ClaimContext) -> list[Line]:
    """Every line, and the picture."""
    lacking = context.lacking('sst2')
    real = None if lacking else real_model.open_real(context)
    if real is None:
        return [Line.missing(PAPER, 'concepts by layer of SmolLM2', 'as the sheet says', lacking or real_model.NEEDS)]
    size = SIZES[context.size]
    read = reviews.draw(context, size.train, size.held_out)
    streams = read_all(real, read, size, context)
    curves = probe_all(context, streams, read, size)
    for name, curve in curves.items():
        context.say(f'{name}: ' + ' '.join(f'{value:.3f}' for value in curve.mean) + f'; {curve.depth}')
    said = reading.first_words(real, streams[PLAIN][-1], reviews.SAID)
    zero_shot = float(jnp.mean(jnp.argmax(said, axis=-1) == read.labels['sentiment']))
    against = held_against(context, streams[PLAIN], read, read.rows(real.encode), size)
    _draw(curves, against, zero_shot, context.out / 'concept_depth.png')
    return curve_lines(curves[PLAIN], against, zero_shot) + depth_lines(curves) + change_lines(curves, size)


def read_all(real: Real, read: Reviews, size: Size, context: ClaimContext) -> dict[str, Float[Array, 'L+1 N D']]:
    """Name of the curve -> what the model has: plainly, and of some reviews with noise and with rounded weights."""
    rows = read.rows(real.encode)
    context.say(f'{len(rows)} reviews, {sum(map(len, rows))} tokens')
    plain = reading.last_tokens(real, real.params, rows)
    noisy = read.with_noise(1.0, context.seed).rows(real.encode)
    streams = {PLAIN: plain, SOME: plain[:, :: size.every]}
    streams['noise'] = reading.last_tokens(real, real.params, noisy[:: size.every])
    for bits in size.bits:
        rounded = round_weights(real.model, real.params, jnp.zeros((1, 2), jnp.int32), bits)
        streams[f'{bits} bits'] = reading.last_tokens(real, rounded, rows[:: size.every])
    return streams


def probe_all(context: ClaimContext, streams: dict[str, Array], read: Reviews, size: Size) -> dict[str, Curve]:
    """A curve of sentiment for every stream, and of the lexical concepts for the plain one."""
    labels, curves = read.labels[PLAIN], {}
    for name, stream in streams.items():
        own = labels if name == PLAIN else labels[:: size.every]
        curves[name] = _probe(context, stream, own, size)
    for name in LEXICAL:
        curves[name] = _probe(context, streams[PLAIN], read.labels[name], size)
    return curves


def held_against(context: ClaimContext, stream: Array, read: Reviews, rows: list[list[int]], size: Size) -> Probed:
    """One split with shuffled labels, and a probe of the bag of tokens."""
    parts = _parts(context, 0, stream.shape[1], size)
    arguments = dict(classes=2, penalties=[PENALTY], inputs=reviews.bag_of_tokens(rows))
    return probes.probe_classes(stream, read.labels[PLAIN], parts, context.key(size.splits), **arguments)


def _parts(context: ClaimContext, split: int, rows: int, size: Size) -> Parts:
    """A split's rows to fit and to score."""
    return probes.split_rows(context.key(split), rows, size.train / (size.train + size.held_out), 0.0)


@jax.jit
def _score(stream: Float[Array, 'L+1 N D'], labels: Int32[Array, 'N'], parts: Parts) -> Float[Array, 'L+1']:
    """Accuracies behind every layer; one layer after another, as each probe takes its own number of steps."""
    one_hot = jax.nn.one_hot(labels, 2)

    def of_layer(x: Float[Array, 'N D']) -> Float[Array, '']:
        probe = probes.fit_logistic(x[parts.train], one_hot[parts.train], PENALTY)
        return probes.accuracy(probe(x[parts.test]), one_hot[parts.test])

    return jax.lax.map(of_layer, stream)


def _probe(context: ClaimContext, stream: Float[Array, 'L+1 N D'], labels: Int32[Array, 'N'], size: Size) -> Curve:
    """Probes on every split."""
    parts = [_parts(context, split, len(labels), size) for split in range(size.splits)]
    score = np.array([_score(stream, labels, own) for own in parts])
    return Curve(score.mean(0), score.std(0))


def curve_lines(curve: Curve, against: Probed, zero_shot: float) -> list[Line]:
    """The accuracies by layer, and what they are to be held against."""
    last = len(curve.mean) - 1
    place = lambda layer: round(layer * last / DEPTH)
    number = lambda line, value, **rule: Line.number(PAPER, f'sentiment: {line}', value, **rule)
    lines = []
    for (first, end), expected in STRETCHES.items():
        own = curve.mean[place(first) : place(end) + 1]
        stretch = f'layer {end}' if first == end else f'layers {first} to {end}'
        where = 'of the embeddings' if end == 0 else f'behind {stretch}'
        note = f'{own.min():.3f} to {own.max():.3f}; deviation over splits {curve.deviation.max():.3f} at most'
        lines.append(number(f'accuracy {where}', float(own.mean()), near=(expected, NEAR), note=note))
    return [
        *lines,
        number('accuracy with shuffled labels, all layers', float(jnp.mean(against.control)), near=(0.5, 0.05)),
        number('accuracy of a bag of tokens', float(against.baseline), near=(BAG, NEAR)),
        number('what the model says itself', zero_shot, near=(ZERO_SHOT, NEAR)),
        number('best layer minus what the model says itself', curve.depth.best - zero_shot, above=0),
        number('best layer minus bag of tokens', curve.depth.best - float(against.baseline), above=0.1),
    ]


def depth_lines(curves: dict[str, Curve]) -> list[Line]:
    """Where the curves jump and go flat."""
    own, last = curves[PLAIN].depth, len(curves[PLAIN].mean) - 1
    layers = [str(round(jump * last)) for jump in own.jumps]
    note, lines = f'jumps at layers: {", ".join(layers) or "none"}', []
    for n, (which, expected) in enumerate(JUMPS.items()):
        measured = layers[n] if n < len(layers) else 'none'
        line = f'sentiment: layer of the {which} jump'
        lines.append(Line(PAPER, line, expected, measured, measured == expected, note))
    for name in LEXICAL:
        other = curves[name].depth
        seen = f'{other.flat:.3f} and {own.flat:.3f}; best {other.best:.3f} and {own.best:.3f}'
        lines += [
            Line.number(PAPER, f'{name}: flat from, minus sentiment', other.flat - own.flat, below=0, note=seen),
            Line.number(PAPER, f'{name}: layer of the peak, minus sentiment', other.peak - own.peak, below=0),
            Line.number(PAPER, f'{name}: best accuracy minus sentiment', other.best - own.best, above=0),
        ]
    return lines


def change_lines(curves: dict[str, Curve], size: Size) -> list[Line]:
    """What noise and fewer bits do."""
    plain, lines = curves[SOME], []
    for name in ('noise', *(f'{bits} bits' for bits in size.bits)):
        other, (flat, accuracy) = curves[name], CHANGES[name]
        note = f'flat from {other.depth.flat:.3f}, plain {plain.depth.flat:.3f}; best {other.depth.best:.3f}'
        later, gap = other.depth.flat - plain.depth.flat, float(np.mean(other.mean - plain.mean))
        lines += [
            Line.number(PAPER, f'{name}: flat from, minus plain', later, **flat, note=note),
            Line.number(PAPER, f'{name}: accuracy minus plain, mean of all layers', gap, **accuracy),
        ]
    return lines


def _draw(curves: dict[str, Curve], against: Probed, zero_shot: float, path: object) -> None:
    """Accuracy by layer: of concepts, and of sentiment under noise and with rounded weights."""
    figure = Figure(figsize=(12, 4.8), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    at = np.arange(len(curves[PLAIN].mean))
    for axis, names in ((left, (PLAIN, *LEXICAL)), (right, [n for n in curves if n not in (PLAIN, *LEXICAL)])):
        for name in names:
            curve = curves[name]
            axis.plot(at, curve.mean, 'o-', ms=3, label=name)
            axis.fill_between(at, curve.mean - curve.deviation, curve.mean + curve.deviation, alpha=0.15)
        axis.set(xlabel='layer (0: embeddings)')
    left.plot(at, against.control, ':', color='grey', label='shuffled labels')
    left.axhline(float(against.baseline), ls='--', lw=1, color='black', label='bag of tokens')
    right.axhline(zero_shot, ls='-.', lw=1, color='black', label='the model itself')
    left.set(ylabel='accuracy of a linear probe', title='concepts')
    right.set(title=f'sentiment of {SOME}, inputs and weights changed')
    left.legend()
    right.legend()
    figure.savefig(path, dpi=110)
