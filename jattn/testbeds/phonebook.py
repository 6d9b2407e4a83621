"""Phonebook: lines of name and number, two of them once more as examples, then a third name; say its number.

    n n d d d d d d d d d d   x lines   |   two of the lines   |   n n d d d d d d d d d      targets: d_1 ... d_10

The task of "Repeat After Me" (Jelassi et al. 2024) in ids: a name is a first name (0 .. names - 1) and a last name
(names .. 2 names - 1), then come ten digits, each an id of its own, the first of a number 6 to 9. What separates names
and lines in the text is left out. All names of a row differ (theirs are drawn freely, so that a name can have two
numbers), and a row has exactly `lines` lines.

The digits before the one that is asked for are shown. A row is right (`sequence_accuracy`) if all ten are, which is
the same as greedy generation being right.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.discrete import CERTAIN, certain_logits, choose, token_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Key

DIGITS = 10  # of a number
LINE = 2 + DIGITS
LOWEST = 6  # first digit of a number
EXAMPLES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phonebook(Task):
    """A phonebook and a name in it.

    Attributes:
        lines: of the book.
        names: first names, and as many last names.

    >>> task = Phonebook(lines=3, names=2)
    >>> batch = task.sample(jax.random.key(0), 1)
    >>> batch.inputs.shape, batch.targets[0, -10:].tolist()
    ((1, 71), [12, 13, 8, 7, 9, 10, 6, 9, 8, 13])
    >>> task.facts()['chance_sequence_accuracy']
    2.5e-10
    """

    kind: ClassVar[str] = 'discrete'

    lines: int = 16
    names: int = 100

    def __post_init__(self) -> None:
        where = 'Phonebook'
        if self.lines <= EXAMPLES:
            raise ValueError(
                f'{where}: lines={self.lines} must be at least {EXAMPLES + 1}: the examples and the answer'
            )
        if self.names**2 < self.lines:
            raise ValueError(f'{where}: names={self.names} gives {self.names**2} names, too few for lines={self.lines}')

    @property
    def input_size(self) -> int:
        return 2 * self.names + 10

    @property
    def output_size(self) -> int:
        return self.input_size

    @property
    def tokens(self) -> int:
        """T; the last digit is only a target."""
        return LINE * (self.lines + EXAMPLES + 1) - 1

    def sample(self, key: Key, batch: int) -> Batch:
        name_key, first_key, digit_key, line_key = jax.random.split(key, 4)
        name = choose(name_key, batch, self.lines, self.names**2)
        first = jax.random.randint(first_key, (batch, self.lines, 1), LOWEST, 10, jnp.int32)
        others = jax.random.randint(digit_key, (batch, self.lines, DIGITS - 1), 0, 10, jnp.int32)
        names = jnp.stack([name // self.names, self.names + name % self.names], axis=-1)
        book = jnp.concatenate([names, 2 * self.names + first, 2 * self.names + others], axis=-1)
        again = choose(line_key, batch, EXAMPLES + 1, self.lines)
        rows = jnp.concatenate([book, jnp.take_along_axis(book, again[:, :, None], axis=1)], axis=1)
        stream = rows.reshape(batch, -1)
        is_asked = jnp.broadcast_to(jnp.arange(self.tokens) >= self.tokens - DIGITS, (batch, self.tokens))
        return Batch(stream[:, :-1], jnp.where(is_asked, stream[:, 1:], 0), is_asked.astype(jnp.float32))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the ten digits, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy of digits, sequence_accuracy (whole numbers), and the curve of accuracy by digit."""
        right = (jnp.argmax(outputs, axis=-1) == batch.targets).astype(jnp.float32)[:, -DIGITS:]
        return token_metrics(outputs, batch) | {'accuracy_by_digit': Mean.of(right, axis=0)}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the number of the line with the asked name; any digit that may stand there."""
        book = batch.inputs[:, : LINE * self.lines].reshape(-1, self.lines, LINE)
        asked = batch.inputs[:, self.tokens - LINE + 1 :][:, None, :2]
        line = jnp.argmax(jnp.all(book[:, :, :2] == asked, axis=-1), axis=1)
        number = jnp.take_along_axis(book, line[:, None, None], axis=1)[:, 0, 2:]
        tokens = jnp.pad(number, ((0, 0), (self.tokens - DIGITS, 0)))
        lowest = np.where(np.arange(self.tokens) == self.tokens - DIGITS, LOWEST, 0)
        legal = np.arange(self.output_size) >= 2 * self.names + lowest[:, None]
        logits = jnp.asarray(np.where(legal, 0.0, -CERTAIN), jnp.float32)
        return {
            'look_up': certain_logits(tokens, self.output_size),
            'chance': jnp.broadcast_to(logits[None], (len(tokens), *logits.shape)),
        }

    def facts(self) -> dict[str, float]:
        """The look-up is right; guessing digits; saying the number of any line."""
        firsts = 10 - LOWEST
        return {
            'look_up': 0.0,
            'chance': (math.log(firsts) + (DIGITS - 1) * math.log(10)) / DIGITS,
            'chance_accuracy': (1 / firsts + (DIGITS - 1) / 10) / DIGITS,
            'chance_sequence_accuracy': 1 / (firsts * 10 ** (DIGITS - 1)),
            'any_line_sequence_accuracy': 1 / self.lines,
        }

    def tiny(self) -> 'Phonebook':
        return dataclasses.replace(self, lines=3, names=4)
