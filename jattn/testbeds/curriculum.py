"""A curriculum: sizes of a task that grow with the step, as a pure function of it.

    k(t) = min(start + increment * floor(t / interval), end)

Garg et al. (2022) train on prompts that grow in two sizes at once: the coordinates of x that are not 0, and the points
of a prompt. They report that training without it stands on a plateau for long and then drops. Their code keeps two
counters and moves them after a step; these are the same numbers with no state, so that a resumed run continues where it
was, and the sizes may be read inside a compiled step. Shapes stay those of the full task, which masks what lies beyond.
"""

import dataclasses
import math

import jax.numpy as jnp

from jattn.typing import Array, Int32

Step = int | Int32[Array, '']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
    """One size against the step.

    Attributes:
        start: its value at step 0.
        increment: what is added every `interval` steps.
        interval: steps between two increments.
        end: its last value, which it does not pass.

    >>> ramp = Ramp(start=11, increment=2, interval=2000, end=41)
    >>> [int(ramp(step)) for step in (0, 1999, 2000, 29_999, 30_000, 10**9)]
    [11, 11, 13, 39, 41, 41]
    """

    start: int
    increment: int
    interval: int
    end: int

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.end:
            raise ValueError(f'Ramp: start is {self.start}, but it must lie in 1..end = {self.end}')
        if self.interval < 1:
            raise ValueError(f'Ramp: interval is {self.interval}, but it must be at least 1')
        if self.increment < 0:
            raise ValueError(f'Ramp: increment is {self.increment}, but it must not be negative')
        if self.increment == 0 and self.start < self.end:
            raise ValueError(
                f'Ramp: increment is 0, but then the ramp never ends: start = {self.start} stays below end = {self.end}'
            )

    @property
    def steps(self) -> int:
        """The first step at the last value.

        >>> Ramp(start=5, increment=1, interval=2000, end=20).steps
        30000
        """
        return self._increments * self.interval

    @property
    def _increments(self) -> int:
        return math.ceil((self.end - self.start) / max(self.increment, 1))

    def __call__(self, step: Step) -> Int32[Array, '']:
        """k(t) of a step, which may be traced."""
        # The count is cut before the product, which could pass int32 in a long run.
        count = jnp.minimum(jnp.asarray(step, jnp.int32) // self.interval, self._increments)
        return jnp.minimum(self.start + self.increment * count, self.end)

    def tiny(self, end: int) -> 'Ramp':
        """A ramp to another end in steps of one; what stood still stands still.

        >>> Ramp(start=5, increment=1, interval=2000, end=20).tiny(4)
        Ramp(start=2, increment=1, interval=1, end=4)
        """
        start = end if self.start == self.end else max(1, end // 2)
        return Ramp(start=start, increment=1, interval=1, end=end)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum:
    """The two sizes of a regression that grow.

    Attributes:
        dims: coordinates of x that are not set to 0.
        points: points of a prompt that are scored.

    >>> curriculum = CURRICULA['linear']
    >>> int(curriculum.dims(2000)), int(curriculum.points(2000))
    (6, 13)
    """

    dims: Ramp
    points: Ramp

    def tiny(self, dims: int, points: int) -> 'Curriculum':
        """A copy that reaches these sizes within a few steps."""
        return Curriculum(dims=self.dims.tiny(dims), points=self.points.tiny(points))


_DIMS = Ramp(start=5, increment=1, interval=2000, end=20)
# The published ones: of linear functions (sparse or not), and of networks and trees.
CURRICULA: dict[str, Curriculum] = {
    'linear': Curriculum(dims=_DIMS, points=Ramp(start=11, increment=2, interval=2000, end=41)),
    'nonlinear': Curriculum(dims=_DIMS, points=Ramp(start=26, increment=5, interval=2000, end=101)),
}
