"""Linear probes: what a linear map can read from a named value, layer by layer, held against what it reads anyway.

    h = (x - mean) / deviation                     of each feature, over the rows that the probe is fitted to
    ridge       W, b = argmin sum |y - h W - b|^2 + penalty |W|^2                      closed form; score R^2
    logistic    W, b = argmin sum -log softmax(h W + b)[y] + penalty/2 |W|^2           L-BFGS; score accuracy

Features [L, B, D] are a site's values of B rows, one token a row: `captured.stack('resid_post')[:, :, -1]`. A layer's
probes are fitted to the training rows, one for each penalty; the validation rows choose among them; the test rows are
what is scored. Rows that share a text belong to one part: split texts, not tokens.

A score alone says little (Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks"), so the same
is done with two others.

- The control: targets that the model cannot know, given to the rows at random. With `types` (the token of a row, say)
  all rows of a type get the same one, as in Hewitt and Liang: a probe may learn these by heart. Without, every row is a
  type of its own: shuffled targets. `selectivity` is the score less the control's.
- The baseline: a probe of the raw inputs, which know what no layer had to work out.

Choices. Features are standardised, since those of deep layers are larger, and one penalty must mean the same in all.
The penalties are scikit-learn's: alpha of Ridge, and 1/C of LogisticRegression (with two classes the softmax has two
opposite columns of half the size each: 2/C). R^2 is 1 - sum |y - f|^2 / sum |y - mean|^2 over rows and outputs, the
mean that of the scored rows: 0 is what a constant has, below 0 is worse. Probes are not fitted anew to the validation
rows.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jattn.typing import Array, Bool, Float, Int32, Key, at_least_float32, axis_sizes

HIGHEST = jax.lax.Precision.HIGHEST  # an accelerator's default would round what is fitted
STEPS = 300  # of L-BFGS, at most
TOLERANCE = 1e-4  # of the logistic loss' gradient, a row


@struct.dataclass
class Parts:
    """Numbers of the rows of each part; no row is in two.

    Attributes:
        train: what probes are fitted to.
        validation: what chooses the penalty; may be empty where there is one.
        test: what is scored.
    """

    train: Int32[Array, 'N']
    validation: Int32[Array, 'M']
    test: Int32[Array, 'S']


def split_rows(key: Key, rows: int, train: float = 0.6, validation: float = 0.2) -> Parts:
    """Parts of random rows: these shares, the rest is scored.

    Raises:
        ValueError: a share leaves no row to fit or none to score.

    >>> parts = split_rows(jax.random.key(0), 10)
    >>> len(parts.train), len(parts.validation), len(parts.test)
    (6, 2, 2)
    """
    first, second = round(train * rows), round((train + validation) * rows)
    if not 0 < first <= second < rows:
        raise ValueError(
            f'split_rows: train={train} and validation={validation} of {rows} rows must leave some to fit and to score'
        )
    order = jax.random.permutation(key, rows).astype(jnp.int32)
    return Parts(order[:first], order[first:second], order[second:])


@struct.dataclass
class Probe:
    """A fitted linear map of standardised features.

    Attributes:
        mean, deviation: of the features it was fitted to.
        weights: W.
        bias: b.
    """

    mean: Float[Array, '*L D']
    deviation: Float[Array, '*L D']
    weights: Float[Array, '*L D E']
    bias: Float[Array, '*L E']

    def __call__(self, x: Float[Array, '*L B D']) -> Float[Array, '*L B E']:
        """What it says of features."""
        h = (x - self.mean[..., None, :]) / self.deviation[..., None, :]
        return jnp.matmul(h, self.weights, precision=HIGHEST) + self.bias[..., None, :]


@struct.dataclass
class Probed:
    """Scores by layer, and what they are to be held against.

    Attributes:
        score: of the test rows.
        control: the same with the control's targets.
        baseline: of the raw inputs; None: they were not given.
        penalty: the one that was chosen.
        probes: the fitted maps, L on the leading axis.
        said: what they say of the test rows: values, or logits.
    """

    score: Float[Array, 'L']
    control: Float[Array, 'L']
    baseline: Float[Array, ''] | None
    penalty: Float[Array, 'L']
    probes: Probe
    said: Float[Array, 'L S E']

    @property
    def selectivity(self) -> Float[Array, 'L']:
        """The score less the control's."""
        return self.score - self.control


def r_squared(said: Float[Array, 'B F'], targets: Float[Array, 'B F']) -> Float[Array, '']:
    """1 - sum |y - f|^2 / sum |y - mean|^2, the mean of these rows.

    >>> targets = jnp.array([[0.0], [2.0]])
    >>> [float(r_squared(said, targets)) for said in (targets, jnp.ones((2, 1)), 2 - targets)]
    [1.0, 0.0, -3.0]
    """
    spread = jnp.sum(jnp.square(targets - jnp.mean(targets, axis=0, keepdims=True)))
    return 1 - jnp.sum(jnp.square(targets - said)) / spread


