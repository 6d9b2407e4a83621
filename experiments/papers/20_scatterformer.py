"""Paper 20, "ScatterFormer": linear attention inside windows of any size that share one flat row of voxels.

    python -m experiments.claims --only=20 --out=runs/claims                         a minute on two cores
    python -m experiments.claims --only=20 --size=tiny                               a minute: that everything runs

Claims: the flat form costs what its tokens cost, whatever the windows are, where rows padded to a largest window 20
times the mean are several times slower, in linear and in softmax attention, and says the same; on scenes of voxels
attention beats convolutions alone, windows that meet beat windows alone, most on objects that borders cut.

Choices: three layers of width 32, the first a convolution over 3 x 3 x 3 voxels, as the authors' stem; in the place of
attention, `no attention` has two more of these. LayerNorm, not BatchNorm: a step has few scenes.
"""

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.scatterformer import pictures, scenes, windows
from experiments.papers.scatterformer.settings import SIZES


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its pictures."""
    size = SIZES[context.size]
    context.say('windows')
    lines = windows.lines(windows.table(context, size), windows.difference(size), size)
    context.say('scenes')
    found = scenes.measure(context, size)
    models = {name: (setting, found[name][0]['variables']) for name, setting in scenes.settings(size).items()}
    pictures.draw(models, size.scenes, context.key(98), context.out / 'scatterformer.png')
    return lines + scenes.lines(found, size)
