"""The heads on the tokens of a published encoder, a ViT-S/14 of the DINOv2 kind: digits, few digits, and characters.

    tokens of 112 x 112 pixels: a class token and 8 x 8 patches           2 x 2 means: patches averaged by quarter

Beside the trained heads stand closed forms, ridge regressions: 300 steps leave a linear probe behind them.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.efficient_probing import probes, timing
from experiments.papers.efficient_probing.probes import Features, Found
from experiments.papers.efficient_probing.settings import AIM, CLS, MEAN, Size
from experiments.papers.real_encoder import RealEncoder, enlarged
from jattn.data import MNISTConfig, OmniglotConfig
from jattn.data.classes import ClassRows, rank_in_class
from jattn.poolers import AIMConfig, CAEConfig, EfficientProbingConfig, FirstConfig, MeanConfig
from jattn.typing import Array, Float, Int32
from jattn.understanding.probes import fit_ridge

TOLD = 'ViT-S/14'
ONE, EP, MULTI_HEAD = 'EP, Q = 1', 'EP, Q = 8', 'multi-head'
BLOCKS, RIDGE_CLS = 'ridge of 2 x 2 means', 'ridge of [cls]'
HEADS = {
    CLS: FirstConfig(),
    MEAN: MeanConfig(),
    ONE: EfficientProbingConfig(queries=1),
    EP: EfficientProbingConfig(queries=8),
    AIM: AIMConfig(heads=12),
    MULTI_HEAD: CAEConfig(),
}
DIGITS, FEW, CHARACTERS = 'digits', 'ten of a digit', 'characters'
PENALTY = 100.0
# What was measured before this was written: of three seeds, on 1000 digits and 816 images of characters.
EXPECTED = {
    DIGITS: {CLS: 0.921, MEAN: 0.913, ONE: 0.928, EP: 0.928, AIM: 0.936, MULTI_HEAD: 0.943, RIDGE_CLS: 0.930,
             BLOCKS: 0.962},
    CHARACTERS: {CLS: 0.512, MEAN: 0.461, EP: 0.585, MULTI_HEAD: 0.620, RIDGE_CLS: 0.506, BLOCKS: 0.613},
}  # fmt: skip
NEAR = {DIGITS: 0.02, CHARACTERS: 0.04}  # two standard errors and a little
Accuracies = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Published:
    """How much is run.

    Attributes:
        digits: images to train on, to choose by, and to test on.
        few: of each digit, in the low-shot lines.
        characters: classes of Omniglot, the first ones.
        pixels: of an image's side.
        steps, character_steps: of the heads.
        rates, seeds, batch: of the heads; the rate is chosen by validation.
        linear_rates: that linear probes, which cost little, are trained at too.
    """

    digits: tuple[int, int, int]
    few: int
    characters: int
    pixels: int
    steps: int
    character_steps: int
    rates: tuple[float, ...]
    linear_rates: tuple[float, ...]
    seeds: int
    batch: int


_SMALL = Published((2000, 200, 800), 10, 136, 112, 300, 400, (1e-3, 3e-3), (1e-2, 3e-2), 1, 128)
PUBLISHED = {
    'tiny': Published((24, 8, 8), 1, 2, 56, 2, 2, (1e-3,), (), 1, 8),
    'small': _SMALL,
    'paper': dataclasses.replace(_SMALL, steps=1000, character_steps=2000, rates=(3e-4, 1e-3, 3e-3), seeds=3),
}


def lines(context: ClaimContext, paper: str, encoder: RealEncoder, size: Size) -> list[Line]:
    """Every line of the published encoder."""
    much = PUBLISHED[context.size]
    rows = {DIGITS: digits(context, much), CHARACTERS: characters(context, much)}
    found: Accuracies = {}
    for number, (name, own) in enumerate(rows.items()):
        features = Features(*((encoder.tokens(images), labels) for images, labels in own))
        context.say(f'{TOLD}, {name}: {sum(len(labels) for _, labels in own)} images read')
        found[name] = accuracies(context, encoder, size, features, name, much, number)
        if name == DIGITS:
            count = first_of_each(own[0][1], much.few)
            few = Features((features.train[0][count], features.train[1][count]), features.validation, features.test)
            found[FEW] = accuracies(context, encoder, size, few, FEW, much, 2)
            same = absorbed_error(features.test[0][:64])
    return number_lines(paper, found) + gap_lines(paper, found) + [
        Line.number(paper, f'{TOLD}: multi-head pooling with its maps absorbed, largest difference over the largest '
                    'output', same, below=1e-5)
    ]  # fmt: skip


def digits(context: ClaimContext, much: Published) -> list[tuple[np.ndarray, np.ndarray]]:
    """MNIST, enlarged."""
    data, found = MNISTConfig(path=context.data('mnist')), []
    for split, count in zip(('train', 'validation', 'test'), much.digits):
        rows = data.rows(split)
        found.append((enlarged(rows.inputs[:count], much.pixels), rows.labels[:count]))
    return found


def characters(context: ClaimContext, much: Published) -> list[tuple[np.ndarray, np.ndarray]]:
    """Omniglot, enlarged: 12 drawers to train on, 2 to choose by, 6 to test on."""
    data = OmniglotConfig(path=context.data('omniglot'), shrink=1)
    parts = {split: data.rows(split) for split in ('train', 'validation', 'test')}
    seen = parts['train']
    is_first = rank_in_class(seen.labels) < 12
    both = ClassRows(*(np.concatenate([getattr(parts[split], name) for split in ('validation', 'test')])
                       for name in ('inputs', 'labels')))  # fmt: skip
    own = [(seen.inputs[is_first], seen.labels[is_first]), (seen.inputs[~is_first], seen.labels[~is_first]),
           (both.inputs, both.labels)]  # fmt: skip
    kept = [labels < much.characters for _, labels in own]
    # The encoder tells padded drawings apart worse than enlarged ones.
    drawn, padded = data.sides
    inside = slice((padded - drawn) // 2, (padded + drawn) // 2)
    return [
        (enlarged(images[keep][:, inside, inside], much.pixels), labels[keep])
        for (images, labels), keep in zip(own, kept)
    ]


def first_of_each(labels: Int32[np.ndarray, 'N'], count: int) -> Int32[np.ndarray, 'M']:
    """The first images of each class.

    >>> first_of_each(np.array([1, 1, 0, 1, 0]), 1).tolist()
    [0, 2]
    """
    return np.flatnonzero(rank_in_class(labels) < count)


def accuracies(
    context: ClaimContext,
    encoder: RealEncoder,
    size: Size,
    features: Features,
    name: str,
    much: Published,
    number: int,
) -> dict[str, float]:
    """head -> accuracy on the test images; the class token is no key of attention."""
    chosen = {DIGITS: list(HEADS), FEW: [CLS, MEAN, EP], CHARACTERS: [CLS, MEAN, EP, MULTI_HEAD]}[name]
    own = dataclasses.replace(
        size,
        width=encoder.model.cfg.width,
        probe_steps=much.character_steps if name == CHARACTERS else much.steps,
        probe_batch=min(much.batch, len(features.train[1])),
        seeds=much.seeds,
    )
    classes, count, found = int(features.train[1].max()) + 1, len(features.train[1]), {}
    for head in chosen:
        rates = much.rates + (much.linear_rates if head in (CLS, MEAN) else ())
        run: Found = probes.probe(dataclasses.replace(own, rates=rates), _with_heads(head, encoder), features,
                                  context.key(500 + number), count, head == CLS, classes)  # fmt: skip
        found[head] = run.accuracy
        context.say(f'{TOLD}, {name}, {head}: accuracy {run.accuracy:.3f} at rate {run.rate:g}')
    train = np.concatenate([features.train[0], features.validation[0]]) if name != FEW else features.train[0]
    labels = np.concatenate([features.train[1], features.validation[1]]) if name != FEW else features.train[1]
    for head, view in ((RIDGE_CLS, lambda tokens: tokens[:, 0]), (BLOCKS, quarters)):
        found[head] = _ridge(view(train), labels, view(features.test[0]), features.test[1], classes)
        context.say(f'{TOLD}, {name}, {head}: accuracy {found[head]:.3f}')
    return found


def quarters(tokens: Float[np.ndarray, 'N T D']) -> Float[np.ndarray, 'N F']:
    """The means of the four quarters of the patches, joined; the class token first in `tokens` is left out.

    >>> quarters(np.arange(5.0).reshape(1, 5, 1)).tolist()
    [[1.0, 2.0, 3.0, 4.0]]
    """
    side = round((tokens.shape[1] - 1) ** 0.5)
    square = tokens[:, 1:].reshape(len(tokens), 2, side // 2, 2, side // 2, -1)
    return square.mean(axis=(2, 4)).reshape(len(tokens), -1)


def absorbed_error(tokens: Float[np.ndarray, 'N T D']) -> float:
    """How far multi-head pooling with absorbed maps is from itself as it is written, over the largest output."""
    width, heads = tokens.shape[-1], 2
    shapes = {'q': (heads, width // heads), 'k': (width, heads, width // heads), 'v': (width, heads, width // heads),
              'o': (heads, width // heads, width)}  # fmt: skip
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {name: jax.random.normal(key, shape) * width**-0.5 for key, (name, shape) in zip(keys, shapes.items())}
    one, other = (jax.jit(head)(params, jnp.asarray(tokens)) for head in (timing.naive, timing.absorbed))
    return float(jnp.abs(one - other).max() / jnp.abs(one).max())


def number_lines(paper: str, found: Accuracies) -> list[Line]:
    """Every accuracy that is known."""
    return [
        Line.number(paper, f'{TOLD}, {name}: accuracy of {head}', found[name][head], near=(value, NEAR[name]))
        for name, known in EXPECTED.items()
        for head, value in known.items()
    ]


def gap_lines(paper: str, found: Accuracies) -> list[Line]:
    """What the paper says of heads, and what was measured of them."""

    def line(name: str, better: str, worse: str, note: str = '', **rule: object) -> Line:
        gap = found[name][better] - found[name][worse]
        return Line.number(paper, f'{TOLD}, {name}: accuracy of {better} minus {worse}', gap, note=note, **rule)

    few: Mapping[str, float] = found[FEW]
    return [
        line(DIGITS, EP, CLS, above=0.0, note='the paper'),
        line(DIGITS, EP, MEAN, above=0.0, note='the paper'),
        line(CHARACTERS, EP, CLS, above=0.02, note='the paper'),
        line(CHARACTERS, EP, MEAN, above=0.02, note='the paper'),
        line(FEW, EP, CLS, above=0.02, note=', '.join(f'{head} {value:.3f}' for head, value in few.items())),
        line(DIGITS, EP, MULTI_HEAD, above=-0.005, note='the paper; four times its parameters'),
        line(CHARACTERS, EP, MULTI_HEAD, above=-0.005, note='the paper'),
        line(DIGITS, EP, AIM, above=-0.005, note='the paper; twice its parameters'),
        line(DIGITS, EP, ONE, near=(0.0, 0.01)),
        line(DIGITS, BLOCKS, MULTI_HEAD, above=0.0, note='a closed form, without attention'),
        line(FEW, BLOCKS, EP, above=0.0),
    ]


def _with_heads(head: str, encoder: RealEncoder) -> object:
    """The head, with as many attention heads as the width allows."""
    pooler = HEADS[head]
    if head == AIM and encoder.model.cfg.width % pooler.heads:
        return dataclasses.replace(pooler, heads=2)
    return pooler


def _ridge(x: Array, labels: Array, tested: Array, said: Array, classes: int) -> float:
    """The accuracy of ridge regression on the classes."""
    fit = jax.jit(lambda x, y: fit_ridge(x, y, jnp.float32(PENALTY)))
    probe = fit(jnp.asarray(x), jax.nn.one_hot(labels, classes))
    return float(np.mean(np.asarray(jnp.argmax(probe(jnp.asarray(tested)), axis=-1)) == said))
