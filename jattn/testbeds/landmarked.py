"""Another task's rows with landmarks: a token of their own after every `block` - 1 others, where more follow.

    x_1 .. x_l  LANDMARK  x_l+1 .. x_2l  LANDMARK ...       l = block - 1; targets move along with the tokens

So every `block`-th token is a landmark, as the mixer `landmark` and its cache count them. What the model says at a
landmark is not scored; where one follows, the target is that of the row without it (Mohtashami & Jaggi 2023).
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean
from jattn.testbeds.passkey import Passkey
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Landmarked(Task):
    """A discrete task with landmarks; their token is the last of the vocabulary and is never a target.

    Attributes:
        task: whose rows they are; each is one document.
        block: tokens of a block, the landmark that ends it included.

    >>> import jax
    >>> row = Landmarked(task=Passkey(tokens=12, digits=2, keys=3, noise=5), block=4).sample(jax.random.key(0), 1)
    >>> (row.inputs[0] == 19).tolist().index(True), row.inputs.shape, row.mask[0, -4:].tolist()
    (3, (1, 15), [0.0, 0.0, 1.0, 1.0])
    """

    kind: ClassVar[str] = 'discrete'

    task: Task = Passkey()
    block: int = 16

    def __post_init__(self) -> None:
        if self.task.kind != 'discrete':
            raise ValueError(
                f'Landmarked: task={type(self.task).__name__} is {self.task.kind}, but a landmark is a token'
            )
        if self.block < 2:
            raise ValueError(f'Landmarked: block={self.block} must be at least 2: a landmark and a token before it')

    @property
    def input_size(self) -> int:
        return self.task.input_size + 1

    @property
    def output_size(self) -> int:
        return self.task.output_size

    def sample(self, key: Key, batch: int) -> Batch:
        return with_landmarks(self.task.sample(key, batch), self.block, self.task.input_size)

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """The task's, without the outputs at landmarks."""
        return self.task.loss(remove(outputs, self.block), without_landmarks(batch, self.block))

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """The task's, without the outputs at landmarks."""
        return self.task.metrics(remove(outputs, self.block), without_landmarks(batch, self.block))

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """The task's; 0 at landmarks."""
        answers = self.task.baselines(without_landmarks(batch, self.block))
        return {name: insert(outputs, self.block, 0) for name, outputs in answers.items()}

    def facts(self) -> dict[str, float]:
        """The task's."""
        return self.task.facts()

    def tiny(self) -> 'Landmarked':
        return dataclasses.replace(self, task=self.task.tiny(), block=4)


def with_landmarks(batch: Batch, block: int, token: int) -> Batch:
    """The rows with `token` as the last of every block; `context` and `meta` stay as they are.

    Raises:
        ValueError: rows of several documents: blocks are counted within one.
    """
    if batch.segments is not None or batch.positions is not None:
        raise ValueError('with_landmarks: rows with segments or positions: blocks are counted in rows of one document')
    return batch.replace(
        inputs=insert(batch.inputs, block, token),
        targets=insert(batch.targets, block, 0),
        mask=insert(batch.mask, block, 0),
    )


def without_landmarks(batch: Batch, block: int) -> Batch:
    """The rows that `with_landmarks` was given."""
    return batch.replace(**{name: remove(getattr(batch, name), block) for name in ('inputs', 'targets', 'mask')})


def insert(x: Array, block: int, filler: float) -> Array:
    """[B, T, ...] with a filler as every `block`-th entry of T, where entries follow.

    >>> insert(jnp.array([[1, 2, 3, 4]]), 3, 0).tolist()
    [[1, 2, 0, 3, 4]]
    """
    tokens = x.shape[1]
    place = np.arange(tokens + (tokens - 1) // (block - 1))
    is_landmark = ((place + 1) % block == 0).reshape(1, -1, *(1,) * (x.ndim - 2))
    return jnp.where(is_landmark, jnp.asarray(filler, x.dtype), x[:, place - place // block])


def remove(x: Array, block: int) -> Array:
    """[B, T, ...] without every `block`-th entry of T.

    >>> remove(jnp.array([[1, 2, 0, 3, 4]]), 3).tolist()
    [[1, 2, 3, 4]]
    """
    return x[:, (np.arange(x.shape[1]) + 1) % block != 0]
