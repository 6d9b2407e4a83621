"""Paper 50, "Attention, Please!": efficient probing, attention without key, query and output maps on frozen features.

    make models
    python -m experiments.claims --only=50 --data_dir=DIR --out=runs/claims    minutes; DIR/mnist and DIR/omniglot
    python -m experiments.claims --only=50 --out=runs/claims                         the costs alone
    python -m experiments.claims --only=50 --size=tiny                               a minute: that everything runs

Claims: on a masked autoencoder's features attention finds several points that a linear probe does not, with many labels
and with few; on those of an encoder with a trained class token much less; efficient probing is no worse than AIM with
about half of its parameters, better with eight queries than with one, and no better with more; its queries come to look
at different parts; it is several times as fast as multi-head attention pooling as it is written, and about as fast as
that with its maps absorbed. On the tokens of a published encoder, a ViT-S/14, attention again beats linear probes.

Choices: digits, four layers of width 64, patches of 4 x 4; the supervised encoder has seen the classes that it is
probed for. Rates are chosen by validation images for each head. Patches alone are pooled, and the class token too where
it was trained. 'No worse' is -0.005, and 'flattens' within 0.01.
"""

import jax

from experiments.papers import real_encoder
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.efficient_probing import encoders, pictures, probes, published, timing
from experiments.papers.efficient_probing.probes import Features, Found
from experiments.papers.efficient_probing.settings import AIM, CLS, MEAN, SIZES, Images, Size, name_of
from experiments.papers.forward import parameters
from jattn.data import MNISTConfig
from jattn.poolers import AIMConfig, CAEConfig, EfficientProbingConfig

PAPER = '50'
MASKED, SUPERVISED, FEW = 'masked', 'supervised', 'masked, few labels'
Heads = dict[str, dict[str, Found]]


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its picture."""
    size = SIZES[context.size]
    lines = parameter_lines(size)
    if context.lacks('mnist'):
        lines += missing(size)
    else:
        lines += probe_lines(context, size)
    lines += published_lines(context, size)
    context.say('costs')
    return lines + cost_lines(size)


def missing(size: Size) -> list[Line]:
    """The lines that need images."""
    main, note = name_of(size.main), needs('mnist')
    names = [
        (f'masked: accuracy of {main} minus {MEAN}', '> 0.02'),
        (f'masked: accuracy of {main} minus {AIM}', '> -0.005'),
    ]
    return [Line.missing(PAPER, name, expected, note) for name, expected in names]


def published_lines(context: ClaimContext, size: Size) -> list[Line]:
    """The lines of the published encoder."""
    told = f'{published.TOLD}: accuracy of heads'
    for name in ('mnist', 'omniglot'):
        if context.lacks(name):
            return [Line.missing(PAPER, told, 'as the sheet says', needs(name))]
    encoder = real_encoder.open_encoder(context)
    if encoder is None:
        return [Line.missing(PAPER, told, 'as the sheet says', real_encoder.NEEDS)]
    return published.lines(context, PAPER, encoder, size)


def probe_lines(context: ClaimContext, size: Size) -> list[Line]:
    """Trains the encoders and the heads."""
    data = MNISTConfig(path=context.data('mnist'))
    splits = {
        'train': Images.of(data, 'train', max(size.images, size.labels)),
        'validation': Images.of(data, 'validation', size.test),
        'test': Images.of(data, 'test', 2 * size.test),
    }
    masked, error = encoders.train_masked(context, size, splits['train'])
    trained = {
        MASKED: masked,
        SUPERVISED: encoders.train_supervised(context, size, splits['train']),
    }
    features = {name: cached(size, params, splits) for name, params in trained.items()}
    found = heads(context, size, features)
    pooler = EfficientProbingConfig(queries=size.main)
    shown = features[MASKED].test[0][:200]
    after = probes.maps_of(size, pooler, found[MASKED][name_of(size.main)].variables, shown, False)
    pictures.draw(splits['test'], {f'EP on the {MASKED} encoder': after}, found, context.out / 'efficient_probing.png')
    name = f'masked autoencoder, {size.masked_steps} steps: squared error over that of the mean image'
    learned = Line.number(PAPER, name, error, below=0.9, note='else its features know little more than random ones')
    return [learned, *accuracy_lines(found, size), overlap_line(context, size, pooler, shown, after)]


def cached(size: Size, params: object, splits: dict[str, Images]) -> Features:
    """The tokens of every split."""
    train = Images(splits['train'].patches[: size.labels], splits['train'].labels[: size.labels])
    return Features(
        *((encoders.features(size, params, own), own.labels) for own in (train, splits['validation'], splits['test']))
    )


def heads(context: ClaimContext, size: Size, features: dict[str, Features]) -> Heads:
    """encoder -> head -> what became of it."""
    every, main = size.probes(), name_of(size.main)
    runs = {
        MASKED: (features[MASKED], list(every), size.labels),
        SUPERVISED: (features[SUPERVISED], [MEAN, CLS, AIM, main], size.labels),
        FEW: (features[MASKED], [MEAN, CLS, main], size.few),
    }
    found: Heads = {}
    for number, (title, (own, names, count)) in enumerate(runs.items()):
        found[title] = {}
        for name in names:
            sees = name == CLS or (title == SUPERVISED and name != MEAN)
            result = probes.probe(size, every[name], own, context.key(300 + number), count, sees)
            context.say(f'{title}, {name}: accuracy {result.accuracy:.3f} at rate {result.rate:g}')
            found[title][name] = result
    return found


def accuracy_lines(found: Heads, size: Size) -> list[Line]:
    """Attention against linear probes, AIM, and by the number of queries."""
    main, first, last = name_of(size.main), name_of(size.queries[0]), name_of(size.queries[-1])
    note = {
        title: ', '.join(f'{name} {"/".join(f"{value:.3f}" for value in run.accuracies)}' for name, run in runs.items())
        for title, runs in found.items()
    }

    def gap(title: str, better: str, worse: str) -> float:
        return found[title][better].accuracy - found[title][worse].accuracy

    def line(title: str, better: str, worse: str, **rule: object) -> Line:
        measured = gap(title, better, worse)
        return Line.number(PAPER, f'{title}: accuracy of {better} minus {worse}', measured, **rule)

    return [
        line(MASKED, main, MEAN, above=0.02, note=note[MASKED]),
        line(MASKED, main, CLS, above=0.02),
        Line.number(
            PAPER,
            f'accuracy of {main} minus {CLS}: {SUPERVISED} over {MASKED}',
            gap(SUPERVISED, main, CLS) / gap(MASKED, main, CLS),
            below=0.5,
            note=note[SUPERVISED],
        ),
        line(MASKED, main, AIM, above=-0.005),
        line(MASKED, main, first, above=0.0),
        line(MASKED, last, main, near=(0.0, 0.01)),
        line(FEW, main, MEAN, above=0.02, note=note[FEW]),
    ]


def overlap_line(
    context: ClaimContext, size: Size, pooler: EfficientProbingConfig, shown: object, after: object
) -> Line:
    """The queries' maps part while the probe learns."""
    cfg = probes.ProbeConfig(width=size.width, pooler=pooler, classes=probes.CLASSES)
    new = jax.jit(cfg.make().init)(context.key(300), shown)
    before = probes.overlap(probes.maps_of(size, pooler, new, shown, False))
    return Line.number(
        PAPER,
        f'overlap of the {size.main} maps, after training minus before',
        probes.overlap(after) - before,
        below=0.0,
        note=f'{before:.3f} before, {probes.overlap(after):.3f} after; 1 where all maps are alike',
    )


