"""The sizes of paper 44's rerun, the rows that are read once or several times, and the decoders that read them."""

import dataclasses

from experiments.papers.small_models import Setting
from jattn.contract import MixerConfig
from jattn.memories import MEMORIES
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import AssociativeRecall, ReReading
from jattn.training.optimizer import AdamWConfig

PAPER = '44'
SOFTMAX = 'softmax'
FILLER = 'filler'
Reads = int | str  # how often the context stands in a row, or FILLER: once, and separators as long as a second copy


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        task: recall where one key is asked.
        first: pairs of the rows that every training starts with.
        first_steps, steps, batch, lr: of the two stages.
        width, layers: of the decoders, which have no feed-forward.
        states: K = V of the DeltaNet's one head, the smallest first.
        softmax_heads: of the decoders with attention.
        sweep: numbers of reads of the smallest state; the others are read once and twice.
        seeds: of every training.
        rows, batches: that are scored.
        shown: rows whose attention is read.
    """

    task: AssociativeRecall
    first: int
    first_steps: int
    steps: int
    batch: int
    lr: float
    width: int
    layers: int
    states: tuple[int, ...]
    softmax_heads: int
    sweep: tuple[int, ...]
    seeds: int
    rows: int
    batches: int
    shown: int

    @property
    def mixers(self) -> dict[str, MixerConfig]:
        """What is compared, by name: memories by the size of their state, the smallest first, and attention."""
        memories = {memory_of(state): _deltanet(state) for state in self.states}
        return memories | {SOFTMAX: SoftmaxConfig(heads=self.softmax_heads)}

    def reads(self, name: str) -> tuple[Reads, ...]:
        """How a mixer's rows are read: the smallest state sweeps, and reads the filler."""
        return (*self.sweep, FILLER) if name == memory_of(self.states[0]) else (1, 2)

    def setting(self, name: str, reads: Reads) -> Setting:
        """A training: few pairs first, which every state has room for, then all."""
        model = DecoderConfig(
            width=self.width, layers=self.layers, mixer=(self.mixers[name],), feed_forward=None, remat='none'
        )
        few = dataclasses.replace(
            self.task, pairs=self.first, tokens=2 * (self.first + self.task.asked), questions=self.task.asked
        )
        setting = None
        for task, steps in ((few, self.first_steps), (self.task, self.steps)):
            setting = Setting(
                model=model,
                data=rows_of(task, reads),
                steps=steps,
                batch=self.batch,
                optimizer=AdamWConfig(peak_lr=self.lr, warmup_steps=min(50, steps // 2)),
                after=setting,
            )
        return setting


def memory_of(state: int) -> str:
    """The name of a memory with so many keys and values.

    >>> memory_of(4)
    'a state of 4 x 4'
    """
    return f'a state of {state} x {state}'


def rows_of(task: AssociativeRecall, reads: Reads) -> ReReading:
    """The task with its context read so often, the questions behind every copy."""
    filled = reads == FILLER
    return ReReading(task=task, reads=2 if filled else reads, filler=filled, read_questions=True)


def _deltanet(state: int) -> MixerConfig:
    """One head of K = V = state, with the short convolutions that DeltaNet has."""
    return dataclasses.replace(MEMORIES['deltanet'], heads=1, key_dim=state, value_dim=state, tile=16)


_SMALL = Size(
    task=AssociativeRecall(vocabulary=32, tokens=18, pairs=8, power=1.0, questions=1),
    first=2,
    first_steps=300,
    steps=1200,
    batch=64,
    lr=1e-2,
    width=32,
    layers=2,
    states=(4, 8),
    softmax_heads=2,
    sweep=(1, 2, 3),
    seeds=2,
    rows=256,
    batches=4,
    shown=64,
)
_TINY = dataclasses.replace(
    _SMALL,
    task=AssociativeRecall(vocabulary=16, tokens=8, pairs=3, power=1.0, questions=1),
    first_steps=2,
    steps=4,
    batch=4,
    width=16,
    seeds=1,
    rows=16,
    batches=1,
    shown=4,
)
_PAPER = dataclasses.replace(
    _SMALL,
    task=AssociativeRecall(vocabulary=256, tokens=66, pairs=32, power=1.0, questions=1),
    first=4,
    first_steps=4000,
    steps=20_000,
    lr=3e-3,
    width=128,
    states=(8, 16, 32),
    softmax_heads=4,
    sweep=(1, 2, 3, 4),
    seeds=3,
    batches=16,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}
