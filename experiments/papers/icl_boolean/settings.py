"""The sizes of paper 06's rerun, the tasks, and the mixers that it compares."""

import dataclasses

from experiments.papers.icl_boolean.columns import Columns, ColumnsConfig
from experiments.papers.small_models import Setting
from jattn.contract import MixerConfig
from jattn.memories import MEMORIES
from jattn.mixers import QLSTMConfig, RGLRUConfig, SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Boolean
from jattn.training.optimizer import AdamWConfig

SOFTMAX, LMM = 'softmax', 'titans_lmm'
BEST = 'deltanet'  # at conjunctions, of the small table
SIMPLE = ('conjunction', 'sparse_disjunction', 'dnf')
FUNCTIONS = (*SIMPLE, 'sparse_parity', 'majority')  # a mixer with fewer of them has the first ones
TAUGHT, NEIGHBOURS = 'taught conjunction', 'nearest_neighbours'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        inputs, points: n and m of every trained task.
        width, layers, heads: of the decoders.
        batch: rows of a step, of each task.
        rate: peak learning rate.
        steps: of the table.
        mixers: of the table.
        columns: how many of `FUNCTIONS` a mixer of the table is trained on.
        lmm_columns: of the neural memory, which takes several times as long.
        long_steps: of what is trained on the mixture with teaching sequences and on nearest neighbours.
        rows: of an evaluation.
        exact_inputs, exact_points, exact_rows: n, m and draws of the learners that are not trained.
        solved: whether the models are large enough for the authors' .99 at the last point.
    """

    inputs: int
    points: int
    width: int
    layers: int
    heads: int
    batch: int
    rate: float
    steps: int
    mixers: tuple[str, ...]
    columns: int
    lmm_columns: int
    long_steps: int
    rows: int
    exact_inputs: int = 28
    exact_points: int = 70
    exact_rows: int = 8000
    solved: bool = False

    def functions(self, mixer: str) -> tuple[str, ...]:
        """What a mixer of the table is trained on."""
        return FUNCTIONS[: self.lmm_columns if mixer == LMM else self.columns]

    def task(self, name: str) -> Boolean:
        """A function, the mixture of conjunctions with and without teaching sequences, or nearest neighbours."""
        function, teaching = ('conjunction', 0.5) if name == TAUGHT else (name, 0.0)
        sizes = dict(inputs=self.inputs, points=self.points, seed_points=self.points // 2)
        return Boolean(function=function, teaching=teaching, **sizes)


ALL = ('softmax', 'linear_attention', 'retnet', 'deltanet', LMM, 'rg_lru', 'qlstm')
_SMALL = Size(
    inputs=10,
    points=16,
    width=32,
    layers=2,
    heads=2,
    batch=32,
    rate=5e-3,
    steps=500,
    mixers=tuple(name for name in ALL if name != 'retnet'),
    columns=5,
    lmm_columns=4,
    long_steps=2000,
    rows=1024,
)
_TINY = dataclasses.replace(
    _SMALL,
    inputs=5,
    points=8,
    width=16,
    batch=8,
    steps=10,
    mixers=('softmax', 'linear_attention'),
    columns=4,
    long_steps=10,
    rows=64,
    exact_rows=100,
)
_PAPER = dataclasses.replace(
    _SMALL,
    inputs=28,
    points=70,
    width=256,
    layers=12,
    heads=8,
    batch=64,
    rate=1e-4,
    steps=15_000,
    mixers=ALL,
    lmm_columns=5,
    long_steps=15_000,
    exact_rows=16_000,
    solved=True,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def mixer(name: str, size: Size) -> MixerConfig:
    """A mixer by name; the neural memory's network is as wide as its keys, its chunks are of 8 tokens."""
    if name == SOFTMAX:
        return SoftmaxConfig(heads=size.heads)
    if name == 'rg_lru':
        return RGLRUConfig()
    if name == 'qlstm':
        return QLSTMConfig()
    memory = dataclasses.replace(MEMORIES[name], heads=size.heads)
    if memory.architecture.is_linear:
        return dataclasses.replace(memory, tile=16)
    return dataclasses.replace(memory, chunk=8, architecture=dataclasses.replace(memory.architecture, expansion=1.0))


def table(size: Size) -> dict[str, Setting]:
    """mixer -> the training of its columns."""
    return {name: setting(size, name, size.functions(name), size.steps) for name in size.mixers}


def long(size: Size) -> dict[str, Setting]:
    """What needs more steps: of softmax attention, and teaching of the mixer that learns conjunctions best."""
    tasks = {SOFTMAX: (TAUGHT, NEIGHBOURS), BEST: (TAUGHT,)}
    return {name: setting(size, name, tasks[name], size.long_steps) for name in tasks}


def setting(size: Size, name: str, tasks: tuple[str, ...], steps: int) -> Setting:
    """A mixer, a model for each of the tasks, side by side."""
    decoder = DecoderConfig(width=size.width, layers=size.layers, mixer=(mixer(name, size),), remat='none')
    return Setting(
        model=ColumnsConfig(width=size.width, decoder=decoder, columns=len(tasks)),
        data=Columns(tasks=tuple(size.task(task) for task in tasks)),
        steps=steps,
        batch=size.batch,
        optimizer=AdamWConfig(peak_lr=size.rate, warmup_steps=min(steps // 10, 500), weight_decay=0.0, clip_norm=None),
        steps_per_call=100,
    )