def accuracy(logits: Float[Array, 'B E'], one_hot: Float[Array, 'B E']) -> Float[Array, '']:
    """The share of rows whose largest logit is that of their class.

    >>> float(accuracy(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.eye(2)))
    0.5
    """
    return jnp.mean(jnp.argmax(logits, axis=-1) == jnp.argmax(one_hot, axis=-1))


def fit_ridge(x: Float[Array, 'B D'], y: Float[Array, 'B F'], penalty: Float[Array, '']) -> Probe:
    """Ridge regression, from the singular values of the features; penalty 0: least squares of the least norm.

    >>> probe = fit_ridge(jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[1.0], [3.0], [5.0]]), 0.0)
    >>> round(float(probe(jnp.array([[10.0]]))[0, 0]), 4)      # 1 + 2 x
    21.0
    """
    axis_sizes('fit_ridge', x=(x, 'B D'), y=(y, 'B F'))
    h, mean, deviation = _standardised(x)
    bias = jnp.mean(y, axis=0)
    left, values, right = jnp.linalg.svd(h, full_matrices=False)
    is_known = values > jnp.finfo(h.dtype).eps * max(h.shape) * jnp.max(values)
    shrunk = jnp.where(is_known, values / jnp.where(is_known, jnp.square(values) + penalty, 1), 0)
    along = jnp.matmul(left.T, y - bias[None], precision=HIGHEST)
    return Probe(mean, deviation, jnp.matmul(right.T, shrunk[:, None] * along, precision=HIGHEST), bias)


def fit_logistic(x: Float[Array, 'B D'], one_hot: Float[Array, 'B E'], penalty: Float[Array, '']) -> Probe:
    """Multinomial logistic regression, a convex problem with one minimum for a positive penalty; from W = 0.

    >>> x, classes = jnp.array([[-2.0], [-1.0], [1.0], [3.0]]), jnp.array([0, 0, 1, 1])
    >>> probe = fit_logistic(x, jax.nn.one_hot(classes, 2), 0.1)
    >>> jnp.argmax(probe(x), axis=-1).tolist()
    [0, 0, 1, 1]
    """
    axis_sizes('fit_logistic', x=(x, 'B D'), one_hot=(one_hot, 'B E'))
    h, mean, deviation = _standardised(x)

    def loss(params: tuple[Array, Array]) -> Float[Array, '']:
        weights, bias = params
        logits = jnp.matmul(h, weights, precision=HIGHEST) + bias[None]
        likelihood = jnp.sum(one_hot * jax.nn.log_softmax(logits, axis=-1))
        # A row's share, so that one tolerance serves all numbers of rows.
        return (0.5 * penalty * jnp.sum(jnp.square(weights)) - likelihood) / len(h)

    start = (jnp.zeros((h.shape[1], one_hot.shape[1]), h.dtype), jnp.zeros(one_hot.shape[1], h.dtype))
    return Probe(mean, deviation, *_minimum(loss, start))


def _minimum(loss: Callable[[tuple], Array], start: tuple) -> tuple:
    """L-BFGS until no entry of the gradient is above TOLERANCE, or for STEPS steps."""
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def is_moving(carry: tuple) -> Bool[Array, '']:
        _, _, largest, step = carry
        return (largest > TOLERANCE) & (step < STEPS)

    def move(carry: tuple) -> tuple:
        params, state, _, step = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        left = optax.tree.get(state, 'grad')
        largest = jnp.max(jnp.array([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(left)]))
        return optax.apply_updates(params, updates), state, largest, step + 1

    return jax.lax.while_loop(is_moving, move, (start, solver.init(start), jnp.inf, 0))[0]


def control_targets(key: Key, targets: Float[Array, 'B F'], types: Int32[Array, 'B'] | None) -> Float[Array, 'B F']:
    """Targets given at random: those of all rows in another order, or of one random row for each type.

    >>> targets, types = jnp.arange(6.0)[:, None], jnp.array([3, 0, 3, 3, 0, 0])
    >>> given = control_targets(jax.random.key(0), targets, types)[:, 0]
    >>> len(set(given[jnp.array([0, 2, 3])].tolist())), len(set(given[jnp.array([1, 4, 5])].tolist()))
    (1, 1)
    """
    if types is None:
        return jax.random.permutation(key, targets)
    axis_sizes('control_targets', targets=(targets, 'B F'), types=(types, 'B'))
    draw = lambda kind: jax.random.randint(jax.random.fold_in(key, kind), (), 0, len(targets))
    return targets[jax.vmap(draw)(types)]


