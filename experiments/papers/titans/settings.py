"""The sizes of paper 33's rerun, and the mixers that it compares."""

import dataclasses

from jattn.memories import MEMORIES, MemoryConfig
from jattn.memories.learner import Learner
from jattn.memories.retention import Keep
from jattn.testbeds import AssociativeRecall, Passkey

HEADS = 2
WINDOW = 16  # shorter than the first rows: what attention alone sees must not solve them


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        draws: of the lines without training.
        seeds: of every trained comparison but passkey.
        width: D of the decoders on recall and passkey; they have two layers without feed-forward.
        recall: the recall task, and its training.
        recall_steps, recall_batch: of every mixer.
        passkey: the passkey task.
        passkey_steps, passkey_batch: of every mixer, after `lengths.FIRST` of short rows.
        passkey_seeds: of these.
        lengths: at which the passkey decoders are tried; none: passkey is left out.
        horizons: of the forecasts.
        series_steps, series_batch, series_width: of the forecasting decoders.
        others: what is trained beside Titans' memory.
        ablations: which parts of Titans are left out, by name.
    """

    draws: int
    seeds: int
    width: int
    recall: AssociativeRecall
    recall_steps: int
    recall_batch: int
    passkey: Passkey
    passkey_steps: int
    passkey_batch: int
    passkey_seeds: int
    lengths: tuple[int, ...]
    horizons: tuple[int, ...]
    series_steps: int
    series_batch: int
    series_width: int
    others: tuple[str, ...]
    ablations: tuple[str, ...]


ABLATIONS = ('decay', 'momentum', 'convolution', 'depth', 'persistent tokens')
_SMALL = Size(
    draws=64,
    seeds=2,
    width=64,
    recall=AssociativeRecall(vocabulary=16, tokens=24, pairs=3, overwrites=2),
    recall_steps=250,
    recall_batch=16,
    passkey=Passkey(tokens=256, digits=1, keys=4, noise=16),
    passkey_steps=100,
    passkey_batch=8,
    passkey_seeds=1,
    lengths=(256, 1024, 4096),
    horizons=(96, 192),
    series_steps=150,
    series_batch=64,
    series_width=32,
    others=('Gated DeltaNet', 'linear attention', 'softmax'),
    ablations=ABLATIONS,
)
_TINY = dataclasses.replace(
    _SMALL,
    draws=8,
    seeds=1,
    width=16,
    recall=AssociativeRecall(vocabulary=16, tokens=16, pairs=2, overwrites=1),
    recall_steps=20,
    recall_batch=8,
    lengths=(),
    horizons=(),
    others=('linear attention',),
    ablations=(),
)
_PAPER = dataclasses.replace(
    _SMALL,
    seeds=3,
    width=128,
    recall=AssociativeRecall(vocabulary=256, tokens=256, pairs=24, overwrites=12),
    recall_steps=10_000,
    recall_batch=128,
    passkey=Passkey(tokens=256, digits=4),
    passkey_steps=10_000,
    passkey_batch=64,
    passkey_seeds=3,
    lengths=(256, 1024, 2048, 4096),
    series_steps=5000,
    series_width=128,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def lmm(chunk: int) -> MemoryConfig:
    """Titans' deep memory at the size of the rerun: two heads, hidden layers twice as wide as the keys."""
    base = MEMORIES['titans_lmm']
    architecture = dataclasses.replace(base.architecture, expansion=2.0)
    return dataclasses.replace(base, heads=HEADS, chunk=chunk, architecture=architecture)


def without(part: str, memory: MemoryConfig) -> MemoryConfig:
    """The memory with one of Titans' parts left out.

    >>> without('persistent tokens', lmm(4)).persistent, without('depth', lmm(4)).architecture.depth
    (0, 1)
    """
    changes = {
        'decay': dict(retention=Keep(), gates=dataclasses.replace(memory.gates, decay=None)),
        'momentum': dict(learner=Learner(), gates=dataclasses.replace(memory.gates, momentum=None)),
        'convolution': dict(recipe=dataclasses.replace(memory.recipe, convolution=0)),
        'depth': dict(architecture=dataclasses.replace(memory.architecture, depth=1)),
        'persistent tokens': dict(persistent=0),
    }
    if part not in changes:
        raise ValueError(f'without: part={part!r} must be one of {", ".join(changes)}')
    return dataclasses.replace(memory, **changes[part])
