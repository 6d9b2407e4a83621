"""What a testbed is: a frozen dataclass that draws batches from a key, scores outputs, and knows the exact answers.

A task never sees a model, and a model never sees a task: they meet in `Batch.inputs` and in the outputs. Everything is
a pure function at fixed shapes, so that sampling runs on the device, inside the compiled training step. Training and
evaluation draw from different roots of the seed, and every model is evaluated on the same prompts.
"""

import abc
import dataclasses
from typing import Any, ClassVar

from flax import struct

from jattn.nn.losses import Mean
from jattn.typing import Array, Float, Int32, Key


@struct.dataclass
class Batch:
    """One batch, of a testbed or of a corpus.

    Attributes:
        inputs: tokens [B, T] int32 (a discrete task), vectors [B, T, F] (a continuous one) or images [B, Y, X, F].
        targets: what the outputs are compared with: [B, T] int32 or [B, T, F']; [B] int32 where a row has one class.
        mask: [B, T], or [B]; which outputs count.
        segments: [B, T] int32 document ids, 0 = padding; None = each row is one document.
        positions: [B, T] int32; None = counted within each document.
        context: further fields of the model's `Context` by name (source, landmarks, coordinates).
        meta: what else the task's own baselines and metrics need, by name.
    """

    inputs: Array
    targets: Array
    mask: Float[Array, 'B *T']
    segments: Int32[Array, 'B T'] | None = None
    positions: Int32[Array, 'B T'] | None = None
    context: dict[str, Array] = struct.field(default_factory=dict)
    meta: dict[str, Any] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A synthetic task; a subclass is frozen and hashable, its fields are the task's sizes.

    `kind` says what the model reads and writes: 'discrete' (tokens in, logits out) or 'continuous' (vectors both ways).
    """

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def input_size(self) -> int:
        """Vocabulary (discrete) or features of an input (continuous)."""

    @property
    @abc.abstractmethod
    def output_size(self) -> int:
        """Vocabulary (discrete) or features of a target (continuous)."""

    @abc.abstractmethod
    def sample(self, key: Key, batch: int) -> Batch:
        """Draws `batch` rows; jit-able, the same key gives the same batch under jit, vmap and any sharding."""

    def sample_at(self, key: Key, batch: int, step: Int32[Array, '']) -> Batch:
        """Draws the rows of a step of training, which may be traced: a curriculum depends on it, most tasks do not."""
        del step
        return self.sample(key, batch)

    @abc.abstractmethod
    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """The training loss of outputs [B, T, output_size]."""

    @abc.abstractmethod
    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """What evaluation reports, scalars and curves by position, each as sums and counts; `loss` among them."""

    @abc.abstractmethod
    def baselines(self, batch: Batch) -> dict[str, Array]:
        """What the exact solvers say, name -> array [B, T, output_size], as a model's outputs: values, or logits."""

    @abc.abstractmethod
    def facts(self) -> dict[str, float]:
        """Exact numbers a reader needs beside a score: floors, chance, class balance. Tests assert them."""

    @abc.abstractmethod
    def tiny(self) -> 'Task':
        """A copy shrunk to seconds that keeps the task's choices."""
