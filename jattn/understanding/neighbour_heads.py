"""Heads that look up the label of the nearest labelled point (Bhattamishra et al. 2023), read from their patterns.

A prompt holds points and labels in turn, x_1 y_1 x_2 y_2 ..., as `jattn/testbeds/boolean.py` lays them out. Of a head,

    score = mean over points i >= first of sum_{j in N_k(i)} pattern[2i, 2j + 1]

the attention that x_i pays to the labels of its k nearest earlier points N_k(i), by cosine, the earliest of equals. A
share of a head's attention, in [0, 1]; a head that attends uniformly to what it sees scores the mean of k / (2i + 1).
The authors count a head from .5 on. Their second score, that of induction heads, is `heads.score_heads`.

Cosines of equal norms are ordered as dot products. Of points of signs, as the testbed's, these are whole numbers, so
that equals are equal; the authors round cosines to seven decimals, which parts some.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.typing import Array, Bool, Float, PyTree
from jattn.understanding import capture

FOUND = 0.5  # a head with this score is one that looks up neighbours


@struct.dataclass
class NeighbourHeads:
    """Scores by head.

    Attributes:
        layers: the layers that have patterns, one a row.
        scores: [L, H].
    """

    layers: tuple[int, ...] = struct.field(pytree_node=False)
    scores: Float[Array, 'L H']

    def best(self) -> tuple[int, int, float]:
        """(layer, head, score) of the highest score."""
        row, head = jnp.unravel_index(jnp.argmax(self.scores), self.scores.shape)
        return self.layers[int(row)], int(head), float(self.scores[row, head])

    def found(self, least: float = FOUND) -> list[tuple[int, int]]:
        """(layer, head) of all that score at least so much."""
        rows, heads = jnp.nonzero(self.scores >= least)
        return [(self.layers[row], head) for row, head in zip(rows.tolist(), heads.tolist())]


def nearest(points: Float[Array, 'B S F'], neighbours: int = 1) -> Bool[Array, 'B S S']:
    """Whether point j is among the nearest `neighbours` of the points before i: those of the highest cosine.

    Of equals the earliest counts; a point with fewer before it has these alone.

    >>> nearest(jnp.array([[[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]])).astype(int)[0].tolist()
    [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    """
    norms = jnp.linalg.norm(points, axis=-1)
    similar = jnp.einsum('bsf,btf->bst', points, points, precision='highest')
    # Over the norm of j alone: that of i changes no order. Equal norms leave whole numbers whole.
    longest = jnp.max(norms, axis=-1)[:, None, None]
    similar = similar * (longest / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)[:, None, :])
    place = jnp.arange(points.shape[1])
    is_earlier = place[:, None] > place[None, :]
    left = jnp.where(is_earlier[None], similar, -jnp.inf)
    chosen = jnp.zeros(left.shape, bool)
    for _ in range(min(neighbours, points.shape[1])):
        best = jax.nn.one_hot(jnp.argmax(left, axis=-1), points.shape[1], dtype=bool)
        chosen = chosen | best
        left = jnp.where(best, -jnp.inf, left)
    return chosen & is_earlier[None]


def neighbour_scores(
    pattern: Float[Array, 'L B H T T'], points: Float[Array, 'B S F'], neighbours: int = 1, first: int = 1
) -> Float[Array, 'L H']:
    """The score of every head on prompts of S points, T = 2S.

    Args:
        pattern: attention of queries (second to last axis) to keys.
        points: x_1 .. x_S.
        neighbours: k.
        first: the first point that is asked; the very first, 0, has none before it.

    >>> points = jnp.array([[[1.0, 1.0], [1.0, -1.0]]])
    >>> looks_up = jnp.zeros((1, 1, 1, 4, 4)).at[:, :, :, 2, 1].set(1.0)       # the second point, the first label
    >>> neighbour_scores(looks_up, points).tolist()
    [[1.0]]
    """
    if not 1 <= first < points.shape[1]:
        raise ValueError(
            f'neighbour_scores: first={first} must lie in 1..{points.shape[1] - 1}, points with others before'
        )
    if neighbours < 1:
        raise ValueError(f'neighbour_scores: neighbours={neighbours} must be at least 1')
    if pattern.shape[-1] != 2 * points.shape[1]:
        raise ValueError(
            f'neighbour_scores: the pattern has {pattern.shape[-1]} keys, but {points.shape[1]} points and labels '
            f'are {2 * points.shape[1]} tokens'
        )
    to_labels = pattern[..., ::2, 1::2][..., first:, :]
    near = nearest(points, neighbours)[:, first:].astype(pattern.dtype)
    return jnp.mean(jnp.einsum('lbhst,bst->lbhs', to_labels, near), axis=(1, 3))


def score_neighbour_heads(
    model: nn.Module,
    params: PyTree,
    inputs: Float[Array, 'B T F'],
    *,
    neighbours: int = 1,
    first: int = 1,
    context: Context = Context(),
) -> NeighbourHeads:
    """Scores every head of every layer that has patterns.

    Args:
        model: a trunk that reads vectors.
        params: its parameters.
        inputs: points and labels in turn.
        neighbours: k.
        first: the first point that is asked; of the task nearest_neighbours, the first whose label is no coin.
        context: of the inputs.

    Raises:
        ValueError: no layer of the model has patterns.
    """
    if 'pattern' not in capture.index(model, params, inputs, context):
        raise ValueError('score_neighbour_heads: no layer of this model has attention patterns')
    captured = capture.run(model, params, inputs, sites=['pattern'], context=context)
    scores = neighbour_scores(captured.stack('pattern'), inputs[:, ::2], neighbours, first)
    return NeighbourHeads(tuple(captured.values['pattern']), scores)
