"""Predictors of a query's label from S labelled examples, in closed form: what an in-context learner is compared with.

    zero                        f = 0
    gradient descent            f = 1/S sum_s y_s  x_s            . G x_q      one step from zero weights
    debiased gradient descent   f = 1/S sum_s y_s (x_s - mean(x)) . G x_q      the same on centred covariates
    least squares               f = x_q . pinv(X) y                            the minimum-norm solution when S < F
    ridge                       f = x_q . (X^T X + penalty I)^-1 X^T y         Bayes-optimal at penalty = noise / prior
    reduced attention           f = sum_h mu_h sum_s softmax_s(omega_h x_s . x_q) y_s

G is a step size eta (plain) or a matrix (pre-conditioned). The last line is one layer of softmax attention whose heads
read and write as trained ones do ("In-Context Linear Regression Demystified"): with heads in opposite pairs,
sum_h mu_h = 0, and small omega it is debiased gradient descent with eta = sum_h mu_h omega_h, since
softmax_s(omega a_s) = 1/S (1 + omega (a_s - mean(a))) + O(omega^2).

Letters: B prompts, S examples of a prompt, F covariates, H heads.
"""

import jax
import jax.numpy as jnp

from jattn.typing import Array, Float, at_least_float32, axis_sizes

Step = float | Float[Array, ''] | Float[Array, 'F F']


def _check(where: str, x: Array, y: Array, query: Array) -> None:
    axis_sizes(where, x=(x, 'B S F'), y=(y, 'B S'), query=(query, 'B F'))


def gradient_descent(
    x: Float[Array, 'B S F'], y: Float[Array, 'B S'], query: Float[Array, 'B F'], step: Step
) -> Float[Array, 'B']:
    """f = 1/S sum_s y_s x_s . G x_q: one step of size G on the squared error, from zero weights.

    Args:
        x: the examples' covariates.
        y: the examples' labels.
        query: the query's covariates x_q.
        step: a number eta, or a matrix [F, F] that pre-conditions.

    >>> x, y = jnp.array([[[1.0], [3.0]]]), jnp.array([[1.0, 3.0]])
    >>> gradient_descent(x, y, jnp.array([[2.0]]), step=1.0).tolist()      # (1 + 9) / 2 * 2
    [10.0]
    """
    _check('gradient_descent', x, y, query)
    step = jnp.asarray(step, x.dtype)
    direction = step * query if step.ndim == 0 else query @ step.T
    return jnp.einsum('bs,bsf,bf->b', y, x, direction) / x.shape[1]


def debiased_gradient_descent(
    x: Float[Array, 'B S F'], y: Float[Array, 'B S'], query: Float[Array, 'B F'], step: Step
) -> Float[Array, 'B']:
    """f = 1/S sum_s y_s (x_s - mean(x)) . G x_q: gradient descent on centred covariates.

    A constant added to every label, or to every covariate of the examples, leaves its weights unchanged.

    >>> x, y = jnp.array([[[1.0], [3.0]]]), jnp.array([[1.0, 3.0]])
    >>> debiased_gradient_descent(x, y, jnp.array([[2.0]]), step=1.0).tolist()      # (-1 + 3) / 2 * 2
    [2.0]
    """
    _check('debiased_gradient_descent', x, y, query)
    return gradient_descent(x - jnp.mean(x, axis=1, keepdims=True), y, query, step)


def solve_positive(matrix: Float[Array, 'B F F'], right: Float[Array, 'B F']) -> Float[Array, 'B F']:
    """x of `matrix` x = `right` for symmetric positive definite matrices, by Gauss-Jordan elimination over the batch.

    Small systems in plain array operations: these run inside evaluations, and LAPACK calls that stand side by side in
    one compiled program can wait for each other for ever on a CPU with few threads (two batched Choleskys, jax 0.10).

    >>> solve_positive(jnp.array([[[2.0, 1.0], [1.0, 2.0]]]), jnp.array([[4.0, 5.0]])).round(5).tolist()
    [[1.0, 2.0]]
    """
    axis_sizes('solve_positive', matrix=(matrix, 'B F F'), right=(right, 'B F'))

    def eliminate(i: int, rows: Array) -> Array:
        row = rows[:, i] / rows[:, i, i][:, None]
        return (rows - rows[:, :, i][:, :, None] * row[:, None, :]).at[:, i].set(row)

    rows = jnp.concatenate([matrix, right[:, :, None]], axis=-1)
    return jax.lax.fori_loop(0, matrix.shape[-1], eliminate, rows)[:, :, -1]


