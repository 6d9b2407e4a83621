"""The sizes of paper 57's rerun, and the decoders that it compares."""

import dataclasses

from experiments.papers.small_models import Setting
from jattn.contract import MixerConfig
from jattn.memories import MEMORIES
from jattn.mixers import ExtractorConfig, SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import FactsAndFibs
from jattn.training.optimizer import AdamWConfig

PAPER = '57'
ATTENTION, CONVOLVED = 'softmax', 'convolved_softmax'
MEMORY_MODELS = ('linear_attention', 'gated_deltanet', 'titans_lmm')
HEADS = 4


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        task: what its rows are drawn from.
        steps: optimizer steps; of quick mixers some times as many.
        batch: rows of a step.
    """

    task: FactsAndFibs
    steps: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        pairs_known: of the scorers that are known without training.
        mixers: of the decoders, by name.
        seeds: trainings of each.
        width: D of the decoders, which have two layers.
        stages: of the training, from short logs to the last stage's, of T events.
        quick: mixers that take so many times the steps, for a comparable time of training.
        peak_lr: of AdamW in the first stage; half of it in the later ones.
        contexts: logs of each length that a decoder is judged on.
        pairs_of_a_log: the pairs of claims about each.
        at_once: logs that are read side by side; divides `contexts`.
        batches_alone: so many times `contexts` logs whose claims are judged without them.
        contexts_twice: logs whose claims are scored from scratch as well.
    """

    pairs_known: int
    mixers: tuple[str, ...]
    seeds: int
    width: int
    stages: tuple[Stage, ...]
    quick: tuple[tuple[str, int], ...]
    peak_lr: float
    contexts: int
    pairs_of_a_log: int
    at_once: int
    batches_alone: int
    contexts_twice: int

    @property
    def task(self) -> FactsAndFibs:
        """The last stage's."""
        return self.stages[-1].task

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the claims, in the order of the tables."""
        first = ('detail', 'last_state', 'order', 'cause', 'count', 'quantifier')
        return tuple(kind for kind in first if kind in self.task.claims)

    @property
    def lengths(self) -> tuple[int, ...]:
        """T, 2 T, 4 T events."""
        return tuple(times * self.task.events for times in (1, 2, 4))

    def judged(self, events: int) -> FactsAndFibs:
        """The task at a length of log."""
        return dataclasses.replace(self.task, events=events, claims_per_row=1)

    def setting(self, name: str) -> Setting:
        """The training of a decoder, with its earlier stages."""
        model = DecoderConfig(width=self.width, layers=2, mixer=mixers(name), remat='none')
        setting = None
        for number, stage in enumerate(self.stages):
            rate, steps = self.peak_lr / (2 if number else 1), stage.steps * dict(self.quick).get(name, 1)
            setting = Setting(
                model=model,
                data=stage.task,
                steps=steps,
                batch=stage.batch,
                optimizer=AdamWConfig(peak_lr=rate, warmup_steps=min(50, steps // 2)),
                after=setting,
            )
        return setting


def mixers(name: str) -> tuple[MixerConfig, ...]:
    """The mixers of a decoder's two layers, with four heads.

    Gated DeltaNet and Titans have short convolutions. Linear attention has none of its own: one layer is gated
    convolutions of four tokens, the other linear attention; `convolved_softmax` is the same with softmax.
    """
    convolution = ExtractorConfig(kind='he', window=4, use_bias=True)
    if name in (ATTENTION, CONVOLVED):
        attention = SoftmaxConfig(heads=HEADS)
        return (attention,) if name == ATTENTION else (convolution, attention)
    base = dataclasses.replace(MEMORIES[name], heads=HEADS)
    if name == 'titans_lmm':
        return (dataclasses.replace(base, architecture=dataclasses.replace(base.architecture, expansion=1.0)),)
    base = dataclasses.replace(base, tile=16)
    return (convolution, base) if name == 'linear_attention' else (base,)


def _world(events: int, claims_per_row: int, noise: float) -> FactsAndFibs:
    """The smallest world of all six kinds of claims: three persons, two places, two objects, one take or two."""
    return FactsAndFibs(
        events=events, claims_per_row=claims_per_row, entities=3, places=2, objects=2, most=2, noise=noise
    )


_SMALL = Size(
    pairs_known=20_000,
    mixers=(CONVOLVED, *MEMORY_MODELS),
    seeds=1,
    width=64,
    stages=(
        Stage(_world(3, 1, 1.0), steps=150, batch=128),
        Stage(_world(8, 2, 0.25), steps=250, batch=64),
    ),
    quick=((CONVOLVED, 3),),
    peak_lr=3e-3,
    contexts=256,
    pairs_of_a_log=2,
    at_once=32,
    batches_alone=4,
    contexts_twice=16,
)
_TINY = dataclasses.replace(
    _SMALL,
    pairs_known=2000,
    mixers=(ATTENTION, 'linear_attention'),
    width=16,
    stages=(Stage(_world(6, 2, 0.25), steps=4, batch=4),),
    contexts=8,
    pairs_of_a_log=2,
    at_once=8,
    contexts_twice=2,
)
_PAPER = dataclasses.replace(
    _SMALL,
    mixers=(ATTENTION, CONVOLVED, *MEMORY_MODELS),
    seeds=3,
    width=512,
    stages=(
        Stage(FactsAndFibs(events=4, noise=1.0), steps=2000, batch=512),
        Stage(FactsAndFibs(events=64, claims_per_row=16), steps=10_000, batch=128),
        Stage(FactsAndFibs(events=4096, claims_per_row=16), steps=20_000, batch=16),
    ),
    quick=(),
    peak_lr=1e-3,
    contexts=54,
    pairs_of_a_log=16,
    at_once=1,
    contexts_twice=2,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}
