"""Attention layers that are gradient descent, in exact weights, and the learners that they are compared with.

A layer of linear attention (no softmax, no positions) reads N examples e_j = (x_j, y_j) and changes every token, the
query e = (x_q, -W_0 x_q) among them:

    e <- e + P sum_j W_V e_j (W_K e_j . W_Q e)

With W_K = W_Q = [[I, 0], [0, 0]], W_V = [[0, 0], [W_0, -1]], P = (eta/N) I (von Oswald et al. 2022) the last entry of
an example becomes y_j - dW x_j, that of the query -(W_0 + dW) x_q, where

    dW = eta/N sum_j (y_j - W_0 x_j) x_j^T

is a step of gradient descent of size eta on 1/(2N) sum_j (y_j - W x_j)^2. Hence the prediction is read out with a minus
sign, and K such layers, all with the same weights, are K steps: the examples hold what is left of their labels. In
their GD++ a layer also does x <- (I - gamma X^T X) x for every token, which improves the condition of the next step:
the upper 0 of W_V becomes -gamma N/eta I, for P takes eta/N off it again.

The best eta is known in closed form. For coordinates of x that are independent, with second moment m2 and fourth m4,
and w ~ N(0, I): with S2 = (m4 + (F - 1) m2^2)/N + (1 - 1/N) m2^2, the risk E (w . x - f)^2 of one step is
F m2 (1 - 2 eta m2 + eta^2 S2), least at eta = m2/S2. Their code draws U(-1/2, 1/2) where a comment says U(-1, 1).

Akyurek et al. (2022) build two more learners into layers: a step of gradient descent on a single example, and the
update of ridge regression by one more example (Sherman-Morrison). Here they are functions, to compare models with.
`learnt` is what probes of a model's layers should find: the moment X_i^T y_i and the ridge weights after i examples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jattn.testbeds.regression_solvers import HIGHEST
from jattn.typing import Array, Float, axis_sizes

Pair = tuple[Array, Array]


class LinearAttention(NamedTuple):
    """The weights of one layer, D = F + 1.

    Attributes:
        key: W_K.
        query: W_Q.
        value: W_V.
        output: P.
    """

    key: Float[Array, 'D D']
    query: Float[Array, 'D D']
    value: Float[Array, 'D D']
    output: Float[Array, 'D D']


def join(
    x: Float[Array, 'B S F'], y: Float[Array, 'B S'], query: Float[Array, 'B F'], start: Float[Array, 'F'] | None = None
) -> Float[Array, 'B S+1 F+1']:
    """The tokens: examples (x_j, y_j), then the query (x_q, -W_0 x_q); start = W_0, None: 0.

    >>> join(jnp.array([[[2.0]]]), jnp.array([[3.0]]), jnp.array([[4.0]]), jnp.array([0.5])).tolist()
    [[[2.0, 3.0], [4.0, -2.0]]]
    """
    axis_sizes('join', x=(x, 'B S F'), y=(y, 'B S'), query=(query, 'B F'), start=(start, 'F'))
    guess = jnp.zeros(len(query), y.dtype) if start is None else -jnp.sum(query * start[None], axis=-1)
    points = jnp.concatenate([x, query[:, None]], axis=1)
    return jnp.concatenate([points, jnp.concatenate([y, guess[:, None]], axis=1)[:, :, None]], axis=-1)


def attend(layer: LinearAttention, tokens: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """One layer; all tokens ask, all but the last, which is the query, are read.

    >>> tokens = join(jnp.array([[[2.0]]]), jnp.array([[3.0]]), jnp.array([[4.0]]))
    >>> attend(descent_layer(dim=1, examples=1, step=0.25), tokens).tolist()    # dW = 0.25 * 3 * 2
    [[[2.0, 0.0], [4.0, -6.0]]]
    """
    axis_sizes('attend', tokens=(tokens, 'B T D'), **{name: (w, 'D D') for name, w in layer._asdict().items()})

    def apply(weights: Float[Array, 'D D'], tokens: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
        return jnp.einsum('ij,btj->bti', weights, tokens, precision=HIGHEST)

    read = tokens[:, :-1]
    written = jnp.einsum('bti,btj->bij', apply(layer.value, read), apply(layer.key, read), precision=HIGHEST)
    answer = jnp.einsum('bij,btj->bti', written, apply(layer.query, tokens), precision=HIGHEST)
    return tokens + apply(layer.output, answer)


def descent_layer(
    dim: int, examples: int, step: float, start: Float[Array, 'F'] | None = None, correction: float = 0.0
) -> LinearAttention:
    """The layer that is one step of gradient descent.

    Args:
        dim: F.
        examples: N, that the mean is taken over.
        step: eta, not 0.
        start: W_0, from which the first layer goes; all layers of a stack have the same. None: 0.
        correction: gamma of GD++, by which every token's x becomes (I - gamma X^T X) x.

    Raises:
        ValueError: the step is 0, or there are no examples.

    >>> layer = descent_layer(dim=1, examples=4, step=2.0, start=jnp.array([3.0]), correction=0.25)
    >>> layer.key.tolist(), layer.value.tolist(), layer.output.tolist()
    ([[1.0, 0.0], [0.0, 0.0]], [[-0.5, 0.0], [3.0, -1.0]], [[0.5, 0.0], [0.0, 0.5]])
    """
    if step == 0 or examples < 1:
        raise ValueError(f'descent_layer: step is {step} and examples is {examples}, but neither may be 0')
    covariates = jnp.diag(jnp.ones(dim + 1).at[dim].set(0))
    start = jnp.zeros(dim) if start is None else start
    corrected = jnp.pad(-correction * examples / step * jnp.eye(dim), ((0, 0), (0, 1)))
    value = jnp.concatenate([corrected, jnp.append(start, -1.0)[None]])
    return LinearAttention(covariates, covariates, value, step / examples * jnp.eye(dim + 1))


def read_out(tokens: Float[Array, 'B T D']) -> Float[Array, 'B']:
    """The prediction: minus the query's last entry.

    >>> read_out(jnp.array([[[2.0, 1.8], [4.0, -2.5]]])).tolist()
    [2.5]
    """
    return -tokens[:, -1, -1]


class Moments(NamedTuple):
    """Of every coordinate of x.

    Attributes:
        second: E x^2.
        fourth: E x^4.
    """

    second: float
    fourth: float


NORMAL = Moments(1.0, 3.0)


def uniform_moments(half_width: float) -> Moments:
    """The moments of U(-a, a), a = half_width.

    >>> uniform_moments(1.0)
    Moments(second=0.3333333333333333, fourth=0.2)
    """
    return Moments(half_width**2 / 3, half_width**4 / 5)


def best_step(moments: Moments, dim: int, examples: int) -> float:
    """eta = m2/S2, the minimiser of `descent_risk`.

    >>> round(best_step(uniform_moments(0.5), 10, 10) / 10, 4), round(best_step(uniform_moments(1.0), 10, 10) / 10, 4)
    (0.6061, 0.1515)
    """
    return moments.second / _spread(moments, dim, examples)


def descent_risk(moments: Moments, dim: int, examples: int, step: float) -> float:
    """E (w . x_q - f)^2 of one step from 0, exactly; half of it is the published loss.

    >>> halves = uniform_moments(0.5)
    >>> round(descent_risk(halves, 10, 10, best_step(halves, 10, 10)), 4), round(descent_risk(halves, 10, 10, 0.0), 4)
    (0.4125, 0.8333)
    """
    square = step**2 * _spread(moments, dim, examples)
    return dim * moments.second * (1 - 2 * step * moments.second + square)


def _spread(moments: Moments, dim: int, examples: int) -> float:
    """S2, the diagonal of E (1/N X^T X)^2."""
    squared = moments.second**2
    return (moments.fourth + (dim - 1) * squared) / examples + (1 - 1 / examples) * squared


def single_step(
    weights: Float[Array, 'B F'], x: Float[Array, 'B F'], y: Float[Array, 'B'], step: float, penalty: float = 0.0
) -> Float[Array, 'B F']:
    """w - step ((w . x - y) x + penalty w): gradient descent on half the penalised squared error of one example.

    Akyurek et al. do not halve the error: this step is twice their alpha.

    >>> single_step(jnp.array([[1.0]]), jnp.array([[2.0]]), jnp.array([5.0]), step=0.25).tolist()
    [[2.5]]
    """
    error = jnp.sum(weights * x, axis=-1) - y
    return weights - step * (error[:, None] * x + penalty * weights)


def ridge_update(
    inverse: Float[Array, 'B F F'], moment: Float[Array, 'B F'], x: Float[Array, 'B F'], y: Float[Array, 'B']
) -> tuple[Float[Array, 'B F F'], Float[Array, 'B F']]:
    """(A + x x^T)^-1 = A^-1 - A^-1 x (A^-1 x)^T / (1 + x . A^-1 x) and b + y x: one more example of ridge regression.

    Before the first example A^-1 is I / penalty and b is 0; the weights are A^-1 b.

    >>> inverse, moment = ridge_update(jnp.array([[[1.0]]]), jnp.array([[0.0]]), jnp.array([[1.0]]), jnp.array([10.0]))
    >>> inverse.tolist(), moment.tolist()
    ([[[0.5]]], [[10.0]])
    """
    gain = jnp.einsum('bfg,bg->bf', inverse, x, precision=HIGHEST)
    taken = gain[:, :, None] * gain[:, None] / (1 + jnp.sum(x * gain, axis=-1))[:, None, None]
    return inverse - taken, moment + y[:, None] * x


def learnt(x: Float[Array, 'B S F'], y: Float[Array, 'B S'], penalty: float) -> dict[str, Float[Array, 'B S F']]:
    """What a probe should find before each point: the moment X_i^T y_i and the ridge weights of the i points so far.

    >>> found = learnt(jnp.array([[[1.0], [1.0]]]), jnp.array([[4.0, 0.0]]), penalty=1.0)
    >>> found['moment'][0, :, 0].tolist(), found['weights'][0, :, 0].tolist()
    ([0.0, 4.0], [0.0, 2.0])
    """
    axis_sizes('learnt', x=(x, 'B S F'), y=(y, 'B S'))

    def add(state: Pair, example: Pair) -> tuple[Pair, Pair]:
        inverse, moment = state
        weights = jnp.einsum('bfg,bg->bf', inverse, moment, precision=HIGHEST)
        return ridge_update(inverse, moment, *example), (moment, weights)

    eye = jnp.eye(x.shape[-1], dtype=x.dtype) / penalty
    start = (jnp.broadcast_to(eye[None], (len(x), *eye.shape)), jnp.zeros_like(x[:, 0]))
    _, (moments, weights) = jax.lax.scan(add, start, (jnp.moveaxis(x, 1, 0), y.T))
    return {'moment': jnp.moveaxis(moments, 0, 1), 'weights': jnp.moveaxis(weights, 0, 1)}
