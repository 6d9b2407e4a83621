"""Paper 47, "How Does Attention Work in Vision Transformers? A Visual Analytics Attempt", on a ViT-S/14.

    make models
    python -m experiments.claims --only=47 --data_dir=DIR --out=runs/claims       minutes; with DIR/fashion_mnist_mini
    python -m experiments.claims --only=47 --size=tiny                            seconds: a random model, that it runs

Claims: few heads carry most importance, whichever way it is measured; lower layers look near, higher ones far; the rows
of attention fall into groups that the weights of an untrained model do not have.

Choices: 72 heads, silenced one after the other, on 80 images of clothes at 112 pixels, with a logistic classifier of
the class token; distances on windows of a photo of 224 pixels. The sheet expects that the first layer is nearer than
the last, that half of the heads are free, and that any two measures agree: of a model trained from scratch on shapes.
Of this encoder other figures were measured before this was written, on 100 images and eight photos that this has not;
they stand beside these.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import real_encoder
from experiments.papers.contract import ClaimContext, Line
from experiments.papers.ranks import spearman
from experiments.papers.real_encoder import RealEncoder
from experiments.papers.vit_analytics import atlas, photos, pictures
from jattn.data import FashionMiniConfig
from jattn.taps import Edit
from jattn.typing import Array, Float
from jattn.understanding import ablate, capture
from jattn.understanding.importance import Importance, head_importance, prune
from jattn.understanding.probes import fit_logistic
from jattn.understanding.spatial import Spread, spread

PAPER, TOLD = '47', 'ViT-S/14'
PENALTY = 10.0  # of the logistic classifier
LAYERS = {'1': range(1), '2-5': range(1, 5), '9-12': range(8, 12)}  # counted from 1, as the paper does
DISTANCES = {'1': 7.0, '2-5': 4.3, '9-12': 5.9}  # in patches, measured before on other photos
PAIRS = (  # of measures whose rank correlations were: .96, .82, .68, .81, .43
    ('divergence', 'shift'),
    ('divergence', 'gate'),
    ('prob_drop', 'divergence'),
    ('prob_drop', 'loss_rise'),
    ('prob_drop', 'gate'),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        images, tested: to train the classifier on, and to prune on.
        pixels: of these images' sides.
        windows, photo: of the photo, and pixels of their sides.
        maps, reach, steps: of the atlas: rows of a head, places to each side, steps of the autoencoder.
        clusters: of the atlas.
        draws: random orders of pruning.
    """

    images: int
    tested: int
    pixels: int
    windows: int
    photo: int
    maps: int
    reach: int
    steps: int
    clusters: int
    draws: int


_SMALL = Size(600, 80, 112, windows=8, photo=224, maps=24, reach=7, steps=2000, clusters=6, draws=2)
SIZES = {
    'tiny': Size(20, 6, 28, windows=2, photo=56, maps=20, reach=2, steps=20, clusters=2, draws=1),
    'small': _SMALL,
    'paper': dataclasses.replace(_SMALL, tested=200, pixels=224, maps=96, draws=8),
}


