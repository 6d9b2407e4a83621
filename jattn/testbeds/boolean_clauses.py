"""ANDs and ORs of literals, ORs of ANDs and ANDs of ORs: one class, since an OR is the dual of an AND.

    f(x) = +1 iff, for some clause c, x_j = w_cj wherever w_cj is not 0       dual: y(x) = -f(-x), with the same w

The dual of an OR of ANDs is an AND of ORs of the same literals. An empty AND is always +1, an empty OR always -1. Since
a random AND is nearly always false, each point is, with the probability `forced`, moved to where one clause of the row,
drawn once, is true (of a dual: to where it is false), its free coordinates left as they are.

A teaching sequence tells a function from all others of its class in few points. Their order is fixed:

    AND of k coordinates   k + 1   these on, the rest off (+); then the same with one of the k off at a time (-)
    AND of k literals      k + 2   all true, free coordinates off (+), and on (+); then the first of these with one
                                   literal false at a time (-), un-negated literals first
    OR of such ANDs        sum     the blocks one behind the other, labelled by the whole function

The last is sure to do so only if no clause contains another, or if one is empty: a redundant clause leaves room for
others.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jattn.testbeds.boolean_family import Family, Params, all_subsets, products, random_subsets
from jattn.typing import Array, Float, Int32, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clauses(Family):
    """An OR of ANDs of literals, or its dual, an AND of ORs.

        f(x) = +1 iff, for some clause c, x_j = w_cj wherever w_cj is not 0       dual: y(x) = -f(-x), with the same w

    An empty AND is always +1, an empty OR always -1.

    Attributes:
        clauses: C, how many.
        positive: probability of a coordinate to stand in a clause.
        negated: probability of its negation to stand there.
        dual: an AND of ORs.

    >>> xor = {'weights': jnp.array([[[1, -1], [-1, 1]]])}
    >>> points = jnp.array([[[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]])
    >>> Clauses(clauses=2).label(xor, points).tolist(), Clauses(clauses=2, dual=True).label(xor, points).tolist()
    ([[-1.0, 1.0, -1.0]], [[1.0, -1.0, 1.0]])
    """

    clauses: int = 1
    positive: float = 0.0
    negated: float = 0.0
    dual: bool = False

    @property
    def sign(self) -> int:
        """s of y(x) = s f(s x)."""
        return -1 if self.dual else 1

    def draw(self, key: Key, batch: int, inputs: int) -> Params:
        weight_key, clause_key = jax.random.split(key)
        u = jax.random.uniform(weight_key, (batch, self.clauses, inputs))
        positive = (u < self.positive).astype(jnp.int32)
        weights = jnp.where(u >= 1 - self.negated, -1, positive)
        return {'weights': weights, 'clause': jax.random.randint(clause_key, (batch,), 0, self.clauses, jnp.int32)}

    def label(self, params: Params, x: Float[Array, 'B S F']) -> Float[Array, 'B S']:
        weights = self.sign * params['weights'].astype(x.dtype)
        literals = jnp.sum(jnp.abs(weights), axis=-1)
        is_true = jnp.einsum('bsf,bcf->bsc', x, weights) == literals[:, None, :]
        return jnp.where(jnp.any(is_true, axis=-1), self.sign, -self.sign).astype(x.dtype)

    def shape_inputs(self, key: Key, params: Params, x: Float[Array, 'B S F'], forced: float) -> Float[Array, 'B S F']:
        clause = params['clause'][:, None, None]
        weights = self.sign * jnp.take_along_axis(params['weights'], clause, axis=1).astype(x.dtype)
        is_forced = jax.random.bernoulli(key, forced, x.shape[:2])[:, :, None]
        return jnp.where(is_forced & (weights != 0), weights, x)

    def balance(self, inputs: int, forced: float) -> float:
        """At an x with o coordinates on, a clause is true with (1 - negated)^o (1 - positive)^(F - o)."""
        is_true = 0.0
        for on in range(inputs + 1):
            clause = (1 - self.negated) ** on * (1 - self.positive) ** (inputs - on)
            is_true += math.comb(inputs, on) / 2**inputs * (1 - (1 - clause) ** self.clauses)
        return self._shaped_balance(is_true, forced)

    def _shaped_balance(self, is_true: float, forced: float) -> float:
        shaped = forced + (1 - forced) * is_true
        return 1 - shaped if self.dual else shaped

    def literal_chances(self, inputs: int) -> np.ndarray:
        """How likely a clause has 0 .. F literals, [F + 1]."""
        p = self.positive + self.negated
        return np.array([math.comb(inputs, k) * p**k * (1 - p) ** (inputs - k) for k in range(inputs + 1)])

    def longest_block(self, inputs: int) -> int | None:
        """Of ANDs, and of monotone ORs of them."""
        if self.dual or (self.clauses > 1 and self.negated):
            return None
        return self.clauses * (inputs + self._heads)

    @property
    def _heads(self) -> int:
        """Positive points of a clause's block: a second one tells a free coordinate from a negated one."""
        return 2 if self.negated else 1

    def teach(self, params: Params, points: int) -> tuple[Float[Array, 'B S F'], Int32[Array, 'B']]:
        weights = params['weights']
        is_on, is_literal = (weights > 0).astype(jnp.int32), (weights != 0).astype(jnp.int32)
        is_negated = is_literal - is_on
        rank = jnp.where(is_on, jnp.cumsum(is_on, -1), jnp.sum(is_on, -1, keepdims=True) + jnp.cumsum(is_negated, -1))

        lengths = jnp.sum(is_literal, axis=-1) + self._heads
        starts = jnp.cumsum(lengths, axis=-1) - lengths
        place = jnp.arange(points)[None, None, :] - starts[:, :, None]
        is_here = (place >= 0) & (place < lengths[:, :, None])

        weights, rank, literal = (a[:, :, None, :] for a in (weights, rank, is_literal > 0))
        is_false = rank == place[..., None] - self._heads + 1
        free = jnp.where((place == 1) & (self._heads == 2), 1, -1)[..., None]
        blocks = jnp.where(literal, jnp.where(is_false, -weights, weights), free)
        x = jnp.sum(jnp.where(is_here[..., None], blocks, 0), axis=1)
        return x.astype(jnp.float32), jnp.sum(lengths, axis=1)

    def all_functions(self, inputs: int) -> tuple[Params, np.ndarray] | None:
        """Of one clause: every choice of literals."""
        chances = {0: 1 - self.positive - self.negated, 1: self.positive, -1: self.negated}
        found = products(chances, inputs) if self.clauses == 1 else None
        if found is None:
            return None
        weights, log_prior = found
        return {'weights': weights[:, None, :], 'clause': np.zeros(len(weights), np.int32)}, log_prior

    def log_density(self, params: Params, y: Float[Array, 'B S'], forced: float) -> Float[Array, 'B S']:
        """Of one clause of k literals: forced points have 2^-k of the cube to themselves."""
        literals = jnp.sum(jnp.abs(params['weights']), axis=(1, 2)).astype(y.dtype)[:, None]
        return jnp.log1p(forced * (jnp.where(y == self.sign, 2**literals, 0) - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseClause(Clauses):
    """An AND (dual: an OR) of so many coordinates, any of them.

    >>> SparseClause(literals=2).draw(jax.random.key(0), 1, 4)['weights'].tolist()
    [[[1, 1, 0, 0]]]
    """

    literals: int

    @property
    def fewest_inputs(self) -> int:
        return self.literals

    def draw(self, key: Key, batch: int, inputs: int) -> Params:
        return {
            'weights': random_subsets(key, batch, self.literals, inputs)[:, None],
            'clause': jnp.zeros(batch, jnp.int32),
        }

    def balance(self, inputs: int, forced: float) -> float:
        """A point is true with 2^-literals."""
        return self._shaped_balance(2.0**-self.literals, forced)

    def literal_chances(self, inputs: int) -> np.ndarray:
        return np.eye(inputs + 1)[self.literals]

    def longest_block(self, inputs: int) -> int | None:
        return None

    def all_functions(self, inputs: int) -> tuple[Params, np.ndarray] | None:
        weights = all_subsets(self.literals, inputs)
        if weights is None:
            return None
        clause = np.zeros(len(weights), np.int32)
        return {'weights': weights[:, None, :], 'clause': clause}, np.full(len(weights), -math.log(len(weights)))
