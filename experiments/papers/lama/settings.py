"""The sizes of paper 51's rerun, and the poolers that it compares."""

import dataclasses

from experiments.papers.lama.cues import Cues
from experiments.papers.lama.encoder import SentenceConfig
from jattn.mixers import SoftmaxConfig
from jattn.poolers import AdditiveConfig, LAMAConfig, MaxConfig, MeanConfig

LAMA, ATTENTION = 'LAMA', 'Transformer layer, mean'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        seeds: of every training.
        width: D.
        heads: H, of LAMA.
        tokens, vocabulary: of a sentence.
        steps, batch: of a training on sentences.
        cues: the synthetic task.
        cue_steps: of a training on it.
        lengths: at which time and memory are measured.
        longest: of the Transformer layer.
        fits_from: the slopes are fitted from this length on.
        without: models that are left out.
    """

    seeds: int
    width: int
    heads: int
    tokens: int
    vocabulary: int
    steps: int
    batch: int
    cues: Cues
    cue_steps: int
    lengths: tuple[int, ...]
    longest: int
    fits_from: int
    without: tuple[str, ...] = ()

    def models(self) -> dict[str, SentenceConfig]:
        """Everything that is trained on sentences."""
        lama = LAMAConfig(heads=self.heads)
        poolers = {
            'mean': MeanConfig(),
            'max': MaxConfig(),
            'additive': AdditiveConfig(),
            LAMA: lama,
            'LAMA, learned context': dataclasses.replace(lama, query='learned'),
            'LAMA, learned temperature': dataclasses.replace(lama, learn_temperature=True),
            'structured': AdditiveConfig(heads=self.heads),
        }
        models = {name: SentenceConfig(width=self.width, pooler=pooler) for name, pooler in poolers.items()}
        models |= {ATTENTION: SentenceConfig(width=self.width, layer=self.attention)}
        return {name: model for name, model in models.items() if name not in self.without}

    @property
    def attention(self) -> SoftmaxConfig:
        """Of the Transformer layer."""
        return SoftmaxConfig(heads=4, causal=False)


_SMALL = Size(
    seeds=3,
    width=64,
    heads=8,
    tokens=40,
    vocabulary=8192,
    steps=300,
    batch=64,
    cues=Cues(),
    cue_steps=300,
    lengths=(512, 1024, 2048, 4096, 8192, 16384),
    longest=4096,
    fits_from=1024,
)
_TINY = dataclasses.replace(
    _SMALL,
    seeds=1,
    width=16,
    tokens=12,
    vocabulary=64,
    steps=10,
    batch=16,
    cues=Cues(tokens=12),
    cue_steps=20,
    lengths=(64, 128),
    longest=128,
    fits_from=64,
    without=('max', 'LAMA, learned context', 'LAMA, learned temperature', 'structured'),
)
_PAPER = dataclasses.replace(_SMALL, seeds=5, width=200, heads=20, tokens=64, vocabulary=20_000, steps=3000)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}
