"""The sizes of paper 52's rerun, and the mixers that it compares."""

import dataclasses

from jattn.contract import MixerConfig
from jattn.memories import MEMORIES, MemoryConfig
from jattn.memories.bias import L2
from jattn.testbeds import AssociativeRecall, Passkey

HEADS = 2


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        draws: of the lines without training.
        rows: which rows of Table 1 are compared with their own recurrences; None: all.
        seeds: of every trained comparison but passkey and the sweep, which has one.
        width: D of the decoders, which have two layers without feed-forward.
        recall: the recall task with clean values.
        corrupted: the share of them that is replaced.
        networks: what is trained on it, by name.
        recall_steps, recall_batch: of every mixer.
        passkey: the passkey task.
        passkey_mixers: what is trained on it, by name.
        passkey_steps, passkey_batch: of every mixer, after `lengths.FIRST` of short rows.
        passkey_seeds: of these.
        lengths: at which the passkey decoders are tried.
        sweep: (p, q) of Moneta; none: no sweep.
        books: whether the table of language models is made.
        book_steps, book_batch, book_width, book_layers: of every language model.
    """

    draws: int
    rows: tuple[str, ...] | None
    seeds: int
    width: int
    recall: AssociativeRecall
    corrupted: float
    networks: tuple[str, ...]
    recall_steps: int
    recall_batch: int
    passkey: Passkey
    passkey_mixers: tuple[str, ...]
    passkey_steps: int
    passkey_batch: int
    passkey_seeds: int
    lengths: tuple[int, ...]
    sweep: tuple[tuple[float, float], ...]
    books: bool = False
    book_steps: int = 0
    book_batch: int = 0
    book_width: int = 0
    book_layers: int = 0


NETWORKS = ('yaad', 'moneta', 'l2')
SWEEP = ((1.5, 4.0), (2.0, 4.0), (3.0, 4.0), (4.0, 4.0), (3.0, 2.0))
_SMALL = Size(
    draws=256,
    rows=None,
    seeds=2,
    width=64,
    recall=AssociativeRecall(vocabulary=16, tokens=32, pairs=2, repeats=3),
    corrupted=0.25,
    networks=NETWORKS,
    recall_steps=300,
    recall_batch=16,
    passkey=Passkey(tokens=256, digits=1, keys=4, noise=16),
    passkey_mixers=('moneta', 'yaad', 'memora', 'deltanet', 'linear_attention'),
    passkey_steps=100,
    passkey_batch=8,
    passkey_seeds=1,
    lengths=(256, 1024, 4096),
    sweep=SWEEP,
)
_TINY = dataclasses.replace(
    _SMALL,
    draws=16,
    rows=('linear attention', 'RetNet', 'GLA', 'TTT-Linear'),
    seeds=1,
    width=16,
    recall=AssociativeRecall(vocabulary=16, tokens=20, pairs=2, repeats=3),
    networks=('yaad',),
    recall_steps=20,
    recall_batch=8,
    lengths=(),
    sweep=(),
)
_PAPER = dataclasses.replace(
    _SMALL,
    seeds=3,
    width=128,
    recall=AssociativeRecall(vocabulary=128, tokens=256, pairs=16, repeats=3),
    recall_steps=10_000,
    recall_batch=128,
    passkey=Passkey(tokens=256, digits=4),
    passkey_steps=10_000,
    passkey_batch=64,
    passkey_seeds=3,
    lengths=(256, 1024, 2048, 4096),
    books=True,
    book_steps=20_000,
    book_batch=64,
    book_width=512,
    book_layers=8,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def memory(name: str, chunk: int) -> MemoryConfig:
    """A member at the size of the rerun: two heads; networks with hidden layers twice as wide as the keys.

    Steps keep the bound of the members' own chunk of 16, mostly 0.25: with steps to 1, the bound at chunks of 4, one of
    two runs with l2 ended in NaN.
    """
    if name == 'l2':
        yaad = memory('yaad', chunk)
        return dataclasses.replace(yaad, bias=L2(), gates=dataclasses.replace(yaad.gates, threshold=None))
    base = dataclasses.replace(MEMORIES[name], heads=HEADS)
    step = base.gates.step
    if base.architecture.is_linear:
        return dataclasses.replace(base, tile=16)
    return dataclasses.replace(
        base,
        chunk=chunk,
        architecture=dataclasses.replace(base.architecture, expansion=2.0),
        gates=dataclasses.replace(base.gates, step=dataclasses.replace(step, bound=step.bound or base.step_bound)),
    )


def moneta(p: float, q: float, chunk: int) -> MixerConfig:
    """Moneta with other norms, its step bounded as its own is, by the steepest slope p (p-1) clip^(p-2) of its loss.

    >>> moneta(2.0, 4.0, 4).bias.p, moneta(2.0, 4.0, 4).retention.q
    (2.0, 4.0)
    """
    base = memory('moneta', chunk)
    slope = lambda power: power * max(power - 1, 1) * base.bias.clip ** max(power - 2, 0)
    step = dataclasses.replace(base.gates.step, bound=base.gates.step.bound * slope(base.bias.p) / slope(p))
    return dataclasses.replace(
        base,
        bias=dataclasses.replace(base.bias, p=p),
        retention=dataclasses.replace(base.retention, q=q),
        gates=dataclasses.replace(base.gates, step=step),
    )
