"""The sizes of paper 20's rerun, and the models that it compares."""

import dataclasses

from experiments.papers.scatterformer.local import LocalConfig
from jattn.contract import MixerConfig
from jattn.mixers.scattered_linear import ScatteredLinearConfig
from jattn.testbeds.voxels import Voxels

PAPER = '20'
CROSS, ALONE, NONE = 'windows that meet', 'windows alone', 'no attention'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        cost_lengths: tokens of the cost table.
        channels, heads: of its attention.
        mean_window: tokens of a window, on average.
        sigma: of the logarithm of their number.
        repeats: of every timing.
        scenes: the testbed.
        width, model_heads: of the models, which have a layer of convolutions and two of what is compared.
        steps, batch, seeds: of their training.
        scored: batches of scenes that are scored.
    """

    cost_lengths: tuple[int, ...]
    channels: int
    heads: int
    mean_window: int
    sigma: float
    repeats: int
    scenes: Voxels
    width: int
    model_heads: int
    steps: int
    batch: int
    seeds: int
    scored: int


_SMALL = Size(
    cost_lengths=(512, 1024, 2048, 4096, 8192, 16384, 20000),
    channels=64,
    heads=4,
    mean_window=16,
    sigma=1.06,
    repeats=3,
    scenes=Voxels(grid=(4, 32, 32), window=8, tokens=512, boxes=3, cylinders=3, poles=4, reach=5.0),
    width=32,
    model_heads=2,
    steps=200,
    batch=4,
    seeds=1,
    scored=16,
)
_TINY = dataclasses.replace(
    _SMALL,
    cost_lengths=(64, 128),
    channels=8,
    heads=2,
    repeats=1,
    scenes=Voxels().tiny(),
    width=16,
    steps=10,
    scored=2,
)
_PAPER = dataclasses.replace(
    _SMALL,
    scenes=Voxels(grid=(32, 468, 468), window=12, tokens=2**16, boxes=60, cylinders=30, poles=60, reach=75.0),
    width=128,
    model_heads=4,
    steps=20_000,
    batch=8,
    seeds=3,
    scored=64,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def mixers(size: Size) -> dict[str, tuple[MixerConfig, ...]]:
    """The layers of what is compared, by name; the first encodes places by a convolution, as the authors' stem does."""
    scattered = ScatteredLinearConfig(heads=size.model_heads, use_bias=True)
    local = LocalConfig(grid=size.scenes.grid)
    meeting = dataclasses.replace(scattered, cross_window=True, window=size.scenes.window, grid=size.scenes.grid)
    return {CROSS: (local, meeting, meeting), ALONE: (local, scattered, scattered), NONE: (local, local, local)}
