"""Distribution shifts of in-context regression: prompts that training did not show. One table, `SHIFTS`.

| name                                       | what is shifted                                                         |
| ------------------------------------------ | ----------------------------------------------------------------------- |
| none                                       |                                                                         |
| skewed_covariance                          | x = U diag(a / i) U^T z, i = 1 .. F, z ~ N(0, I)                        |
| half_subspace                              | the same with a in F/2 directions and 0 in the others                   |
| x_third, x_half, x_double, x_triple        | x times 1/3, 1/2, 2, 3                                                  |
| y_third, y_half, y_double, y_triple        | y times the same                                                        |
| noisy_labels                               | noise of variance 1 on every y, which is then scaled to variance F      |
| random_quadrant                            | the examples lie in one quadrant, which is random; the query anywhere   |
| orthogonal_query                           | the query is orthogonal to all examples, its length as before           |
| repeated_query                             | the query is one of the examples                                        |
| fresh_functions                            | functions of the whole class, where training drew from a pool           |

U is a random basis, and a makes E |x|^2 = F, as it is without a shift. Where examples and query come from two streams
(a quadrant, an orthogonal or repeated query), a prompt has one query: row b has i_b examples, the query as point i_b
and zeros behind it, and only the query is scored. The i_b run through 0 .. S - 1 evenly, from a random first one, so
that a batch of a multiple of S rows tells the error at every i. With no examples every query is a fresh point.

The shifts of Garg et al. (2022); the last one is the unseen tasks of Raventos et al. (2023). Choices: U is drawn for
every prompt (their code: once for an evaluation), and noisy labels are scaled by their exact deviation sqrt(F + 1)
(theirs: by the batch's), so that a row does not depend on the others.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jattn.testbeds.regression_solvers import HIGHEST, row_basis
from jattn.typing import Array, Bool, Float, Int32, Key

# (key, x, a point of the same distribution, how many points are examples) -> examples, query
Query = Callable[
    [Key, Float[Array, 'B S F'], Float[Array, 'B F'], Int32[Array, 'B']],
    tuple[Float[Array, 'B S F'], Float[Array, 'B F']],
]


class Shift(NamedTuple):
    """What differs from training.

    Attributes:
        x_scale: factor of every x.
        y_scale: factor of every y.
        noise: deviation of noise on the labels, which are then scaled back; 0: the task's own noise, no scaling.
        spectrum: F -> deviations of x along a random basis [F], up to a factor; None: all alike.
        query: makes examples and query differ; None: every point is both.
        fresh: whether functions are not those of the pool.
    """

    x_scale: float = 1.0
    y_scale: float = 1.0
    noise: float = 0.0
    spectrum: Callable[[int], np.ndarray] | None = None
    query: Query | None = None
    fresh: bool = False


def random_quadrant(
    key: Key, x: Float[Array, 'B S F'], fresh: Float[Array, 'B F'], length: Int32[Array, 'B']
) -> tuple[Float[Array, 'B S F'], Float[Array, 'B F']]:
    """Examples with the signs of one random quadrant a prompt.

    >>> x = jax.random.normal(jax.random.key(0), (1, 5, 2))
    >>> jnp.unique(jnp.sign(random_quadrant(jax.random.key(1), x, x[:, 0], jnp.array([5]))[0]), axis=1).shape
    (1, 1, 2)
    """
    signs = jax.random.rademacher(key, fresh.shape, x.dtype)
    return jnp.abs(x) * signs[:, None], fresh


def orthogonal_query(
    key: Key, x: Float[Array, 'B S F'], fresh: Float[Array, 'B F'], length: Int32[Array, 'B']
) -> tuple[Float[Array, 'B S F'], Float[Array, 'B F']]:
    """The part of a fresh point that is orthogonal to the examples, fewer than F, stretched to the point's length.

    >>> x = jnp.array([[[2.0, 0.0], [1.0, 1.0]]])
    >>> orthogonal_query(jax.random.key(0), x, jnp.array([[3.0, 4.0]]), jnp.array([1]))[1].tolist()
    [[0.0, 5.0]]
    """
    is_example = jnp.arange(x.shape[1])[None] < length[:, None]
    basis, _ = row_basis(jnp.where(is_example[:, :, None], x, 0))
    rest = fresh
    for _ in range(2):  # where little is left, the second pass removes the rounding of the first
        inside = jnp.einsum('bf,brf->br', rest, basis, precision=HIGHEST)
        rest = rest - jnp.einsum('br,brf->bf', inside, basis, precision=HIGHEST)
    lengths = jnp.linalg.norm(fresh, axis=-1) / jnp.linalg.norm(rest, axis=-1)
    return x, rest * lengths[:, None]


def repeated_query(
    key: Key, x: Float[Array, 'B S F'], fresh: Float[Array, 'B F'], length: Int32[Array, 'B']
) -> tuple[Float[Array, 'B S F'], Float[Array, 'B F']]:
    """One of the examples, all alike; a fresh point where there are none.

    >>> x = jnp.array([[[2.0], [3.0]], [[5.0], [6.0]]])
    >>> repeated_query(jax.random.key(0), x, jnp.array([[7.0], [8.0]]), jnp.array([1, 0]))[1].tolist()
    [[2.0], [8.0]]
    """
    index = jax.random.randint(key, length.shape, 0, jnp.maximum(length, 1), jnp.int32)
    example = jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
    return x, jnp.where((length > 0)[:, None], example, fresh)


def rotate(key: Key, z: Float[Array, 'B S F'], spectrum: np.ndarray) -> Float[Array, 'B S F']:
    """x = U diag(a s) U^T z for deviations s, a basis U that is random in every prompt, and a^2 = F / |s|^2."""
    basis, _ = row_basis(jax.random.normal(key, (len(z), z.shape[2], z.shape[2])))
    deviations = jnp.asarray(spectrum * np.sqrt(len(spectrum) / np.sum(np.square(spectrum))), z.dtype)
    along = jnp.einsum('bsf,brf->bsr', z, basis, precision=HIGHEST) * deviations[None, None]
    return jnp.einsum('bsr,brf->bsf', along, basis, precision=HIGHEST)


def shifted_points(
    key: Key, shift: Shift, batch: int, points: int, dim: int
) -> tuple[Float[Array, 'B S F'], Bool[Array, 'B S'], Bool[Array, 'B S']]:
    """The points of a batch, which of them stand in the prompt, and which of these are scored.

    >>> _, is_shown, is_scored = shifted_points(jax.random.key(0), SHIFTS['repeated_query'], 3, 3, 1)
    >>> sorted(is_shown.astype(int).tolist()), sorted(is_scored.astype(int).tolist())
    ([[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    """
    point_key, shift_key, fresh_key, first_key = jax.random.split(key, 4)
    x = jax.random.normal(point_key, (batch, points, dim))
    if shift.spectrum is not None:
        x = rotate(shift_key, x, shift.spectrum(dim))
    if shift.query is None:
        everywhere = jnp.ones((batch, points), bool)
        return shift.x_scale * x, everywhere, everywhere
    first = jax.random.randint(first_key, (), 0, points, jnp.int32)
    length = (first + jnp.arange(batch, dtype=jnp.int32)) % points
    examples, query = shift.query(shift_key, x, jax.random.normal(fresh_key, (batch, dim)), length)
    place = jnp.arange(points)[None]
    is_example, is_query = place < length[:, None], place == length[:, None]
    x = jnp.where(is_example[:, :, None], examples, jnp.where(is_query[:, :, None], query[:, None], 0))
    return x, is_example | is_query, is_query


_SCALES = {'third': 1 / 3, 'half': 1 / 2, 'double': 2.0, 'triple': 3.0}
SHIFTS: dict[str, Shift] = {
    'none': Shift(),
    'skewed_covariance': Shift(spectrum=lambda dim: 1 / np.arange(1, dim + 1)),
    'half_subspace': Shift(spectrum=lambda dim: (np.arange(dim) < dim // 2).astype(float)),
    **{f'x_{name}': Shift(x_scale=scale) for name, scale in _SCALES.items()},
    **{f'y_{name}': Shift(y_scale=scale) for name, scale in _SCALES.items()},
    'noisy_labels': Shift(noise=1.0),
    'random_quadrant': Shift(query=random_quadrant),
    'orthogonal_query': Shift(query=orthogonal_query),
    'repeated_query': Shift(query=repeated_query),
    'fresh_functions': Shift(fresh=True),
}
