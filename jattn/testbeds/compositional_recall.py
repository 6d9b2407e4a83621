"""Compositional recall: a key is two tokens, and neither of them alone says which value is meant.

    a_1 b_2 v   a_2 b_1 v   a_1 b_1 v   a_2 b_2 v   |   a_2 b_1   a_1 b_1   ...       target at a b: the value of a b

In every row A first parts and B second parts are drawn, and each of the A B keys of their grid is shown once, in random
order, with a value of its own. So a first part stands with B values and a second one with A: who matches one part only
(a lookup that has not joined the two tokens) is right one time in B or A, and the two `_accuracy` facts tell which.
After the context every key is asked, or `questions` of them, in random order; scored is the second token of a question.

The ids: first parts 0 .. parts - 1, second parts parts .. 2 parts - 1, then the values. This is the idea of Zoology's
compositional variant of multi-query recall (Arora et al. 2023); the grid is complete here, which makes the scores of
the half-matching look-ups exact.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.discrete import CERTAIN, choose, token_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Int32, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompositionalRecall(Task):
    """Recall by keys of two tokens.

    Attributes:
        parts: ids of first parts, and as many of second parts.
        values: ids of values; those of a row differ.
        rows: A, first parts of a row's grid.
        columns: B, second parts of it.
        questions: keys that are asked; None: all A B.

    >>> task = CompositionalRecall(parts=4, values=8, rows=2, columns=2, questions=2)
    >>> batch = task.sample(jax.random.key(0), 1)
    >>> batch.inputs[0].tolist(), batch.targets[0, -4:].tolist()
    ([2, 6, 14, 0, 7, 8, 0, 6, 9, 2, 7, 12, 0, 7, 2, 7], [0, 8, 0, 12])
    >>> {name: task.facts()[name] for name in ('first_part_accuracy', 'context_value_accuracy')}
    {'first_part_accuracy': 0.5, 'context_value_accuracy': 0.25}
    """

    kind: ClassVar[str] = 'discrete'

    parts: int = 16
    values: int = 64
    rows: int = 4
    columns: int = 4
    questions: int | None = None

    def __post_init__(self) -> None:
        where = 'CompositionalRecall'
        for name in ('rows', 'columns'):
            if not 2 <= getattr(self, name) <= self.parts:
                raise ValueError(
                    f'{where}: {name}={getattr(self, name)} must lie in 2..parts = {self.parts}: with one, the other '
                    'part alone decides'
                )
        if self.values < self.pairs:
            raise ValueError(f'{where}: values={self.values} must be at least {self.pairs}, one for each key of a row')
        if self.questions is not None and not 1 <= self.questions <= self.pairs:
            raise ValueError(f'{where}: questions={self.questions} must lie in 1..{self.pairs}, the keys of a row')

    @property
    def input_size(self) -> int:
        return 2 * self.parts + self.values

    @property
    def output_size(self) -> int:
        return self.input_size

    @property
    def pairs(self) -> int:
        """Keys of a row, A B."""
        return self.rows * self.columns

    @property
    def asked(self) -> int:
        """Questions of a row."""
        return self.questions or self.pairs

    @property
    def tokens(self) -> int:
        """T: three tokens a pair, two a question."""
        return 3 * self.pairs + 2 * self.asked

    def sample(self, key: Key, batch: int) -> Batch:
        first_key, second_key, value_key, order_key, asked_key = jax.random.split(key, 5)
        first = choose(first_key, batch, self.rows, self.parts)
        second = self.parts + choose(second_key, batch, self.columns, self.parts)
        # One value to each cell of the grid, and the cells in random order.
        values = 2 * self.parts + choose(value_key, batch, self.pairs, self.values)
        shown = choose(order_key, batch, self.pairs, self.pairs)
        asked = choose(asked_key, batch, self.asked, self.pairs)

        def cells(index: Int32[Array, 'B N']) -> list[Int32[Array, 'B N']]:
            """First part, second part and value of these cells."""
            at = [index // self.columns, index % self.columns, index]
            return [jnp.take_along_axis(x, i, axis=1) for x, i in zip((first, second, values), at)]

        context = jnp.stack(cells(shown), axis=-1).reshape(batch, -1)
        *names, answers = cells(asked)
        inputs = jnp.concatenate([context, jnp.stack(names, axis=-1).reshape(batch, -1)], axis=1)
        return Batch(inputs, self._at_questions(answers), self._at_questions(jnp.ones(answers.shape)))

    def _at_questions(self, x: Array) -> Array:
        """Per question -> per token: behind the context, second of two."""
        pairs = jnp.stack([jnp.zeros_like(x), x], axis=-1).reshape(len(x), -1)
        return jnp.pad(pairs, ((0, 0), (3 * self.pairs, 0)))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy at the questions, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy, sequence_accuracy (all questions of a row)."""
        return token_metrics(outputs, batch)

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the look-up by both parts, by one of them, any shown value, any value."""
        first, second, values = (batch.inputs[:, part : 3 * self.pairs : 3] for part in range(3))
        before = jnp.pad(batch.inputs, ((0, 0), (1, 0)))[:, :-1]
        same_first = before[:, :, None] == first[:, None, :]
        same_second = batch.inputs[:, :, None] == second[:, None, :]
        one_hot = jax.nn.one_hot(values, self.output_size)
        matches = {
            'look_up': same_first & same_second,
            'first_part': same_first,
            'second_part': same_second,
            'context_values': jnp.ones_like(same_first),
        }
        said = {
            name: CERTAIN * (jnp.einsum('btp,bpe->bte', match.astype(jnp.float32), one_hot) - 1)
            for name, match in matches.items()
        }
        legal = np.where(np.arange(self.output_size) >= 2 * self.parts, 0.0, -CERTAIN)
        chance = jnp.asarray(legal, jnp.float32)[None, None]
        return said | {'chance': jnp.broadcast_to(chance, (*batch.inputs.shape, self.output_size))}

    def facts(self) -> dict[str, float]:
        """Loss and accuracy of the look-up by both parts, by one of them, of any shown value, of any value."""
        candidates = {
            'look_up': 1,
            'first_part': self.columns,
            'second_part': self.rows,
            'context_values': self.pairs,
            'chance': self.values,
        }
        losses = {name: math.log(count) for name, count in candidates.items()}
        return losses | {f'{name.removesuffix("s")}_accuracy': 1 / count for name, count in candidates.items()}

    def tiny(self) -> 'CompositionalRecall':
        questions = None if self.questions is None else min(self.questions, 3)
        return dataclasses.replace(self, parts=3, values=6, rows=2, columns=2, questions=questions)
