"""Paper 30, "FIT: Far-reaching Interleaved Transformers": groups of tokens, and latents that link the groups.

    python -m experiments.claims --only=30 --data_dir=DIR --out=runs/claims          6 minutes, with DIR/books
    python -m experiments.claims --only=30                                           on Python's own sources
    python -m experiments.claims --only=30 --size=tiny                               a minute: that everything runs

Claims: an autoregressive FIT recalls names that were told many groups ago, which local layers alone cannot, and
predicts text about as well as a flat Transformer of equal depth; with groups of T^(1/3) tokens its cost grows as
T^(4/3), and its training step is faster and smaller than the flat one's from T = 1024 on; a training step on one image
of 6400 x 6400 pixels, 160,000 tokens, fits in 16 GB.

Choices: rows of 512 bytes in place of 1024, after a stage of shorter ones; several questions a row, since each is as
much signal as a row of the paper's notes. Costs are gradients of one row, of decoders of three layers. The image is
compiled for this machine's CPU and never allocated: 2 + 8 layers of width 512, recomputed in the backward pass.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.cost import Cost
from experiments.papers.fit_trunk import costs, names
from experiments.papers.fit_trunk.settings import FIT, FLAT, LOCAL, SIZES, Size

PAPER = '30'
Found = Mapping[str, Sequence[dict[str, float] | None]]


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its pictures."""
    size = SIZES[context.size]
    lines = [image_line(*costs.large_image(context, size), size)]
    lines += cost_lines(costs.table(context, size), size)
    found = names.measure(context, size)
    draw(found, context)
    return lines + name_lines(found, size)


def image_line(measured: float, note: str, size: Size) -> Line:
    """The memory of the large image."""
    tokens = (size.image // size.patch) ** 2
    line = f'training step on an image of {size.image} x {size.image} ({tokens} tokens): peak GB'
    return Line.number(PAPER, line, measured, below=16.0, note=note)


def cost_lines(found: Mapping[str, Cost], size: Size) -> list[Line]:
    """Exponents, and the flat Transformer's costs over FIT's."""
    first, common = size.lengths[1], [t for t in size.lengths[1:] if t <= size.flat_longest]
    exponent = lambda name, of: found[name].slope(of, first)
    faster = [t for t in common if found[FIT].at(t) < found[FLAT].at(t)]
    spans = 'T = ' + ', '.join(map(str, common))
    times = '; '.join(f'{t}: {1e3 * found[FIT].at(t):.1f} and {1e3 * found[FLAT].at(t):.1f} ms' for t in common)
    shared = lambda name: Cost(found[name].lengths, found[name].seconds, _until(found[name], size.flat_longest))
    slopes = {name: shared(name).slope('bytes') for name in found}
    flat_longest = common[-1]
    ratio = found[FLAT].at(flat_longest, 'bytes') / found[FIT].at(flat_longest, 'bytes')
    note = ', '.join(f'{name}: T^{slope:.2f}' for name, slope in slopes.items())
    note += f'; at {flat_longest} the flat one in blocks, which is linear too, needs {ratio:.1f} times as much as FIT'
    return [
        Line.number(
            PAPER, 'operations, groups of T^(1/3): exponent', costs.attention_exponent(), near=(4 / 3, 0.02),
            note='exact, from T = 2^36 to 2^42, where projections no longer count',
        ),
        Line.number(
            PAPER, f'gradient, groups of T^(1/3), from T = {first} on: exponent of time', exponent(FIT, 'seconds'),
            below=4 / 3 + 0.1, note='4/3 and what groups of powers of two add; the flat one has '
            f'{exponent(FLAT, "seconds"):.2f} up to {flat_longest}',
        ),
        Line.count(
            PAPER, f'lengths at which a FIT step is faster than a flat one, {spans}', len(faster), len(common), times
        ),
        *(
            Line.number(
                PAPER, f'memory of a gradient up to T = {flat_longest}: exponent of FIT minus {name}',
                slopes[FIT] - slopes[name], below=-0.3, note=note,
            )
            for name in (costs.ALL_PAIRS, FLAT)
        ),
    ]  # fmt: skip


def _until(cost: Cost, longest: int) -> np.ndarray:
    """The bytes at lengths up to `longest`."""
    return np.where(np.array(cost.lengths) <= longest, cost.bytes, np.nan)


def name_lines(found: Found, size: Size) -> list[Line]:
    """Names and text of every decoder."""
    mean = lambda name, of: (
        float(np.mean([run[of] for run in found[name] if run])) if any(found[name]) else float('nan')
    )
    steps = ' + '.join(f'{steps} steps at T = {tokens}' for tokens, _, steps in size.stages)
    where = f'planted names of {size.letters} letters, {steps}'
    note = '; '.join(
        f'{name}: names {mean(name, "names"):.3f} ({mean(name, "last"):.3f} in the last half), '
        f'loss {mean(name, "loss"):.3f}, text {mean(name, "text"):.3f}'
        for name in found
    )
    return [
        Line.number(PAPER, f'{where}: accuracy of {FIT}', mean(FIT, 'names'), above=0.5, note=note),
        Line.number(
            PAPER, f'{where}: accuracy of {LOCAL}', mean(LOCAL, 'names'), below=3 * names.CHANCE,
            note=f'chance is {names.CHANCE:.3f}',
        ),
        Line.number(
            PAPER, f'{where}: loss of {FIT} minus {FLAT}, nats', mean(FIT, 'loss') - mean(FLAT, 'loss'), below=0.1
        ),
        Line.number(
            PAPER, f'{where}: loss of the text of {FIT} minus {FLAT}, nats', mean(FIT, 'text') - mean(FLAT, 'text'),
            below=0.1,
        ),
    ]  # fmt: skip


def draw(found: Found, context: ClaimContext) -> None:
    """Names and losses, a bar a decoder."""
    figure = Figure(figsize=(9, 3), layout='constrained')
    for axis, (of, label) in zip(
        figure.subplots(1, 2), (('names', 'letters of names right'), ('text', 'loss of the text, nats')), strict=True
    ):
        for place, runs in enumerate(found.values()):
            values = [run[of] for run in runs if run]
            axis.barh(place, np.mean(values) if values else 0, alpha=0.6)
            axis.plot(values, [place] * len(values), 'k|', markersize=12)
        axis.set_yticks(range(len(found)), list(found), fontsize=8)
        axis.set_xlabel(label)
        axis.invert_yaxis()
        if of == 'names':
            axis.axvline(names.CHANCE, color='0.5', linestyle=':')
            axis.set_xlim(0, 1)
    figure.savefig(context.out / 'fit.png', dpi=110)
