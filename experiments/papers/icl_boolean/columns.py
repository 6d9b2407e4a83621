"""Equal models, one for each task, trained side by side in one compiled program.

    batch    rows of task 1, rows of task 2, ...        model n reads the rows of task n alone
    params   of every model on a leading axis, all drawn apart

The loss is the mean over all rows, so a model's gradient is its own times a constant, which Adam does not feel; with a
gradient that is not clipped (its norm would be that of all models) each is trained as if alone. Most of a small
training is compilation, which all tasks of a mixer share here.
"""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.models.decoder import DecoderConfig
from jattn.models.trunk import TrunkConfig
from jattn.nn.losses import Mean
from jattn.testbeds import Batch, Boolean, Task
from jattn.typing import Array, Float, Key, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns(Task):
    """Several Boolean tasks of equal sizes; `batch` rows of each.

    Attributes:
        tasks: the tasks.

    >>> Columns(tasks=(Boolean(points=3), Boolean(function='dnf', points=3))).sample(jax.random.key(0), 2).inputs.shape
    (4, 6, 10)
    """

    kind: ClassVar[str] = 'continuous'
    output_size: ClassVar[int] = 1

    tasks: tuple[Boolean, ...]

    def __post_init__(self) -> None:
        sizes = {(task.inputs, task.points) for task in self.tasks}
        if len(sizes) != 1:
            raise ValueError(f'Columns: tasks must have equal inputs and points, not {sorted(sizes)}')

    @property
    def input_size(self) -> int:
        return self.tasks[0].input_size

    def each(self, key: Key, batch: int) -> list[Batch]:
        """A batch of every task; that of task n depends on n and not on what other tasks there are."""
        return [task.sample(jax.random.fold_in(key, n), batch) for n, task in enumerate(self.tasks)]

    def sample(self, key: Key, batch: int) -> Batch:
        return joined(self.each(key, batch))

    def loss(self, outputs: Float[Array, 'B T 1'], batch: Batch) -> Mean:
        return self.tasks[0].loss(outputs, batch)

    def metrics(self, outputs: Float[Array, 'B T 1'], batch: Batch) -> dict[str, Mean]:
        """The loss of all; a task's own metrics are asked of it."""
        return {'loss': self.loss(outputs, batch)}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """None that all tasks share."""
        return {}

    def facts(self) -> dict[str, float]:
        """None that all tasks share."""
        return {}

    def tiny(self) -> 'Columns':
        return Columns(tasks=tuple(task.tiny() for task in self.tasks))


def joined(batches: list[Batch]) -> Batch:
    """One batch of the rows of all, without what belongs to one task."""
    plain = [Batch(batch.inputs, batch.targets, batch.mask) for batch in batches]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *plain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnsConfig(TrunkConfig):
    """A decoder for each of several tasks.

    Attributes:
        decoder: every one.
        columns: how many.
    """

    decoder: DecoderConfig
    columns: int

    @property
    def document_align(self) -> int:
        return self.decoder.document_align

    def for_data(self, read_in: str, input_size: int, output_size: int) -> Self:
        return dataclasses.replace(self, decoder=self.decoder.for_data(read_in, input_size, output_size))

    def make(self, **flax_kwargs: object) -> nn.Module:
        return SideBySide(self, **flax_kwargs)

    def init_state(self, batch: int, capacity: int) -> PyTree:
        raise NotImplementedError('ColumnsConfig: models side by side read whole rows only')

    def layer_sites(self) -> list[tuple[tuple[str, ...], int]]:
        raise NotImplementedError('ColumnsConfig: read one model of it, `decoder` with the parameters `column_of`')

    def flops(self, tokens: int) -> int:
        return self.decoder.flops(tokens)

    def describe(self) -> str:
        return f'{self.columns} times {self.decoder.describe()}'

    def tiny(self) -> Self:
        return dataclasses.replace(self, decoder=self.decoder.tiny())


class SideBySide(nn.Module):
    """The decoders; rows [columns * B, T, F] in, those of a column together."""

    cfg: ColumnsConfig

    @nn.compact
    def __call__(self, inputs: Float[Array, 'B T F'], context: Context) -> tuple[Float[Array, 'B T 1'], None]:
        each = nn.vmap(
            lambda module, rows: module(rows, context)[0],
            variable_axes={'params': 0},
            split_rngs={'params': True},
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        rows = inputs.reshape(self.cfg.columns, -1, *inputs.shape[1:])
        outputs = each(self.cfg.decoder.make(name='decoder'), rows)
        return outputs.reshape(len(inputs), *outputs.shape[2:]), None


def column_of(params: PyTree, column: int) -> PyTree:
    """The parameters of one of the decoders."""
    return jax.tree.map(lambda leaf: leaf[column], params['decoder'])
