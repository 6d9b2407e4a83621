"""Predictors of the next value from the points before it, at every point of a prompt: what a learner is compared with.

    averaging       f_i = x_i . (1/i) sum_{j<i} y_j x_j
    neighbours      f_i = mean of the labels of the k nearest of the points before, fewer where there are not k
    least squares   f_i = x_i . pinv(X_i) y_i        of minimum norm; X_i, y_i: the i points before point i
    ridge           f_i = x_i . (X_i^T X_i + penalty I)^-1 X_i^T y_i
    lasso           f_i = x_i . argmin_w |y_i - X_i w|^2 / (2i) + penalty |w|_1, no intercept
    pool average    f_i = sum_m p_m f_m(x_i),    p_m ~ exp(-sum_{j<i} (y_j - f_m(x_j))^2 / (2 noise variance))

Points are counted from 0, so f_i has seen i examples, and every f_0 is 0 but the pool's, which is the mean of its
functions. No f_i depends on y_j with j >= i, to the last bit.

Least squares and ridge are solved for all i in one pass: a triangle with triangle^T triangle = X_i^T X_i takes in one
point after another by plane rotations, whose error grows with the condition of X_i and not, as that of the normal
equations, with its square. So the curves hold in float32 also at i = F, where X_i is nearly singular. All is written in
array operations: LAPACK calls that stand side by side in one compiled program can wait for each other for ever
(`icl_linear_estimators.solve_positive`).

Letters: B prompts, S points of a prompt, F coordinates, R basis vectors, M functions of a pool, C of them at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jattn.typing import Array, Bool, Float, Int32, at_least_float32, axis_sizes

DEPENDENT = 1e-5  # a point whose part outside of the others' span is below this share of its length lies in the span
DECAY = 0.97  # of the penalty, from one sweep of coordinate descent to the next
AT_ONCE = 128  # functions of a pool that are evaluated together
HIGHEST = jax.lax.Precision.HIGHEST  # an accelerator's default would round the exact answers


def averaging(x: Float[Array, 'B S F'], y: Float[Array, 'B S']) -> Float[Array, 'B S']:
    """f_i = x_i . (1/i) sum_{j<i} y_j x_j; one step of gradient descent, of size 1.

    >>> averaging(jnp.array([[[2.0], [1.0], [3.0]]]), jnp.array([[4.0, 2.0, 9.0]])).tolist()    # 1 * 8, 3 * (8 + 2)/2
    [[0.0, 8.0, 15.0]]
    """
    _check('averaging', x, y)
    count = jnp.maximum(jnp.arange(x.shape[1]), 1)[None, :, None]
    return _dot(_sum_before(y[:, :, None] * x) / count, x)


def neighbours(x: Float[Array, 'B S F'], y: Float[Array, 'B S'], count: int) -> Float[Array, 'B S']:
    """The mean label of the `count` nearest points before, by Euclidean distance; of all while there are fewer.

    >>> x = jnp.array([[[0.0], [9.0], [2.0], [3.0]]])
    >>> neighbours(x, jnp.array([[1.0, 5.0, 3.0, 0.0]]), 2).tolist()
    [[0.0, 1.0, 3.0, 2.0]]
    """
    _check('neighbours', x, y)
    points = x.shape[1]
    distance = jnp.sum(jnp.square(x[:, :, None] - x[:, None]), axis=-1)
    is_before = jnp.tri(points, k=-1, dtype=bool)[None]
    closeness, nearest = jax.lax.top_k(jnp.where(is_before, -distance, -jnp.inf), min(count, points))
    labels = jnp.take_along_axis(jnp.broadcast_to(y[:, None], distance.shape), nearest, axis=-1)
    found = closeness > -jnp.inf
    return jnp.sum(jnp.where(found, labels, 0), axis=-1) / jnp.maximum(jnp.sum(found, axis=-1), 1)


def least_squares(x: Float[Array, 'B S F'], y: Float[Array, 'B S']) -> Float[Array, 'B S']:
    """f_i = x_i . pinv(X_i) y_i, whatever the rank of X_i.

    The points are written in a basis of their span that grows with them; in it every X_i has full rank.

    >>> least_squares(jnp.array([[[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]]), jnp.array([[3.0, 5.0, 0.0]])).round().tolist()
    [[0.0, 3.0, 4.0]]
    """
    _check('least_squares', x, y)
    basis, rank = row_basis(x)
    coordinates = _project(x, basis)
    # Rounding leaves traces of vectors that joined the basis later; they would count as columns of full rank.
    known = jnp.where(jnp.arange(basis.shape[1])[None, None] < rank[:, :, None], coordinates, 0)
    return _dot(_fit_before(known, y, 0.0), coordinates)


def ridge(x: Float[Array, 'B S F'], y: Float[Array, 'B S'], penalty: float) -> Float[Array, 'B S']:
    """f_i = x_i . (X_i^T X_i + penalty I)^-1 X_i^T y_i.

    Args:
        x: the points.
        y: their labels.
        penalty: positive; the noise's variance over the weights' makes this the Bayes predictor of a linear function.

    Raises:
        ValueError: the penalty is not positive.

    >>> ridge(jnp.array([[[1.0], [2.0], [3.0]]]), jnp.array([[1.0, 2.0, 3.0]]), penalty=1.0).round(3).tolist()
    [[0.0, 1.0, 2.5]]
    """
    if penalty <= 0:
        raise ValueError(f'ridge: penalty is {penalty}, but it must be positive')
    _check('ridge', x, y)
    return _dot(_fit_before(x, y, penalty**0.5), x)


def lasso(
    x: Float[Array, 'B S F'], y: Float[Array, 'B S'], penalty: float, sweeps: int = 500, tolerance: float = 1e-4
) -> Float[Array, 'B S']:
    """f_i = x_i . argmin_w |y_i - X_i w|^2 / (2i) + penalty |w|_1, by coordinate descent.

    A sweep goes over all coordinates. The penalty starts where all weights are 0 and shrinks by `DECAY` a sweep: so few
    weights are away from 0 at any time, which takes fewer sweeps than going from 0 at the last penalty. Each prompt and
    each i stops by itself. With fewer examples than coordinates and a small penalty the minimum is flat, and the last
    sweep may come before it.

    Args:
        x: the points.
        y: their labels.
        penalty: of |w|_1 (scikit-learn's alpha).
        sweeps: the most of them.
        tolerance: no weight moves by more in the last sweep.

    >>> lasso(jnp.array([[[1.0], [1.0], [2.0]]]), jnp.array([[3.0, 1.0, 0.0]]), penalty=1.0).round().tolist()
    [[0.0, 2.0, 2.0]]
    """
    _check('lasso', x, y)
    count = jnp.maximum(jnp.arange(x.shape[1]), 1)[None, :, None]
    moment = _sum_before(y[:, :, None] * x) / count
    gram = jnp.moveaxis(_sum_before(x[:, :, :, None] * x[:, :, None]) / count[..., None], 2, 0)
    strongest = jnp.max(jnp.abs(moment), axis=-1)

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        n, weights, is_moving = state
        now = jnp.maximum(strongest * DECAY**n, penalty)

        def move(k: Int32[Array, ''], weights: Float[Array, 'B S F']) -> Float[Array, 'B S F']:
            own = gram[k, :, :, k]
            pull = moment[:, :, k] - _dot(gram[k], weights) + own * weights[:, :, k]
            shrunk = jnp.sign(pull) * jnp.maximum(jnp.abs(pull) - now, 0)
            return weights.at[:, :, k].set(jnp.where(own > 0, shrunk / jnp.where(own > 0, own, 1), 0))

        after = jax.lax.fori_loop(0, x.shape[-1], move, weights)
        has_moved = jnp.max(jnp.abs(after - weights), axis=-1) > tolerance
        after = jnp.where(is_moving[..., None], after, weights)
        return n + 1, after, is_moving & (has_moved | (now > penalty))

    def unfinished(state: tuple[Array, Array, Array]) -> Bool[Array, '']:
        return (state[0] < sweeps) & jnp.any(state[2])

    start = (jnp.int32(0), jnp.zeros_like(moment), jnp.ones(y.shape, bool))
    return _dot(jax.lax.while_loop(unfinished, sweep, start)[1], x)


def pool_average(
    values: Callable[[Int32[Array, 'C']], Float[Array, 'B S C']],
    y: Float[Array, 'B S'],
    pool: int,
    noise_variance: float,
) -> Float[Array, 'B S']:
    """The Bayes predictor of a function of a finite pool: its functions' values, weighted by their posterior.

    The pool is walked through in blocks, with a running maximum, so that memory does not grow with it.

    Args:
        values: numbers of functions -> their values at all points. Numbers past the pool are asked for too; the answer
            does not count.
        y: the labels.
        pool: M, functions in the pool, all alike before the first example.
        noise_variance: of the labels, positive.

    Raises:
        ValueError: the noise variance is not positive.

    >>> values = lambda numbers: jnp.stack([numbers + 1.0, numbers + 1.0])[None]        # constants 1, 2, 3
    >>> pool_average(values, jnp.array([[3.0, 0.0]]), pool=3, noise_variance=0.01).round().tolist()
    [[2.0, 3.0]]
    """
    if noise_variance <= 0:
        raise ValueError(f'pool_average: noise_variance is {noise_variance}, but it must be positive')
    block = min(pool, AT_ONCE)

    def add(carry: tuple[Array, Array, Array], first: Int32[Array, '']) -> tuple[tuple[Array, Array, Array], None]:
        best, total, weighted = carry
        numbers = first + jnp.arange(block, dtype=jnp.int32)
        says = values(numbers)
        fit = -_sum_before(jnp.square(y[:, :, None] - says)) / (2 * noise_variance)
        fit = jnp.where((numbers < pool)[None, None], fit, -jnp.inf)
        new_best = jnp.maximum(best, jnp.max(fit, axis=-1))
        kept, weight = jnp.exp(best - new_best), jnp.exp(fit - new_best[:, :, None])
        total = kept * total + jnp.sum(weight, axis=-1)
        return (new_best, total, kept * weighted + _dot(weight, says)), None

    nothing = jnp.zeros(y.shape, at_least_float32(y))
    firsts = jnp.arange(0, pool, block, dtype=jnp.int32)
    _, total, weighted = jax.lax.scan(add, (nothing - jnp.inf, nothing, nothing), firsts)[0]
    return weighted / total


def row_basis(x: Float[Array, 'B S F']) -> tuple[Float[Array, 'B R F'], Int32[Array, 'B S']]:
    """An orthonormal basis of the points' span, R = min(S, F), and how much of it each beginning of the prompt spans.

    Gram-Schmidt, each point in turn: its first rank_i vectors span points 0 .. i. Vectors that are not needed are 0.
    Of S >= F points N(0, I) it is a random orthogonal matrix, uniformly.

    >>> basis, rank = row_basis(jnp.array([[[0.0, 2.0], [0.0, -1.0], [3.0, 1.0]]]))
    >>> basis.tolist(), rank.tolist()
    ([[[0.0, 1.0], [1.0, 0.0]]], [[1, 1, 2]])
    """
    size = min(x.shape[1:])

    def add(carry: tuple[Array, Array], point: Float[Array, 'B F']) -> tuple[tuple[Array, Array], Array]:
        basis, rank = carry
        rest = point
        for _ in range(2):  # the second pass removes what rounding left of the first
            rest = rest - jnp.einsum('br,brf->bf', _project(rest, basis), basis, precision=HIGHEST)
        length = jnp.linalg.norm(rest, axis=-1)
        is_new = length > DEPENDENT * jnp.linalg.norm(point, axis=-1)
        unit = rest / jnp.where(is_new, length, 1)[:, None]
        place = (jnp.arange(size)[None] == rank[:, None]) & is_new[:, None]
        basis = jnp.where(place[:, :, None], unit[:, None], basis)
        rank = rank + is_new.astype(jnp.int32)
        return (basis, rank), rank

    nothing = (jnp.zeros((x.shape[0], size, x.shape[2]), x.dtype), jnp.zeros(x.shape[0], jnp.int32))
    (basis, _), ranks = jax.lax.scan(add, nothing, jnp.moveaxis(x, 1, 0))
    return basis, ranks.T


def _project(x: Float[Array, 'B *S F'], basis: Float[Array, 'B R F']) -> Float[Array, 'B *S R']:
    """Coordinates in the basis."""
    return jnp.einsum('b...f,brf->b...r', x, basis, precision=HIGHEST)


def _fit_before(rows: Float[Array, 'B S F'], y: Float[Array, 'B S'], start: float) -> Float[Array, 'B S F']:
    """The weights that minimise |y - rows w|^2 + start^2 |w|^2 over the rows before each; 0 for columns of zeros."""
    size = rows.shape[-1]

    def rotate(k: Int32[Array, ''], state: tuple[Array, Array]) -> tuple[Array, Array]:
        triangle, row = state
        upper = triangle[:, k]
        a, b = upper[:, k, None], row[:, k, None]
        length = jnp.sqrt(jnp.square(a) + jnp.square(b))
        safe = jnp.where(length > 0, length, 1)
        cosine, sine = jnp.where(length > 0, a / safe, 1), b / safe
        return triangle.at[:, k].set(cosine * upper + sine * row), cosine * row - sine * upper

    def add(triangle: Float[Array, 'B F F+1'], row: Float[Array, 'B F+1']) -> tuple[Array, Array]:
        return jax.lax.fori_loop(0, size, rotate, (triangle, row))[0], triangle

    def solve(n: Int32[Array, ''], weights: Float[Array, 'S B F']) -> Float[Array, 'S B F']:
        k = size - 1 - n
        own = triangles[:, :, k, k]
        rest = triangles[:, :, k, size] - _dot(triangles[:, :, k, :size], weights)
        return weights.at[:, :, k].set(jnp.where(own != 0, rest / jnp.where(own != 0, own, 1), 0))

    joined = jnp.concatenate([rows, y[:, :, None]], axis=-1).astype(at_least_float32(rows))
    nothing = start * jnp.eye(size, size + 1, dtype=joined.dtype)
    nothing = jnp.broadcast_to(nothing[None], (len(rows), *nothing.shape))
    _, triangles = jax.lax.scan(add, nothing, jnp.moveaxis(joined, 1, 0))
    weights = jax.lax.fori_loop(0, size, solve, jnp.zeros(triangles.shape[:3], joined.dtype))
    return jnp.moveaxis(weights, 0, 1)


def _sum_before(x: Float[Array, 'B S *F']) -> Float[Array, 'B S *F']:
    """The sum over earlier points. (The sum less the point itself would keep a rounding error that tells of it.)"""
    shifted = jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    return jnp.cumsum(shifted, axis=1)


def _dot(a: Float[Array, '*B F'], b: Float[Array, '*B F']) -> Float[Array, '*B']:
    return jnp.sum(a * b, axis=-1)


def _check(where: str, x: Array, y: Array) -> None:
    axis_sizes(where, x=(x, 'B S F'), y=(y, 'B S'))
