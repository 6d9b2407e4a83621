"""A class of Boolean functions on {-1, +1}^F as the testbed `boolean` needs it, and how finite classes are listed."""

import abc
import dataclasses
import itertools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.testbeds.discrete import choose
from jattn.typing import Array, Float, Int32, Key

Params = dict[str, Array]  # what tells the functions of a batch apart, each with a leading axis of rows
ENUMERABLE = 1024  # classes of up to so many functions are written out: all ANDs of some of 10 coordinates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(abc.ABC):
    """A class of functions; pure functions of a key and of whole batches. S points a row, F inputs a point.

    Attributes:
        forced: probability that a point is moved to where the function is true (of a dual one: false).
        forced_if_taught: the same of a task with teaching sequences.
    """

    fewest_inputs: ClassVar[int] = 1
    unscored: ClassVar[int] = 0  # points at the start whose labels say nothing

    forced: float = 0.0
    forced_if_taught: float = 0.0

    @abc.abstractmethod
    def draw(self, key: Key, batch: int, inputs: int) -> Params:
        """A function for each row."""

    @abc.abstractmethod
    def label(self, params: Params, x: Float[Array, 'B S F']) -> Float[Array, 'B S']:
        """y, -1 or +1."""

    @abc.abstractmethod
    def balance(self, inputs: int, forced: float) -> float:
        """P(y = +1) of a point that is not of a teaching sequence, exactly."""

    def shape_inputs(self, key: Key, params: Params, x: Float[Array, 'B S F'], forced: float) -> Float[Array, 'B S F']:
        """Uniform points, some of them moved."""
        return x

    def longest_block(self, inputs: int) -> int | None:
        """Points of the longest teaching sequence; None: the class has none."""
        return None

    def teach(self, params: Params, points: int) -> tuple[Float[Array, 'B S F'], Int32[Array, 'B']]:
        """Each row's teaching sequence, and how many points it has; those behind them mean nothing."""
        raise NotImplementedError(f'{type(self).__name__}: no teaching sequence is known')

    def all_functions(self, inputs: int) -> tuple[Params, np.ndarray] | None:
        """Every function of the class, N in place of B, and the logs of their probabilities; None: too many."""
        return None

    def log_density(self, params: Params, y: Float[Array, 'B S'], forced: float) -> Float[Array, 'B S']:
        """How much likelier than at uniform inputs a point of label y is, in logs, in an enumerable class."""
        return jnp.zeros_like(y)


def random_subsets(key: Key, batch: int, size: int, inputs: int) -> Int32[Array, 'B F']:
    """Random subsets of a size, as 0 and 1."""
    return jnp.sum(jax.nn.one_hot(choose(key, batch, size, inputs), inputs, dtype=jnp.int32), axis=1)


def all_subsets(size: int, inputs: int) -> np.ndarray | None:
    """All subsets of a size, [N, F]; None: too many."""
    if math.comb(inputs, size) > ENUMERABLE:
        return None
    chosen = np.array(list(itertools.combinations(range(inputs), size)))
    return np.any(chosen[:, :, None] == np.arange(inputs)[None, None, :], axis=1).astype(np.int32)


def products(chances: dict[int, float], inputs: int, times: int = 1) -> tuple[np.ndarray, np.ndarray] | None:
    """All vectors [N, F] of these values and the logs of their probabilities; None: more than ENUMERABLE / times."""
    chances = {value: chance for value, chance in chances.items() if chance > 0}
    if times * len(chances) ** inputs > ENUMERABLE:
        return None
    vectors = np.array(list(itertools.product(chances, repeat=inputs)), np.int32)
    logs = sum(np.where(vectors == value, math.log(chance), 0.0) for value, chance in chances.items())
    return vectors, np.sum(logs, axis=1)
