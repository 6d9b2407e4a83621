"""The sizes of paper 50's rerun, its images, and the probes that it compares."""

import dataclasses

import numpy as np

from jattn.data import MNISTConfig
from jattn.models.vision import patches
from jattn.poolers import (
    AdditiveConfig,
    AIMConfig,
    EfficientProbingConfig,
    FirstConfig,
    MeanConfig,
    PoolerConfig,
    SimPoolConfig,
)

PATCH = 4
MEAN, CLS, AIM = 'LP (mean)', 'LP (CLS)', 'AIM'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        width, layers, heads: of the encoders.
        decoder_width, decoder_layers: of the masked autoencoder's decoder.
        hidden: the share of patches that it does not see.
        images: that the encoders are trained on.
        masked_steps, supervised_steps, batch, peak_lr: of the encoders' training.
        labels, few: images that the probes are trained on, and in the low-shot lines.
        test: images of validation, and twice as many of the test.
        probe_steps, probe_batch, rates, seeds: of the probes; the rate is chosen by validation.
        queries: of efficient probing; the one that is compared is `main`.
        main: of them.
        rows, tokens, timed_width, timed_queries, timed_heads: at which the heads are timed.
    """

    width: int
    layers: int
    heads: int
    decoder_width: int
    decoder_layers: int
    hidden: float
    images: int
    masked_steps: int
    supervised_steps: int
    batch: int
    peak_lr: float
    labels: int
    few: int
    test: int
    probe_steps: int
    probe_batch: int
    rates: tuple[float, ...]
    seeds: int
    queries: tuple[int, ...]
    main: int
    rows: int
    tokens: int
    timed_width: int
    timed_queries: int
    timed_heads: int

    def probes(self) -> dict[str, PoolerConfig]:
        """Every head, by name; all but the first two see patches alone, or the class token too where it was trained."""
        heads = {
            MEAN: MeanConfig(),
            CLS: FirstConfig(),
            'ABMILP': AdditiveConfig(use_bias=True),
            AIM: AIMConfig(heads=8),
            'SimPool': SimPoolConfig(),
        }
        return heads | {name_of(n): EfficientProbingConfig(queries=n) for n in self.queries}


def name_of(queries: int) -> str:
    """Of efficient probing."""
    return f'EP, Q = {queries}'


@dataclasses.dataclass(frozen=True)
class Images:
    """Some images as patches, and their classes.

    Attributes:
        patches: [N, T, P], between 0 and 1.
        labels: [N].
    """

    patches: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, data: MNISTConfig, split: str, count: int) -> 'Images':
        """The first images of a split."""
        rows = data.rows(split)
        return cls(np.asarray(patches(rows.inputs[:count], PATCH)), rows.labels[:count])


_SMALL = Size(
    width=64,
    layers=4,
    heads=4,
    decoder_width=32,
    decoder_layers=2,
    hidden=0.75,
    images=10_000,
    masked_steps=800,
    supervised_steps=200,
    batch=128,
    peak_lr=4e-3,
    labels=3000,
    few=250,
    test=1000,
    probe_steps=300,
    probe_batch=128,
    rates=(1e-2, 3e-2, 1e-1),
    seeds=2,
    queries=(1, 2, 4, 8, 16),
    main=8,
    rows=16,
    tokens=196,
    timed_width=768,
    timed_queries=32,
    timed_heads=32,
)
_TINY = dataclasses.replace(
    _SMALL,
    width=16,
    layers=1,
    heads=2,
    decoder_width=16,
    decoder_layers=1,
    images=100,
    masked_steps=5,
    supervised_steps=5,
    batch=8,
    labels=60,
    few=20,
    test=20,
    probe_steps=5,
    probe_batch=8,
    rates=(3e-3,),
    seeds=1,
    queries=(1, 8, 16),
    rows=2,
    tokens=16,
    timed_width=32,
    timed_queries=8,
    timed_heads=8,
)
_PAPER = dataclasses.replace(
    _SMALL,
    width=192,
    layers=12,
    heads=12,
    decoder_width=96,
    images=25_000,
    masked_steps=50_000,
    supervised_steps=10_000,
    labels=25_000,
    probe_steps=5000,
    seeds=3,
    rows=256,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}