def least_squares(x: Float[Array, 'B S F'], y: Float[Array, 'B S'], query: Float[Array, 'B F']) -> Float[Array, 'B']:
    """f = x_q . pinv(X) y: ordinary least squares, of minimum norm when there are fewer examples than covariates.

    From the normal equations of the shorter side, with one step of refinement; X must have full rank.

    >>> x, y = jnp.array([[[1.0], [3.0]]]), jnp.array([[1.0, 3.0]])
    >>> least_squares(x, y, jnp.array([[2.0]])).round(5).tolist()
    [2.0]
    """
    _check('least_squares', x, y, query)
    x = x.astype(at_least_float32(x))
    gram = jnp.einsum('bsf,bsg->bfg', x, x) if x.shape[1] >= x.shape[2] else jnp.einsum('bsf,btf->bst', x, x)

    def fit(labels: Array) -> Array:
        if x.shape[1] >= x.shape[2]:
            return solve_positive(gram, jnp.einsum('bsf,bs->bf', x, labels))
        return jnp.einsum('bsf,bs->bf', x, solve_positive(gram, labels))

    weights = fit(y)
    weights = weights + fit(y - jnp.einsum('bsf,bf->bs', x, weights))
    return jnp.sum(weights * query, axis=-1)


def ridge(
    x: Float[Array, 'B S F'], y: Float[Array, 'B S'], query: Float[Array, 'B F'], penalty: float
) -> Float[Array, 'B']:
    """f = x_q . (X^T X + penalty I)^-1 X^T y: the Bayes predictor at penalty = noise variance / prior variance.

    Args:
        x: the examples' covariates.
        y: the examples' labels.
        query: the query's covariates x_q.
        penalty: lambda >= 0; at 0 this is `least_squares`. For weights N(0, I/F) and noise sigma^2 it is sigma^2 F.

    Raises:
        ValueError: the penalty is negative.

    >>> x, y = jnp.array([[[1.0], [3.0]]]), jnp.array([[1.0, 3.0]])
    >>> ridge(x, y, jnp.array([[2.0]]), penalty=10.0).tolist()             # 10 / (10 + 10) * 2
    [1.0]
    """
    if penalty < 0:
        raise ValueError(f'ridge: penalty is {penalty}, but it must not be negative')
    if penalty == 0:
        return least_squares(x, y, query)
    _check('ridge', x, y, query)
    x = x.astype(at_least_float32(x))
    gram = jnp.einsum('bsf,bsg->bfg', x, x) + penalty * jnp.eye(x.shape[-1], dtype=x.dtype)[None]
    weights = solve_positive(gram, jnp.einsum('bsf,bs->bf', x, y))
    return jnp.sum(weights * query, axis=-1)


def reduced_attention(
    x: Float[Array, 'B S F'],
    y: Float[Array, 'B S'],
    query: Float[Array, 'B F'],
    omega: Float[Array, 'H'],
    mu: Float[Array, 'H'],
) -> Float[Array, 'B']:
    """f = sum_h mu_h sum_s softmax_s(omega_h x_s . x_q) y_s: a trained layer in two numbers a head.

    Args:
        x: the examples' covariates.
        y: the examples' labels.
        query: the query's covariates x_q.
        omega: what each head multiplies the match x_s . x_q with (its key-query circuit is omega_h I).
        mu: what each head multiplies the label that it reads with.

    >>> x, y = jnp.array([[[1.0], [3.0]]]), jnp.array([[1.0, 3.0]])
    >>> opposite = reduced_attention(x, y, jnp.array([[2.0]]), jnp.array([0.01, -0.01]), jnp.array([50.0, -50.0]))
    >>> opposite.round(2).tolist()                # debiased gradient descent with step 2 * 50 * 0.01 = 1
    [2.0]
    """
    _check('reduced_attention', x, y, query)
    axis_sizes('reduced_attention', omega=(omega, 'H'), mu=(mu, 'H'))
    match = jnp.einsum('bsf,bf->bs', x, query)
    match = match.astype(at_least_float32(match))
    pattern = jax.nn.softmax(omega[None, :, None] * match[:, None, :], axis=-1)
    return jnp.einsum('h,bhs,bs->b', mu, pattern, y)
