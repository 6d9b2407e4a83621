"""What exact learners say of each point of a Boolean prompt, from the labelled points before it alone.

All take points x [B, S, F] and labels y [B, S], -1 or +1, and give answers [B, S]: the sign is the predicted label, 0
none. Point i is answered from the points before i, all i at once.

- `elimination`: of an AND of literals. Keep what no positive example refutes; say +1 iff all of it holds. It is never
  wrong in saying +1 (Valiant 1984).
- `nearest_neighbours`: the vote of the k most similar points, the earliest of equals.
- `averaging`: sign(x_i . sum_j y_j x_j).
- `parity_elimination`: Gaussian elimination over GF(2). A parity is linear: a point in the span of earlier ones has a
  known label; every other is a fair coin, so this is Bayes' answer for a random subset.
- `posterior`: Bayes' answer for a class that is written out, at any prior, shaping of inputs and label noise.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jattn.typing import Array, Float, Int32

IMPOSSIBLE = -1e6  # log-likelihood of a label that a function cannot have; finite, so that no sum is NaN


def before(values: Array) -> Array:
    """Moves values [B, S, ...] one point on; the first gets 0.

    >>> before(jnp.array([[1, 2, 3]])).tolist()
    [[0, 1, 2]]
    """
    return jnp.pad(values[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (values.ndim - 2))


def elimination(x: Float[Array, 'B S F'], y: Float[Array, 'B S'], negations: bool = True) -> Float[Array, 'B S']:
    """The elimination learner of an AND; for an OR, by duality, it is -elimination(-x, -y).

    Args:
        x: points.
        y: labels.
        negations: whether negated coordinates are literals too.

    >>> x = jnp.array([[[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]])
    >>> elimination(x, jnp.array([[1.0, 1.0, 1.0, -1.0]])).tolist()
    [[-1.0, -1.0, 1.0, -1.0]]
    """
    is_positive = (y > 0)[:, :, None]
    literals = jnp.concatenate([x, -x], axis=-1) if negations else x
    refuted = jnp.cumsum(before((is_positive & (literals < 0)).astype(jnp.int32)), axis=1) > 0
    holds = jnp.all(refuted | (literals > 0), axis=-1)
    return jnp.where(holds, 1, -1).astype(x.dtype)


def nearest_neighbours(x: Float[Array, 'B S F'], y: Float[Array, 'B S'], neighbours: int) -> Float[Array, 'B S']:
    """The sum of the labels of the most similar earlier points, of fewer where there are not so many.

    >>> x = jnp.array([[[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]])
    >>> y = jnp.array([[1.0, -1.0, 1.0]])
    >>> nearest_neighbours(x, y, 1).tolist(), nearest_neighbours(x, y, 3).tolist()     # the last one's are equally near
    ([[0.0, 1.0, 1.0]], [[0.0, 1.0, 0.0]])
    """
    points, inputs = x.shape[1:]
    similar = jnp.einsum('bsf,btf->bst', x, x).astype(jnp.int32)  # exact: sums of at most F signs
    place = jnp.arange(points, dtype=jnp.int32)
    is_earlier = (place[:, None] > place[None, :])[None]
    # One whole number, different for each, orders by similarity and then by place.
    order = jnp.where(is_earlier, (similar + inputs) * points + (points - place)[None, None, :], -1)
    vote = jnp.zeros_like(y)
    for _ in range(neighbours):
        is_best = (order >= 0) & (order == jnp.max(order, axis=-1, keepdims=True))
        vote = vote + jnp.sum(jnp.where(is_best, y[:, None, :], 0), axis=-1)
        order = jnp.where(is_best, -1, order)
    return vote


def averaging(x: Float[Array, 'B S F'], y: Float[Array, 'B S']) -> Float[Array, 'B S']:
    """x_i . sum_{j < i} y_j x_j: the labels, weighted by similarity.

    >>> averaging(jnp.array([[[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]]), jnp.array([[1.0, 1.0, 1.0]])).tolist()
    [[0.0, 0.0, 2.0]]
    """
    # No matrix product: the sums are whole numbers that a product in bfloat16 would round.
    return jnp.sum(x * jnp.cumsum(before(y[:, :, None] * x), axis=1), axis=-1)


def parity_elimination(
    x: Float[Array, 'B S F'], y: Float[Array, 'B S']
) -> tuple[Float[Array, 'B S'], Int32[Array, 'B S']]:
    """What follows for each point from a linear map over GF(2), and the rank of the points before it.

    A reduced basis is carried along, one row for each pivot: the basis vector and the label bit of their sum.

    >>> x = jnp.array([[[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]])
    >>> answers, ranks = parity_elimination(x, jnp.array([[1.0, 1.0, -1.0, -1.0]]))
    >>> answers.tolist(), ranks.tolist()
    ([[0.0, 0.0, -1.0, -1.0]], [[0, 1, 2, 2]])
    """
    batch, _, inputs = x.shape
    vectors = (jnp.concatenate([x, y[:, :, None]], axis=-1) > 0).astype(jnp.int32)

    def step(basis: Int32[Array, 'B F F+1'], vector: Int32[Array, 'B F+1']) -> tuple[Array, tuple[Array, Array]]:
        used = jnp.diagonal(basis, axis1=1, axis2=2)
        # Reduced: a basis vector is 0 at the pivots of all others, so one sum clears every pivot.
        rest = (vector + jnp.sum(vector[:, :-1, None] * basis, axis=1, dtype=jnp.int32)) % 2
        is_new = jnp.any(rest[:, :-1] > 0, axis=-1)
        # In the span, the sum of the basis has the point's label: the bit that the rest has, less the label itself.
        bit = (rest[:, -1] + vector[:, -1]) % 2
        answer = jnp.where(is_new, 0, 2 * bit - 1)
        pivot = jax.nn.one_hot(jnp.argmax(rest[:, :-1], axis=-1), inputs, dtype=jnp.int32) * is_new[:, None]
        has_pivot = jnp.sum(basis[:, :, :-1] * pivot[:, None, :], axis=-1, dtype=jnp.int32)
        rows = has_pivot + pivot
        return (basis + rows[:, :, None] * rest[:, None, :]) % 2, (answer, jnp.sum(used, axis=-1, dtype=jnp.int32))

    basis = jnp.zeros((batch, inputs, inputs + 1), jnp.int32)
    _, (answers, ranks) = jax.lax.scan(step, basis, jnp.moveaxis(vectors, 1, 0))
    return answers.T.astype(x.dtype), ranks.T


def posterior(
    labels: Float[Array, 'B S N'],
    y: Float[Array, 'B S'],
    log_prior: Float[Array, 'N'],
    log_density: Float[Array, 'B S N'],
    label_noise: float = 0.0,
) -> Float[Array, 'B S']:
    """Bayes' log-odds of y_i = +1, from the earlier points and labels and from where x_i lies.

        log w_n(i) = log prior_n + sum_{j < i} log P(y_j | f_n(x_j)) + sum_{j <= i} log p(x_j | f_n)

    Args:
        labels: f_n(x_i), what each of the N functions says.
        y: labels that were shown.
        log_prior: of the functions.
        log_density: log p(x_i | f_n) up to what all functions share; 0 where inputs do not depend on the function.
        label_noise: probability that a label is turned.

    >>> labels = jnp.array([[[1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]])
    >>> odds = posterior(labels, jnp.array([[1.0, 1.0]]), jnp.zeros(4), jnp.zeros((1, 2, 4)))
    >>> jnp.exp(odds).round(4).tolist()     # 3 : 1, then 2 : 1
    [[3.0, 2.0]]
    """
    right, turned = math.log1p(-label_noise), math.log(label_noise) if label_noise else IMPOSSIBLE
    seen = jnp.where(labels == y[:, :, None], right, turned) + log_density
    weights = log_prior[None, None, :] + jnp.cumsum(before(seen), axis=1) + log_density
    plus = jax.nn.logsumexp(jnp.where(labels > 0, weights, -jnp.inf), axis=-1)
    minus = jax.nn.logsumexp(jnp.where(labels > 0, -jnp.inf, weights), axis=-1)
    if label_noise:
        plus, minus = jnp.logaddexp(plus + right, minus + turned), jnp.logaddexp(plus + turned, minus + right)
    return plus - minus


def elimination_accuracy(
    literals: Float[np.ndarray, 'F+1'], points: int, forced: float, negations: bool = True
) -> Float[np.ndarray, 'S']:
    """How often `elimination` is right at each point, exactly.

    Only a positive point is got wrong. After P positive examples a coordinate that is not in the function speaks
    against it with probability 2^-P: both its literals had to survive P fair flips, and one is false. (Without
    negations 2^-(P + 1); with them nothing is said to be true at P = 0.)

    Args:
        literals: probability of each number of literals, 0 .. F.
        points: S.
        forced: probability that a point is moved to where the function is true.
        negations: whether negated coordinates are literals too.

    >>> elimination_accuracy(np.array([0.0, 1.0]), 3, 0.0).tolist()     # f(x) = x, one input
    [0.5, 0.75, 0.875]
    """
    inputs, curve = len(literals) - 1, np.zeros(points)
    for k, chance in enumerate(literals):
        is_true = forced + (1 - forced) * 2.0**-k
        for i in range(points):
            positives = np.arange(i + 1)
            counts = np.array([math.comb(i, p) * is_true**p * (1 - is_true) ** (i - p) for p in positives])
            agrees = (1 - 2.0 ** -(positives + (not negations))) ** (inputs - k)
            if negations:
                agrees[0] = 0
            curve[i] += chance * (1 - is_true + is_true * np.sum(counts * agrees))
    return curve


def parity_known(inputs: int, points: int) -> Float[np.ndarray, 'S']:
    """How often a uniform point lies in the span of the points before it, exactly: E 2^(rank - F).

    A new vector raises the rank from r with probability 1 - 2^(r - F). Bayes is right in these cases and in half of the
    others.

    >>> parity_known(1, 3).tolist()
    [0.5, 0.75, 0.875]
    """
    ranks, span = np.eye(inputs + 1)[0], 2.0 ** (np.arange(inputs + 1) - inputs)
    known = []
    for _ in range(points):
        known.append(ranks @ span)
        raised = ranks * (1 - span)
        ranks = ranks * span + np.concatenate([[0.0], raised[:-1]])
    return np.array(known)
