"""An experiment: a model, where its data comes from, and how it is trained; one frozen tree, saved with its results."""

import dataclasses
from typing import Self

from flax import linen as nn

from jattn.data import Corpus, TextConfig
from jattn.models.decoder import DecoderConfig
from jattn.models.trunk import TrunkConfig
from jattn.testbeds.task import Task
from jattn.training.optimizer import MuonConfig, OptimizerConfig

PARTITIONS = ('jit', 'pmap')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The devices as a grid with named axes.

    Attributes:
        data: rows of the batch; None: all devices that the other axes leave.
        fsdp: rows of the batch too, and parameters and optimizer state are sharded over their 'embed' axis.
        tensor: heads, hidden units and vocabulary.
    """

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ('data', 'fsdp', 'tensor'):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f'{name}={size} must be at least 1')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What the auxiliary losses of mixers count beside the task's; each is the sum over the layers that have it.

    Attributes:
        load_balance: of routers over heads (MoH; the paper has 0.01 times the mean over layers).
        commitment: of tokens to their centroids (Routing Transformer).
        keep_ratio: of token selection, the squared distance to the share that is to be kept (selective S4).
    """

    load_balance: float = 0.01
    commitment: float = 1e-4
    keep_ratio: float = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        steps: optimizer steps.
        batch: rows of a step, over all devices and processes.
        accumulate: micro-batches of a step, one after another.
        seed: of parameters, data order and everything random.
        init_from: whose parameters this run starts from (`warm_start.py`), the workdir of a run or a published model;
            None: new ones.
        optimizer: adamw or muon, with its schedule.
        losses: weights of the mixers' auxiliary losses; no effect where a model has none.
        steps_per_call: steps of one compiled call; testbeds draw their batches inside it. No effect on the results.
        log_every_steps, eval_every_steps, checkpoint_every_steps: cadence; the last step does all three.
        eval_batches: batches of an evaluation, the same every time.
        keep: newest checkpoints kept, beside the best by eval/loss.
        partition: 'jit' over a mesh, or 'pmap' (data parallel, one process).
        mesh: the devices.
        deterministic: bit-identical results on GPU too, slower.
    """

    steps: int = 1000
    batch: int = 8
    accumulate: int = 1
    seed: int = 0
    init_from: str | None = None
    optimizer: OptimizerConfig = MuonConfig()
    losses: LossWeights = LossWeights()
    steps_per_call: int = 1
    log_every_steps: int = 10
    eval_every_steps: int = 200
    checkpoint_every_steps: int = 200
    eval_batches: int = 16
    keep: int = 2
    partition: str = 'jit'
    mesh: MeshConfig = MeshConfig()
    deterministic: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and field.name != 'seed' and value < 1:
                raise ValueError(f'{field.name}={value} must be at least 1')
        if self.batch % self.accumulate:
            raise ValueError(f'batch={self.batch} must be a multiple of accumulate={self.accumulate}')
        if self.partition not in PARTITIONS:
            raise ValueError(f'partition={self.partition!r} must be one of {", ".join(PARTITIONS)}')

    def next_stop(self, step: int) -> int:
        """The step at which the loop must look up again: the next multiple of a cadence, or the end."""
        every = (self.log_every_steps, self.eval_every_steps, self.checkpoint_every_steps, self.steps_per_call)
        return min(self.steps, *(step - step % n + n for n in every))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A model, its data and its training.

    Attributes:
        model: a trunk.
        data: a corpus on a disk, or a testbed that draws its batches on the device.
        training: how.
    """

    model: TrunkConfig = DecoderConfig()
    data: Corpus | Task = TextConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def trunk(self) -> TrunkConfig:
        """The model's config with the sizes that it leaves to the data."""
        read_in = 'tokens' if self.data.kind == 'discrete' else 'linear'
        return self.model.for_data(read_in, self.data.input_size, self.data.output_size)

    def make_model(self) -> nn.Module:
        """The linen module."""
        return self.trunk.make()

    def tiny(self) -> Self:
        """A copy shrunk to seconds that keeps the choices; for tests and first looks."""
        training = dataclasses.replace(
            self.training,
            steps=20,
            batch=4,
            log_every_steps=5,
            eval_every_steps=10,
            checkpoint_every_steps=10,
            eval_batches=2,
        )
        return dataclasses.replace(self, model=self.model.tiny(), data=self.data.tiny(), training=training)


# What may differ when a run resumes in its workdir: how long and how often, and on which devices.
MAY_CHANGE = (
    'training.steps',
    'training.log_every_steps',
    'training.eval_every_steps',
    'training.checkpoint_every_steps',
    'training.mesh',
    'training.partition',
)


def may_change(path: str) -> bool:
    """Whether a resumed run may differ in this field."""
    return any(path == free or path.startswith(free + '.') for free in MAY_CHANGE)