def parameter_lines(size: Size) -> list[Line]:
    """Q D + D^2 against the maps of others."""
    own = parameters(EfficientProbingConfig(queries=size.main), size.width)
    aim, whole = parameters(AIMConfig(heads=8), size.width), parameters(CAEConfig(), size.width)
    width, queries = size.width, size.main
    return [
        Line.number(
            PAPER,
            'parameters of EP over those of AIM',
            own / aim,
            near=((queries * width + width**2) / (width + 2 * width**2), 0.001),
            note=f'Q D + D^2 = {own} over 2 D^2 + D = {aim}; of full multi-head pooling (CAE) {whole}',
        )
    ]


def cost_lines(size: Size) -> list[Line]:
    """EP against multi-head attention pooling."""
    found, flops = timing.measure(size)
    seconds = {name: own.at(size.tokens) for name, own in found.items()}
    where = f'N = {size.tokens}, D = {size.timed_width}, Q = {size.timed_queries}, {size.timed_heads} heads'
    note = ', '.join(
        f'{name} {1e3 * value:.1f} ms and {flops[name] / 1e9:.2f} GFLOP' for name, value in seconds.items()
    )

    def ratio(one: str, other: str, **rule: object) -> Line:
        name = f'time of {one} over {other}, {where}'
        in_flops = f'{flops[one] / flops[other]:.1f} in operations'
        return Line.number(PAPER, name, seconds[one] / seconds[other], note=in_flops, **rule)

    first = Line.number(
        PAPER,
        f'time of {timing.NAIVE} over {timing.EP}, {where}',
        seconds[timing.NAIVE] / seconds[timing.EP],
        above=3.0,
        note=f"the paper's figure is up to 10, the sheet's several; {note}",
    )
    return [
        first,
        ratio(timing.NAIVE, timing.PUBLISHED, above=3.0),
        ratio(timing.ABSORBED, timing.EP, near=(1.0, 0.35)),
    ]
