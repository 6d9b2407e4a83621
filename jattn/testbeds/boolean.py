"""In-context learning of Boolean functions: predict the label of each point from the labelled points before it.

    tokens   2i: x_i in {-1, +1}^F        2i + 1: (y_i, 0, ..., 0)        output at 2i: the logit of y_i = +1

One function f of the class `function` is drawn for each row, y_i = f(x_i); all S points are scored, the first included
(of nearest_neighbours: those whose label is not a coin). After Bhattamishra, Patel, Blunsom and Kanade, "Understanding
In-Context Learning in Transformers and LLMs by Learning to Learn Discrete Functions" (2023); the classes and where
their points come from stand in `boolean_functions`, the exact learners in `boolean_solvers`.

- `teaching`: the probability that a row begins with its function's teaching sequence. Both kinds of rows of a mixture
  are scored apart: one model can hold two algorithms and choose. The authors' code has no mixture.
- `label_noise`: the probability that a label is the wrong one, in what is shown and in what is scored alike.
- A parity is drawn as F fair bits (the code lists all 2^F subsets), and neighbours are compared in whole numbers (the
  code rounds cosines, which parts ties).
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.config import nearest
from jattn.nn.losses import Mean
from jattn.testbeds import boolean_solvers as solvers
from jattn.testbeds.boolean_clauses import Clauses
from jattn.testbeds.boolean_family import Family, Params
from jattn.testbeds.boolean_functions import FUNCTIONS, NearestNeighbours, Parity
from jattn.testbeds.discrete import CERTAIN
from jattn.testbeds.points import at_points, interleave, split_points
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Key, Shape, at_least_float32


def random_signs(key: Key, shape: Shape) -> Float[Array, '...']:
    """Fair signs -1 or +1, 32 of them from each random word of a row."""
    rows, size = shape[0], math.prod(shape[1:])
    words = jax.random.bits(key, (rows, -(-size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None, None, :]) & 1
    return 2 * bits.reshape(rows, -1)[:, :size].reshape(shape).astype(jnp.float32) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boolean(Task):
    """One Boolean function a row.

    Attributes:
        function: a name of `FUNCTIONS`.
        inputs: F (the paper's n).
        points: S (the paper's m); a row has 2S tokens.
        teaching: probability that a row begins with its function's teaching sequence.
        label_noise: probability that a label is turned.
        seed_points: of nearest_neighbours alone: the first points, whose labels are coins and are not scored.

    >>> batch = Boolean(function='majority', inputs=3, points=2).sample(jax.random.key(0), 1)
    >>> batch.inputs[0].tolist(), batch.targets[0, :, 0].tolist()
    ([[1.0, -1.0, 1.0], [-1.0, 0.0, 0.0], [-1.0, -1.0, 1.0], [-1.0, 0.0, 0.0]], [-1.0, 0.0, -1.0, 0.0])
    >>> {name: round(value, 4) for name, value in Boolean().facts().items()}      # doctest: +NORMALIZE_WHITESPACE
    {'positive': 0.4378, 'chance_accuracy': 0.5622, 'chance_loss': 0.6854,
     'elimination_accuracy': 0.8948, 'elimination_last_accuracy': 0.9993}
    """

    kind: ClassVar[str] = 'continuous'
    output_size: ClassVar[int] = 1

    function: str = 'conjunction'
    inputs: int = 10
    points: int = 40
    teaching: float = 0.0
    label_noise: float = 0.0
    seed_points: int = 20

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            raise ValueError(f'Boolean: function={self.function} is unknown; {nearest(self.function, FUNCTIONS)}')
        fewest = FUNCTIONS[self.function].fewest_inputs
        if self.inputs < fewest:
            raise ValueError(f'Boolean: inputs={self.inputs} must be at least {fewest} for {self.function}')
        if self.points < 1:
            raise ValueError(f'Boolean: points={self.points} must be at least 1')
        if not 0 <= self.teaching <= 1:
            raise ValueError(f'Boolean: teaching={self.teaching} must lie in 0..1, it is a probability')
        if not 0 <= self.label_noise <= 0.5:
            raise ValueError(f'Boolean: label_noise={self.label_noise} must lie in 0..0.5')
        if self.teaching:
            self._check_block()
        if self.function == 'nearest_neighbours' and not 1 <= self.seed_points < self.points:
            raise ValueError(
                f'Boolean: seed_points={self.seed_points} must be at least 1 and less than points={self.points}'
            )

    def _check_block(self) -> None:
        longest = FUNCTIONS[self.function].longest_block(self.inputs)
        if longest is None:
            taught = [name for name, function in FUNCTIONS.items() if function.longest_block(self.inputs)]
            raise ValueError(
                f'Boolean: teaching={self.teaching}, but {self.function} has no teaching sequence; '
                f'these have one: {", ".join(taught)}'
            )
        if self.points < longest:
            raise ValueError(
                f'Boolean: points={self.points} must be at least {longest}, the longest teaching sequence of '
                f'{self.function} with inputs={self.inputs}'
            )

    @property
    def input_size(self) -> int:
        return self.inputs

    @property
    def family(self) -> Family:
        """The class of functions."""
        family = FUNCTIONS[self.function]
        return NearestNeighbours(seeds=self.seed_points) if isinstance(family, NearestNeighbours) else family

    @property
    def forced(self) -> float:
        """The share of points that are moved to where the function is true (of a dual one: false)."""
        return self.family.forced_if_taught if self.teaching else self.family.forced

    def sample(self, key: Key, batch: int) -> Batch:
        draw_key, point_key, shape_key, teach_key, noise_key = jax.random.split(key, 5)
        family = self.family
        params = family.draw(draw_key, batch, self.inputs)
        x = random_signs(point_key, (batch, self.points, self.inputs))
        x = family.shape_inputs(shape_key, params, x, self.forced)
        taught = jax.random.bernoulli(teach_key, self.teaching, (batch,))
        if self.teaching:
            block, length = family.teach(params, self.points)
            is_block = jnp.arange(self.points)[None, :] < jnp.where(taught, length, 0)[:, None]
            x = jnp.where(is_block[:, :, None], block, x)
        clean = family.label(params, x)
        turned = jax.random.bernoulli(noise_key, self.label_noise, clean.shape) if self.label_noise else False
        y = jnp.where(turned, -clean, clean)
        is_scored = jnp.broadcast_to(jnp.arange(self.points)[None, :] >= family.unscored, y.shape)
        return Batch(
            inputs=interleave(x, y),
            targets=at_points(y),
            mask=at_points(is_scored.astype(jnp.float32))[:, :, 0],
            meta={'taught': taught.astype(jnp.float32), 'clean': clean, **params},
        )

    def loss(self, outputs: Float[Array, 'B T 1'], batch: Batch) -> Mean:
        """Binary cross-entropy in nats: log(1 + exp(-y logit))."""
        logits = outputs.astype(at_least_float32(outputs))
        return Mean.of(jax.nn.softplus(-batch.targets * logits)[:, :, 0], batch.mask)

    def metrics(self, outputs: Float[Array, 'B T 1'], batch: Batch) -> dict[str, Mean]:
        """loss; accuracy (a logit of 0 is wrong), that of the last point, by point [S], and there by kind of row."""
        right = (jnp.sign(outputs) == batch.targets)[:, ::2, 0].astype(jnp.float32)
        mask = batch.mask[:, ::2]
        metrics = {
            'loss': self.loss(outputs, batch),
            'accuracy': Mean.of(right, mask),
            'last_accuracy': Mean.of(right[:, -1], mask[:, -1]),
            'accuracy_by_point': Mean.of(right, mask, axis=0),
        }
        if 0 < self.teaching < 1:
            taught = batch.meta['taught'][:, None]
            metrics['taught_accuracy_by_point'] = Mean.of(right, mask * taught, axis=0)
            metrics['untaught_accuracy_by_point'] = Mean.of(right, mask * (1 - taught), axis=0)
        return metrics

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: neighbours and averages, and the learners that know the class.

        - nearest_neighbour, three_neighbours, averaging: whole numbers, 0 where they have no answer, as published.
        - elimination (an AND, an OR): -1 or +1.
        - gaussian_elimination (parities), bayes (classes that can be written out; without teaching, whose points say
          more): log-odds. Their ties are answered with +1, which is right as often as any answer.
        """
        x, y = split_points(batch.inputs)
        family = self.family
        answers = {
            'nearest_neighbour': solvers.nearest_neighbours(x, y, 1),
            'three_neighbours': solvers.nearest_neighbours(x, y, 3),
            'averaging': solvers.averaging(x, y),
        }
        if isinstance(family, Clauses) and family.clauses == 1:
            sign, negations = family.sign, family.negated > 0
            answers['elimination'] = sign * solvers.elimination(sign * x, sign * y, negations)
        if isinstance(family, Parity):
            answers['gaussian_elimination'] = _with_guesses(CERTAIN * solvers.parity_elimination(x, y)[0])
        everything = None if self.teaching else family.all_functions(self.inputs)
        if everything is not None:
            answers['bayes'] = _with_guesses(self._bayes(x, y, *jax.tree.map(jnp.asarray, everything)))
        return {name: at_points(values) for name, values in answers.items()}

    def _bayes(
        self, x: Float[Array, 'B S F'], y: Float[Array, 'B S'], functions: Params, log_prior: Float[Array, 'N']
    ) -> Float[Array, 'B S']:
        flat = x.reshape(1, -1, self.inputs)

        def say(params: Params) -> tuple[Array, Array]:
            params = jax.tree.map(lambda leaf: leaf[None], params)
            labels = self.family.label(params, flat)
            return labels[0], self.family.log_density(params, labels, self.forced)[0]

        labels, density = (a.reshape(*y.shape, -1) for a in jax.vmap(say, out_axes=1)(functions))
        odds = solvers.posterior(labels, y, log_prior.astype(x.dtype), density, self.label_noise)
        return jnp.clip(odds, -CERTAIN, CERTAIN)

    def facts(self) -> dict[str, float]:
        """Class balance and chance of the points behind teaching sequences; exact accuracies of the exact learners.

        Accuracies are means over all points, of the last point, or at point i (i examples before it), and are known
        without teaching and noise. `gaussian_elimination` is Bayes for parity, its guesses counted half.
        """
        family, noise = self.family, self.label_noise
        clean = family.balance(self.inputs, self.forced)
        positive = clean * (1 - noise) + (1 - clean) * noise
        facts = {
            'positive': positive,
            'chance_accuracy': max(positive, 1 - positive),
            'chance_loss': -positive * math.log(positive) - (1 - positive) * math.log(1 - positive),
        }
        if self.teaching or noise:
            return facts
        if isinstance(family, NearestNeighbours):
            facts['nearest_neighbour_accuracy'] = 1.0
        if isinstance(family, Clauses) and family.clauses == 1:
            literals = family.literal_chances(self.inputs)
            curve = solvers.elimination_accuracy(literals, self.points, self.forced, family.negated > 0)
            facts |= {'elimination_accuracy': float(curve.mean()), 'elimination_last_accuracy': float(curve[-1])}
        if isinstance(family, Parity):
            facts |= self._parity_facts(family)
        return facts

    def _parity_facts(self, family: Parity) -> dict[str, float]:
        n = self.inputs
        if family.size is not None:
            total = math.comb(n, family.size)
            first = 0.0
            for on in range(n + 1):
                odd = sum(math.comb(on, k) * math.comb(n - on, family.size - k) for k in range(1, family.size + 1, 2))
                first += math.comb(n, on) / 2**n * max(odd, total - odd) / total
            return {'bayes_accuracy_at_0': first}
        known = solvers.parity_known(n, self.points)
        right = (1 + known) / 2
        facts = {
            'gaussian_elimination_accuracy': float(right.mean()),
            'gaussian_elimination_last_accuracy': float(right[-1]),
            'gaussian_elimination_loss': float(np.mean(1 - known) * math.log(2)),
        }
        for i in (n - 1, n, n + 1, n + 2, n + 5):
            if i < self.points:
                facts[f'gaussian_elimination_accuracy_at_{i}'] = float(right[i])
        return facts

    def tiny(self) -> 'Boolean':
        inputs = min(self.inputs, 5)
        longest = (self.family.longest_block(inputs) or 0) if self.teaching else 0
        points = min(self.points, max(12, longest))
        return dataclasses.replace(self, inputs=inputs, points=points, seed_points=min(self.seed_points, 4))


def _with_guesses(logits: Float[Array, 'B S']) -> Float[Array, 'B S']:
    """Ties become +1 by a hair: an answer that is right half of the time, where a logit of 0 counts as wrong."""
    return jnp.where(logits == 0, 1e-6, logits)
