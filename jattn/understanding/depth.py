"""Concept depth: where along the layers a probe's accuracy jumps, goes flat and is best (Jin et al. 2024).

    change[i] = a_i / a_{i-1}              a_0: accuracy of the embeddings, a_i: behind layer i of d
    jump      the first i / d whose change is at least 1.1
    flat      the first i / d behind which every change is less than .03 from 1
    peak      the first i / d with the best accuracy

The paper has no a_0; it is kept here since what the embeddings know, no layer had to work out. It makes a step of its
own: the last token of every row is often the same one, so that nothing can be read from its embedding, and the first
layer jumps whatever the concept is. All jumps are listed, therefore. The paper's formula of `flat` is a maximum over
layers that change little; a layer is meant behind which all change little. Curves of few rows are rough: smooth them
(`smoothed`), and say so. `auc` is the paper's third score of a probe, beside accuracy and F1.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jattn.typing import Array, Bool, Float, axis_sizes


@dataclasses.dataclass(frozen=True)
class Depth:
    """Places along the depth, 0 the embeddings, 1 the last layer.

    Attributes:
        jumps: of every jump, in order.
        flat: behind which the curve is flat; 1: it changes to the end.
        peak: of the best accuracy.
        best: this accuracy.
    """

    jumps: tuple[float, ...]
    flat: float
    peak: float
    best: float

    @property
    def jump(self) -> float | None:
        """The first; None: there is none."""
        return self.jumps[0] if self.jumps else None


def find_depth(curve: Sequence[float], rise: float = 1.1, still: float = 0.03) -> Depth:
    """Where a curve of accuracies over layers, that of the embeddings first, jumps, goes flat and is best.

    Args:
        curve: a_0 .. a_d.
        rise: the change that is a jump.
        still: the distance from 1 of a change that is none.

    Raises:
        ValueError: fewer than two values, or one that is not positive.

    >>> find_depth([0.5, 0.5, 0.9, 0.91, 0.9])
    Depth(jumps=(0.5,), flat=0.5, peak=0.75, best=0.91)
    """
    values = np.asarray(curve, float)
    if values.ndim != 1 or len(values) < 2 or not np.all(values > 0):
        raise ValueError(f'find_depth: curve={values.tolist()} must have two values at least, all positive')
    last, changes = len(values) - 1, values[1:] / values[:-1]
    moves = np.flatnonzero(np.abs(changes - 1) >= still)
    return Depth(
        jumps=tuple(float((n + 1) / last) for n in np.flatnonzero(changes >= rise)),
        flat=float((moves[-1] + 1) / last) if len(moves) else 0.0,
        peak=float(np.argmax(values) / last),
        best=float(np.max(values)),
    )


def smoothed(curve: Sequence[float], width: int = 3) -> list[float]:
    """The moving average of an odd width; at the ends of what is there.

    >>> smoothed([0.0, 3.0, 6.0, 0.0])
    [1.5, 3.0, 3.0, 3.0]
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f'smoothed: width={width} must be odd and positive')
    values, half = np.asarray(curve, float), width // 2
    return [float(np.mean(values[max(0, n - half) : n + half + 1])) for n in range(len(values))]


def auc(scores: Float[Array, 'B'], labels: Bool[Array, 'B']) -> Float[Array, '']:
    """The share of pairs of a true and a false row in which the true one scores higher; a tie is half a pair.

    >>> float(auc(jnp.array([0.1, 0.4, 0.4, 0.9]), jnp.array([False, False, True, True])))
    0.875
    """
    axis_sizes('auc', scores=(scores, 'B'), labels=(labels, 'B'))
    labels = jnp.asarray(labels, bool)
    pairs = labels[:, None] & ~labels[None]
    higher = (scores[:, None] > scores[None]) + 0.5 * (scores[:, None] == scores[None])
    return jnp.sum(jnp.where(pairs, higher, 0)) / jnp.sum(pairs)