def probe_values(
    features: Float[Array, 'L B D'],
    targets: Float[Array, 'B F'],
    parts: Parts,
    key: Key,
    *,
    penalties: Sequence[float] = (1.0, 10.0, 100.0, 1000.0),
    types: Int32[Array, 'B'] | None = None,
    inputs: Float[Array, 'B E'] | None = None,
) -> Probed:
    """R^2 of ridge regression, layer by layer.

    Args:
        features: a site's values.
        targets: what is to be read.
        parts: rows to fit, choose and score.
        key: of the control.
        penalties: to choose from.
        types: whose rows share a control's target; None: every row has its own.
        inputs: the raw inputs, for the baseline.

    Raises:
        ValueError: shapes do not fit; no penalty, or one below 0; several, and no validation rows.

    >>> x = jax.random.normal(jax.random.key(0), (2, 100, 3))
    >>> probed = probe_values(x, x[1, :, :1], split_rows(jax.random.key(1), 100), jax.random.key(2), penalties=[0.01])
    >>> bool(probed.score[1] > 0.99), bool(probed.score[0] < 0.3), bool(probed.control[1] < 0.3)
    (True, True, True)
    """
    return _probe(fit_ridge, r_squared, features, targets, parts, key, penalties, types, inputs)


def probe_classes(
    features: Float[Array, 'L B D'],
    labels: Int32[Array, 'B'],
    parts: Parts,
    key: Key,
    *,
    classes: int,
    penalties: Sequence[float] = (1.0, 10.0, 100.0),
    types: Int32[Array, 'B'] | None = None,
    inputs: Float[Array, 'B E'] | None = None,
) -> Probed:
    """Accuracy of logistic regression, layer by layer.

    Args:
        features, parts, key, types, inputs: as of `probe_values`.
        labels: 0 .. classes - 1.
        classes: how many there are.
        penalties: to choose from; positive, since classes that can be parted have no best weights without.

    Raises:
        ValueError: as of `probe_values`; a penalty that is not positive.
    """
    axis_sizes('probe_classes', features=(features, 'L B D'), labels=(labels, 'B'))
    if min(penalties, default=1) <= 0:
        raise ValueError(f'probe_classes: penalties={tuple(penalties)} must all be positive')
    one_hot = jax.nn.one_hot(labels, classes, dtype=at_least_float32(features))
    return _probe(fit_logistic, accuracy, features, one_hot, parts, key, penalties, types, inputs)


Fit = Callable[[Array, Array, Array], Probe]
Score = Callable[[Array, Array], Array]


def _probe(
    fit: Fit,
    score: Score,
    features: Array,
    targets: Array,
    parts: Parts,
    key: Key,
    penalties: Sequence[float],
    types: Array | None,
    inputs: Array | None,
) -> Probed:
    """The probes, the control and the baseline."""
    axis_sizes('probe', features=(features, 'L B D'), targets=(targets, 'B F'), types=(types, 'B'))
    axis_sizes('probe', inputs=(inputs, 'B E'), targets=(targets, 'B F'))
    if not len(penalties) or min(penalties) < 0:
        raise ValueError(f'probe: penalties={tuple(penalties)} must name at least one, none below 0')
    if len(penalties) > 1 and not len(parts.validation):
        raise ValueError(f'probe: penalties={tuple(penalties)} are to be chosen from, but parts.validation has no rows')
    tried = jnp.asarray(penalties, at_least_float32(features))
    measure = functools.partial(_by_layer, fit, score, parts=parts, penalties=tried)
    found, penalty, probes, said = measure(features, targets)
    control = measure(features, control_targets(key, targets, types))[0]
    baseline = None if inputs is None else measure(inputs[None], targets)[0][0]
    return Probed(found, control, baseline, penalty, probes, said)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _by_layer(
    fit: Fit, score: Score, features: Array, targets: Array, parts: Parts, penalties: Array
) -> tuple[Array, Array, Probe, Array]:
    """Scores, chosen penalties, probes and what they say, of every layer."""

    def one(x: Float[Array, 'B D']) -> tuple[Array, Array, Probe, Array]:
        fitted = jax.vmap(lambda penalty: fit(x[parts.train], targets[parts.train], penalty))(penalties)
        if len(penalties) > 1:
            says = lambda probe: score(probe(x[parts.validation]), targets[parts.validation])
            best = jnp.argmax(jax.vmap(says)(fitted))
        else:
            best = 0
        probe = jax.tree.map(lambda leaf: leaf[best], fitted)
        said = probe(x[parts.test])
        return score(said, targets[parts.test]), penalties[best], probe, said

    return jax.vmap(one)(features.astype(at_least_float32(features)))


def _standardised(x: Float[Array, 'B D']) -> tuple[Float[Array, 'B D'], Float[Array, 'D'], Float[Array, 'D']]:
    """Features of mean 0 and deviation 1, and what they had; one that does not vary stays near 0."""
    mean, deviation = jnp.mean(x, axis=0), jnp.std(x, axis=0)
    # A constant's mean is rounded: what is left of it must not be blown up to deviation 1.
    varies = deviation > 10 * jnp.finfo(x.dtype).eps * jnp.abs(mean)
    deviation = jnp.where(varies, deviation, 1)
    return (x - mean[None]) / deviation[None], mean, deviation
