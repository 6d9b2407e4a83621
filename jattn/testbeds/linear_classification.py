"""In-context linear classification: on which side of a plane lies a point, the plane being new in every prompt.

    inputs = x_0 (y_0, 0 .. 0) x_1 (y_1, 0 .. 0) ...       x_i, w ~ N(0, I)   y_i = sign(w . x_i)   target at x_i: y_i

The classification form of Garg et al. (2022): the layout of `regression`, labels +1 and -1, and the logistic loss
log(1 + exp(-y f)). Only the even places are read, that of x_0 included, whose label is a coin. What the best learner
says has no closed form beyond two coordinates; the baselines are those of regression, read by their sign.

Exact: behind one labelled point, sum_j y_j x_j lies at an angle t to w of density sin(t)^(F-2) over 0 .. pi/2, and a
direction at that angle is right with probability 1 - t / pi.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean
from jattn.testbeds import regression_solvers as solvers
from jattn.testbeds.points import at_points, interleave, split_points
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Key


def one_example_accuracy(dim: int) -> float:
    """1 - E t / pi: how often the direction of one labelled point is right about another point.

    >>> one_example_accuracy(1), round(one_example_accuracy(2), 6), round(one_example_accuracy(3), 6)
    (1.0, 0.75, 0.68169)
    """
    if dim == 1:
        return 1.0
    angles = (np.arange(100_000) + 0.5) / 100_000 * np.pi / 2
    density = np.sin(angles) ** (dim - 2)
    return 1 - float(np.sum(angles * density) / np.sum(density)) / math.pi


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearClassification(Task):
    """One plane a prompt.

    Attributes:
        dim: F, coordinates of x.
        points: S; a prompt has 2 S tokens.

    >>> batch = LinearClassification(dim=2, points=3).sample(jax.random.key(0), 1)
    >>> batch.inputs.shape, batch.targets[0, :, 0].tolist(), batch.inputs[0, 1::2, 0].tolist()
    ((1, 6, 2), [-1.0, 0.0, 1.0, 0.0, 1.0, 0.0], [-1.0, 1.0, 1.0])
    """

    kind: ClassVar[str] = 'continuous'
    output_size: ClassVar[int] = 1

    dim: int = 5
    points: int = 16

    def __post_init__(self) -> None:
        for name in ('dim', 'points'):
            if getattr(self, name) < 1:
                raise ValueError(f'LinearClassification: {name}={getattr(self, name)} must be at least 1')

    @property
    def input_size(self) -> int:
        return self.dim

    def sample(self, key: Key, batch: int) -> Batch:
        plane_key, point_key = jax.random.split(key)
        plane = jax.random.normal(plane_key, (batch, 1, self.dim))
        x = jax.random.normal(point_key, (batch, self.points, self.dim))
        # Sums, not a matrix product, which an accelerator would round to the other side.
        y = jnp.where(jnp.sum(x * plane, axis=-1) > 0, 1.0, -1.0)
        return Batch(interleave(x, y), at_points(y), at_points(jnp.ones_like(y))[:, :, 0])

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Logistic loss of all points, in nats."""
        margins = (outputs * batch.targets)[:, :, 0].astype(jnp.float32)
        return Mean.of(jax.nn.softplus(-margins), batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy (an output of 0 is wrong), and the curve by number of examples."""
        right = (outputs * batch.targets > 0)[:, ::2, 0].astype(jnp.float32)
        is_scored = batch.mask[:, ::2]
        return {
            'loss': self.loss(outputs, batch),
            'accuracy': Mean.of(right, is_scored),
            'accuracy_by_point': Mean.of(right, is_scored, axis=0),
        }

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits of the regressions, from the points before; 0 where nothing is known."""
        x, y = split_points(batch.inputs)
        found = {
            'chance': jnp.zeros_like(y),
            'averaging': solvers.averaging(x, y),
            'three_nearest': solvers.neighbours(x, y, 3),
            'least_squares': solvers.least_squares(x, y),
        }
        return {name: at_points(values) for name, values in found.items()}

    def facts(self) -> dict[str, float]:
        """A coin's loss and accuracy; what one labelled point tells."""
        return {
            'chance': math.log(2),
            'chance_accuracy': 0.5,
            'one_example_accuracy': one_example_accuracy(self.dim),
        }

    def tiny(self) -> 'LinearClassification':
        return dataclasses.replace(self, dim=min(self.dim, 3), points=min(self.points, 6))
