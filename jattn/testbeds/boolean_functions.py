"""The classes of Boolean functions: what one says, how it is drawn, how its inputs are shaped.

| name                 | y(x)                           | how a function is drawn                          | forced   |
| -------------------- | ------------------------------ | ------------------------------------------------ | -------- |
| conjunction          | AND of literals                | coordinate: absent .7, positive .15, negated .15 | .3 true  |
| disjunction          | OR of literals                 | the same                                         | .3 false |
| sparse_disjunction   | OR of 4 coordinates            | any four                                         | .3 false |
| dnf                  | OR of 3 ANDs                   | in each clause .8, .1, .1                        | .35 true |
| cnf                  | AND of 3 ORs                   | the same                                         | .3 false |
| monotone_conjunction | AND of coordinates             | each with .3                                     | .4 true  |
| monotone_dnf         | OR of 3 ANDs of coordinates    | in each clause each with .2                      | .35 true |
| threshold            | sign(w . x - b)                | w: 0 .7, +-1 .15 each; b: +-.5, +-1.5, +-2.5     |          |
| int_halfspace        | sign(w . x - .5)               | w uniform in -3 .. 3                             |          |
| majority             | sign(w . x - .5)               | w: 1 with .3, else 0: of an unknown subset       |          |
| parity               | +1 if oddly many of S are +1   | S any subset: F fair bits                        |          |
| sparse_parity        | the same                       | S any two                                        |          |
| nearest_neighbours   | label of the nearest before it | fair coins for the first points                  |          |

Of Bhattamishra, Patel, Blunsom and Kanade (2023), with the probabilities of their code. Inputs are uniform but for the
`forced` share of points (`boolean_clauses`). `conjunction`, the two monotone classes and `parity` have teaching
sequences; that of a parity is one coordinate on at a time. In a task with teaching, conjunctions are forced with .4, as
in the authors' task with teaching sequences, and so in all rows of a mixture: these differ in the sequence alone.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jattn.testbeds.boolean_clauses import Clauses, SparseClause
from jattn.testbeds.boolean_family import Family, Params, all_subsets, products, random_subsets
from jattn.typing import Array, Float, Int32, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halfspace(Family):
    """sign(w . x - b); w is whole and b half-way between, so there are no ties.

    Attributes:
        weights: the values of a weight, with their probabilities.
        thresholds: the values of b, equally likely.

    >>> FUNCTIONS['majority'].label({'weights': jnp.array([[1, 1, 0]]), 'threshold': jnp.array([0.5])},
    ...                             jnp.array([[[1.0, 1.0, -1.0], [1.0, -1.0, 1.0]]])).tolist()
    [[1.0, -1.0]]
    """

    weights: tuple[tuple[int, float], ...]
    thresholds: tuple[float, ...] = (0.5,)

    def draw(self, key: Key, batch: int, inputs: int) -> Params:
        weight_key, threshold_key = jax.random.split(key)
        values, chances = zip(*self.weights)
        u = jax.random.uniform(weight_key, (batch, inputs))
        above = [(u >= edge).astype(jnp.int32) * (b - a) for edge, a, b in zip(np.cumsum(chances), values, values[1:])]
        which = jax.random.randint(threshold_key, (batch,), 0, len(self.thresholds))
        return {'weights': values[0] + sum(above), 'threshold': jnp.asarray(self.thresholds, jnp.float32)[which]}

    def label(self, params: Params, x: Float[Array, 'B S F']) -> Float[Array, 'B S']:
        total = jnp.einsum('bsf,bf->bs', x, params['weights'].astype(x.dtype))
        return jnp.where(total > params['threshold'].astype(x.dtype)[:, None], 1, -1).astype(x.dtype)

    def balance(self, inputs: int, forced: float) -> float:
        """By convolution: a term w_j x_j is +w_j or -w_j with equal chances."""
        widest = max(abs(value) for value, _ in self.weights)
        term = np.zeros(2 * widest + 1)
        for value, chance in self.weights:
            term[widest + value] += chance / 2
            term[widest - value] += chance / 2
        total = np.ones(1)
        for _ in range(inputs):
            total = np.convolve(total, term)
        sums = np.arange(len(total)) - widest * inputs
        return float(np.mean([total[sums > threshold].sum() for threshold in self.thresholds]))

    def all_functions(self, inputs: int) -> tuple[Params, np.ndarray] | None:
        found = products(dict(self.weights), inputs, len(self.thresholds))
        if found is None:
            return None
        weights, log_prior = found
        times, thresholds = len(self.thresholds), np.tile(np.float32(self.thresholds), len(weights))
        params = {'weights': np.repeat(weights, times, axis=0), 'threshold': thresholds}
        return params, np.repeat(log_prior, times) - math.log(times)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity(Family):
    """+1 if an odd number of the coordinates of a subset is on.

    Attributes:
        size: of the subset; None: any.

    >>> points = jnp.array([[[1.0, 1.0, 1.0], [1.0, 1.0, -1.0]]])
    >>> Parity().label({'subset': jnp.array([[1, 0, 1]])}, points).tolist()
    [[-1.0, 1.0]]
    """

    size: int | None = None

    @property
    def fewest_inputs(self) -> int:
        return self.size or 1

    def draw(self, key: Key, batch: int, inputs: int) -> Params:
        if self.size is None:
            return {'subset': jax.random.bernoulli(key, 0.5, (batch, inputs)).astype(jnp.int32)}
        return {'subset': random_subsets(key, batch, self.size, inputs)}

    def label(self, params: Params, x: Float[Array, 'B S F']) -> Float[Array, 'B S']:
        on = jnp.einsum('bsf,bf->bs', (x > 0).astype(x.dtype), params['subset'].astype(x.dtype))
        return 2 * (on % 2) - 1

    def balance(self, inputs: int, forced: float) -> float:
        """The empty parity is always -1, any other is fair."""
        return (1 - 2.0**-inputs) / 2 if self.size is None else 0.5

    def longest_block(self, inputs: int) -> int | None:
        return inputs if self.size is None else None

    def teach(self, params: Params, points: int) -> tuple[Float[Array, 'B S F'], Int32[Array, 'B']]:
        batch, inputs = params['subset'].shape
        x = 2 * jnp.eye(points, inputs) - 1
        return jnp.broadcast_to(x[None], (batch, points, inputs)), jnp.full(batch, inputs)

    def all_functions(self, inputs: int) -> tuple[Params, np.ndarray] | None:
        """Of a known size; Gaussian elimination is exact for the others."""
        subsets = None if self.size is None else all_subsets(self.size, inputs)
        return None if subsets is None else ({'subset': subsets}, np.full(len(subsets), -math.log(len(subsets))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearestNeighbours(Family):
    """The label of the most similar earlier point, the earliest of equals; the first labels are fair coins.

    All points have the same norm, so that the cosine of the paper is the dot product, which is exact. Among the first
    points an equal of an earlier point has its label.

    Attributes:
        seeds: how many points have coins.

    >>> points = jnp.array([[[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [1.0, -1.0, -1.0]]])
    >>> NearestNeighbours(seeds=3).label({'coins': jnp.array([[1.0, -1.0, -1.0]])}, points).tolist()
    [[1.0, -1.0, 1.0, -1.0]]
    """

    seeds: int = 20

    @property
    def unscored(self) -> int:
        return self.seeds

    def draw(self, key: Key, batch: int, inputs: int) -> Params:
        return {'coins': 2 * jax.random.bernoulli(key, 0.5, (batch, self.seeds)).astype(jnp.float32) - 1}

    def label(self, params: Params, x: Float[Array, 'B S F']) -> Float[Array, 'B S']:
        points, inputs = x.shape[1:]
        place = jnp.arange(points)
        is_earlier = place[:, None] > place[None, :]
        similar = jnp.where(is_earlier[None], jnp.einsum('bsf,btf->bst', x, x), -inputs - 1)
        copies = (place[None, :] >= self.seeds) | (jnp.max(similar, axis=-1) == inputs)
        source = jnp.where(copies, jnp.argmax(similar, axis=-1), place[None, :])
        # Each jump doubles how many copies of copies are followed.
        for _ in range(max(points - 1, 1).bit_length()):
            source = jnp.take_along_axis(source, source, axis=1)
        return jnp.take_along_axis(params['coins'], source, axis=1).astype(x.dtype)

    def balance(self, inputs: int, forced: float) -> float:
        """Turning all coins turns all labels."""
        return 0.5


SIGNS = ((0, 0.7), (1, 0.15), (-1, 0.15))
FUNCTIONS: dict[str, Family] = {
    'conjunction': Clauses(positive=0.15, negated=0.15, forced=0.3, forced_if_taught=0.4),
    'disjunction': Clauses(positive=0.15, negated=0.15, forced=0.3, dual=True),
    'sparse_disjunction': SparseClause(literals=4, forced=0.3, dual=True),
    'dnf': Clauses(clauses=3, positive=0.1, negated=0.1, forced=0.35),
    'cnf': Clauses(clauses=3, positive=0.1, negated=0.1, forced=0.3, dual=True),
    'monotone_conjunction': Clauses(positive=0.3, forced=0.4, forced_if_taught=0.4),
    'monotone_dnf': Clauses(clauses=3, positive=0.2, forced=0.35, forced_if_taught=0.35),
    'threshold': Halfspace(weights=SIGNS, thresholds=(-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)),
    'int_halfspace': Halfspace(weights=tuple((value, 1 / 7) for value in range(-3, 4))),
    'majority': Halfspace(weights=((0, 0.7), (1, 0.3))),
    'parity': Parity(),
    'sparse_parity': Parity(size=2),
    'nearest_neighbours': NearestNeighbours(),
}