def run(context: ClaimContext) -> list[Line]:
    """Every line, and the picture."""
    lacking = context.lacking('fashion')
    encoder = None if lacking else real_encoder.open_encoder(context)
    if encoder is None:
        return [Line.missing(PAPER, f'{TOLD}: heads', 'as the sheet says', lacking or real_encoder.NEEDS)]
    size = SIZES[context.size]
    images = photos.windows(size.windows, size.photo)
    shown = photos.patterns(encoder, images)
    fresh = photos.untrained(encoder, context.key(1), size.photo)
    untrained = photos.patterns(fresh, images)
    grid = (size.photo // encoder.patch,) * 2
    far, far_untrained = (mean_spread(pattern, grid) for pattern in (shown, untrained))
    context.say('attention on the photo read')
    plane, maps, heads, own, atlas_lines_ = lay_out(context, size, grid, shown, untrained)
    found, right, kept = importances(context, encoder, size)
    pictures.draw(found, far, kept, right, (plane, maps, heads, own), context.out / 'vit_visual_analytics.png')
    return importance_lines(found, far) + pruning_lines(right, kept) + distance_lines(far, far_untrained) + atlas_lines_


def mean_spread(pattern: Float[np.ndarray, 'N L H T T'], grid: tuple[int, int]) -> Spread:
    """The mean over images."""
    each = [jax.device_get(spread(jnp.asarray(one), grid)) for one in pattern]
    return jax.tree.map(lambda *parts: np.mean(parts, axis=0), *each)


def importances(
    context: ClaimContext, encoder: RealEncoder, size: Size
) -> tuple[Importance, float, dict[tuple[str, int], float]]:
    """The importance of each head, the accuracy of the whole, and those without the first heads of some orders."""
    data = FashionMiniConfig(path=context.data('fashion'))
    train, test = (
        (real_encoder.enlarged(rows.inputs[:count], size.pixels), rows.labels[:count])
        for rows, count in ((data.rows('train'), size.images), (data.rows('test'), size.tested))
    )
    tokens = encoder.tokens(train[0])[:, 0]
    probe = jax.jit(fit_logistic)(jnp.asarray(tokens), jax.nn.one_hot(train[1], 10), jnp.float32(PENALTY))
    read = lambda outputs: (outputs[:, 0], probe(outputs[:, 0]))
    inputs, labels = real_encoder.in_colour(jnp.asarray(test[0])), jnp.asarray(test[1])
    same = gates_of_one(encoder, inputs)
    context.say(f'classifier of {len(tokens)} images; gates of one change an output by {same:g} at most')
    found = jax.device_get(head_importance(encoder.model, encoder.params, inputs, labels, read))
    context.say('every head silenced')
    heads = ablate.prepare(encoder.model, encoder.params, inputs, kind='zero')
    names, tables = [('whole', 0)], [heads.table([])]
    for name, order in orders(found, context.seed, size.draws):
        for eighths in (1, 2, 3, 4) if name == 'lowest' else (1, 2):
            names.append((name, eighths))
            tables.append(heads.table(order[: max(len(order) * eighths // 8, 1)]))
    logits = prune(encoder.model, encoder.params, inputs, read, jnp.stack(tables), heads=heads)[1]
    accuracies = np.asarray(jnp.mean(jnp.argmax(logits, axis=-1) == labels[None], axis=1))
    kept: dict[tuple[str, int], list[float]] = {}
    for name, value in zip(names, accuracies):
        kept.setdefault(name, []).append(float(value))
    for name, values in kept.items():
        context.say(f'{name[0]}, {name[1]} eighths of the heads silenced: accuracy {np.mean(values):.2f}')
    means = {name: float(np.mean(values)) for name, values in kept.items()}
    return found, means[('whole', 0)], means | {('gates', 0): same}


def gates_of_one(encoder: RealEncoder, inputs: Float[Array, 'N Y X 3']) -> float:
    """The largest change of an output by gates of one on all heads."""
    layers, heads = encoder.model.cfg.layers, encoder.model.cfg.mixer[0].heads
    edits = {'z': Edit(scale=jnp.ones((layers, 1, 1, heads, 1)))}
    plain, gated = (capture.run(encoder.model, encoder.params, inputs[:2], edits=own).outputs for own in ({}, edits))
    return float(jnp.abs(plain - gated).max())


def orders(found: Importance, seed: int, draws: int) -> list[tuple[str, list[tuple[int, int]]]]:
    """Heads from the least important, from the most important, and at random, by divergence."""
    value = found.divergence.mean(axis=-1)
    heads = [(layer, head) for layer in range(value.shape[0]) for head in range(value.shape[1])]
    lowest = sorted(heads, key=lambda head: value[head])
    generator = np.random.default_rng(seed)
    random = [('random', [heads[n] for n in generator.permutation(len(heads))]) for _ in range(draws)]
    return [('lowest', lowest), ('highest', lowest[::-1]), *random]


def importance_lines(found: Importance, far: Spread) -> list[Line]:
    """How concentrated importance is, whether measures agree, and whether it is distance."""
    means = {name: getattr(found, name).mean(axis=-1) for name in ('prob_drop', *{n for pair in PAIRS for n in pair})}
    error = np.std(found.prob_drop.mean(axis=(0, 1))) / np.sqrt(found.prob_drop.shape[-1])
    top = lambda value: np.sort(np.maximum(value, 0).ravel())[::-1]
    share = lambda value: top(value)[: -(-value.size // 4)].sum() / top(value).sum()
    largest = np.unravel_index(means['prob_drop'].argmax(), means['prob_drop'].shape)
    note = (
        f'the sheet; before: .72; most at layer {largest[0] + 1}, head {largest[1]}: {means["prob_drop"].max():.3f}; '
        f'mean over heads {means["prob_drop"].mean():.4f}, standard error {error:.4f}'
    )
    lines = [
        Line.number(PAPER, f'{TOLD}: share of the drop of the right probability that the top quarter of the heads '
                    'holds', share(means['prob_drop']), above=0.5, note=note),
        Line.number(PAPER, f'{TOLD}: the same of the divergence', share(means['divergence']), above=0.5,
                    note='before: .63'),
    ]  # fmt: skip
    for one, other in PAIRS:
        name = f'{TOLD}: rank correlation of heads, {one} and {other}'
        lines.append(
            Line.number(PAPER, name, spearman(means[one].ravel(), means[other].ravel()), above=0.6, note='the sheet')
        )
    return [
        *lines,
        Line.number(
            PAPER,
            f'{TOLD}: rank correlation of heads, divergence and distance',
            spearman(means['divergence'].ravel(), far.distance.ravel()),
            near=(0.0, 0.25),
            note='importance is not simply how far a head looks',
        ),
    ]


def pruning_lines(whole: float, kept: dict[tuple[str, int], float]) -> list[Line]:
    """Several heads at once."""
    number = lambda line, value, **rule: Line.number(PAPER, f'{TOLD}: {line}', value, **rule)
    lowest = ', '.join(f'{n}/8: {kept["lowest", n]:.2f}' for n in (1, 2, 3, 4))
    return [
        number('accuracy of the whole on clothes', whole, near=(0.73, 0.09)),
        number('gates of one on all heads: largest change of an output', kept['gates', 0], near=(0.0, 0.0)),
        number('accuracy lost without the least important half', whole - kept['lowest', 4], below=0.03,
               note=f'the sheet; lowest {lowest}'),
        number('accuracy lost without the least important eighth', whole - kept['lowest', 1], below=0.03,
               note='before: 0'),
        number('accuracy lost without the most important quarter', whole - kept['highest', 2], above=0.2,
               note=f'the sheet; random quarters {whole - kept["random", 2]:.2f}'),
        number('accuracy without the most important eighth', kept['highest', 1], near=(0.12, 0.1),
               note=f'random eighths {kept["random", 1]:.2f}'),
    ]  # fmt: skip


def distance_lines(far: Spread, untrained: Spread) -> list[Line]:
    """How far heads look, by layer."""
    distance, near = far.distance, far.mass[..., :2].sum(axis=-1)
    own = {name: [n for n in layers if n < len(distance)] or [0] for name, layers in LAYERS.items()}
    mean = {name: float(distance[layers].mean()) for name, layers in own.items()}
    by_layer = ' '.join(f'{value:.1f}' for value in distance.mean(axis=1))
    number = lambda line, value, **rule: Line.number(PAPER, f'{TOLD}: {line}', float(value), **rule)
    return [
        number('mean distance of layer 1 minus layer 12, in patches', distance[0].mean() - distance[-1].mean(),
               below=0.0, note=f'the sheet; by layer {by_layer}'),
        number('mean distance of layers 2-5 minus 9-12', mean['2-5'] - mean['9-12'], below=0.0),
        *(number(f'mean distance of layers {name}' if '-' in name else f'mean distance of layer {name}', value,
                 near=(DISTANCES[name], 0.5), note='before, on eight other photos') for name, value in mean.items()),
        number('largest mass of a head on a patch and its 8 neighbours', near.max(), above=0.5,
               note='the sheet; before: .82 in layer 2'),
        number('the same in layer 1', near[0].max(), below=0.5, note='before: .35: the first layer has no local head'),
        number('untrained: nearest head over the farthest, distance', untrained.distance.min()
               / untrained.distance.max(), above=0.9, note=f'{untrained.distance.mean():.2f} patches; uniform: 8.33'),
    ]  # fmt: skip


def lay_out(
    context: ClaimContext, size: Size, grid: tuple[int, int], shown: np.ndarray, untrained: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[Line]]:
    """The atlas of the trained encoder, and the lines that compare it with that of the untrained one."""
    scores, parts, errors = [], [], []
    for pattern in (shown, untrained):
        maps, heads = atlas.centred(pattern, grid, size.reach, size.maps, context.seed)
        params, error = atlas.train(maps, context.key(2), size.steps)
        codes = np.asarray(atlas.encode(params, jnp.asarray(maps, jnp.float32)))
        own = atlas.clusters(codes, size.clusters, context.seed)
        scores.append(atlas.silhouette(codes, own))
        errors.append(error)
        parts.append((codes, maps, heads, own))
        context.say(f'atlas of {len(maps)} rows: silhouette {scores[-1]:.3f}, error {error:.3f}')
    line = Line.number(
        PAPER,
        f'{TOLD}: silhouette of {size.clusters} clusters of patterns, trained minus untrained',
        scores[0] - scores[1],
        above=0.0,
        note=f'{scores[0]:.3f} and {scores[1]:.3f}; the autoencoders leave {errors[0]:.2f} and {errors[1]:.2f} of '
        'the variance',
    )
    return *parts[0], [line]
