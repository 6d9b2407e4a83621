"""Multi-query associative recall: pairs of key and value, then the keys again, each to be answered with its value.

    k_1 v_1  k_2 v_2 ... k_P v_P   |   . .  k_7 .  . .  k_2 .  . . ...         target at a key: its value

MQAR of Zoology (Arora et al. 2023): keys are tokens 1 .. E/2 - 1, values E/2 .. E - 1, all of a row different. Behind
the context stand slots of two tokens; K different slots are drawn with weights p_g ~ g^(power - 1), g = 1, 2, ..., and
a key stands first in each, so that with a small power most questions follow the context closely; with `questions`, so
many of the keys are asked. Only these positions are scored, on seeing the key. All other tokens are 0, or random ones
with `fill`, which may repeat keys and values of the context: what was paired is what stands in the context, the first
2P tokens.

Two options make it a test of a memory's update, each with a well-defined answer.

- `overwrites`: so many of the keys are paired a second time later in the context, with another value; the answer is the
  last one. The pairs stand in random order, the old before the new.
- `corrupted`: every shown value is, with this probability, replaced by a random other value. Each pair is shown
  `repeats` times and the answer is the true value. The best predictor that looks at one key alone takes a vote of what
  was shown with it; `majority_accuracy` is its exact accuracy. (All values of a row differ, so a reader that also
  crosses out the other keys' values can break a tie a little better.)

The two do not go together: with both, no closed answer is known. With `repeats` a pair is shown several times in any
case, the old value of an overwritten key as often as the new one.
"""

import dataclasses
import fractions
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.discrete import CERTAIN, certain_logits, choose, token_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Bool, Int32, Key


def majority_accuracy(repeats: int, corrupted: float, others: int) -> float:
    """How often a vote of the shown values is right, ties broken at random.

    A true value is shown c ~ Binomial(repeats, 1 - corrupted) times, the other shows are uniform over `others` values.
    With c > 0 the vote is right with probability 1 / (1 + ties) where no other value was shown more often.

    Args:
        repeats: shows of a pair.
        corrupted: probability that a show has another value.
        others: how many other values there are.

    >>> majority_accuracy(1, 0.25, 7), majority_accuracy(3, 0.0, 7)
    (0.75, 1.0)
    >>> round(majority_accuracy(3, 0.25, 7), 6), round(0.75**3 + 3 * 0.75**2 * 0.25 + 3 * 0.75 * 0.25**2 * 6 / 7 / 3, 6)
    (0.883929, 0.883929)
    """
    total = 0.0
    for clean in range(1, repeats + 1):
        wrong = repeats - clean
        shown = math.comb(repeats, clean) * (1 - corrupted) ** clean * corrupted**wrong
        wins = fractions.Fraction(0)
        for ties in range(wrong // clean + 1):
            wins += fractions.Fraction(_sequences(wrong, others, clean, ties), others**wrong * (1 + ties))
        total += shown * float(wins)
    return total


def _sequences(length: int, letters: int, most: int, exactly: int | None = None) -> int:
    """How many sequences show no letter more than `most` times (and `exactly` so many letters that often)."""
    if most == 0:
        return int(length == 0)
    counts = range(length // most + 1) if exactly is None else [exactly]
    return sum(
        math.comb(letters, n)
        * (math.factorial(length) // (math.factorial(most) ** n * math.factorial(length - n * most)))
        * _sequences(length - n * most, letters - n, most - 1)
        for n in counts
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssociativeRecall(Task):
    """Multi-query associative recall, with overwritten or corrupted values as options.

    Attributes:
        vocabulary: E, even; keys are the lower half without 0, values the upper half.
        tokens: T, even.
        pairs: K, different keys.
        power: a of the slots' weights g^(a - 1); 1: uniform, 0.01: most questions close behind the context.
        fill: whether random tokens stand where nothing else does.
        overwrites: U, how many of the keys get another value later in the context.
        repeats: how often each pair is shown.
        corrupted: probability that a shown value is a random other one.
        questions: how many of the keys are asked; None: every one.

    >>> task = AssociativeRecall(vocabulary=16, tokens=12, pairs=2)
    >>> batch = task.sample(jax.random.key(0), 1)
    >>> batch.inputs[0].tolist(), batch.targets[0].tolist()
    ([7, 10, 1, 15, 1, 0, 7, 0, 0, 0, 0, 0], [0, 0, 0, 0, 15, 0, 10, 0, 0, 0, 0, 0])
    >>> task.facts()['chance_accuracy'], task.facts()['context_value_accuracy']
    (0.125, 0.5)
    """

    kind: ClassVar[str] = 'discrete'

    vocabulary: int = 128
    tokens: int = 64
    pairs: int = 8
    power: float = 0.01
    fill: bool = False
    overwrites: int = 0
    repeats: int = 1
    corrupted: float = 0.0
    questions: int | None = None

    def __post_init__(self) -> None:
        where, half = 'AssociativeRecall', self.vocabulary // 2
        if self.vocabulary % 2 or self.tokens % 2:
            raise ValueError(f'{where}: vocabulary={self.vocabulary} and tokens={self.tokens} must be even')
        if self.pairs < 1 or self.repeats < 1:
            raise ValueError(f'{where}: pairs={self.pairs} and repeats={self.repeats} must be at least 1')
        if not 0 <= self.overwrites <= self.pairs:
            raise ValueError(f'{where}: overwrites={self.overwrites} must lie in 0..pairs = {self.pairs}')
        if self.pairs > half - 1 or self.pairs + self.overwrites > half:
            raise ValueError(
                f'{where}: vocabulary={self.vocabulary} has {half - 1} keys and {half} values, too few for '
                f'pairs={self.pairs} and overwrites={self.overwrites}, all different'
            )
        if self.questions is not None and not 1 <= self.questions <= self.pairs:
            raise ValueError(f'{where}: questions={self.questions} must lie in 1..pairs = {self.pairs}')
        if self.tokens < self.context + 2 * self.asked:
            raise ValueError(
                f'{where}: tokens={self.tokens} must be at least {self.context + 2 * self.asked}: '
                f'{self.context} of the context and 2 for each of {self.asked} questions'
            )
        if self.power <= 0:
            raise ValueError(f'{where}: power={self.power} must be positive')
        if not 0 <= self.corrupted < 1 - 1 / half:
            raise ValueError(f'{where}: corrupted={self.corrupted} must lie in 0..{1 - 1 / half:.4g}, its end excluded')
        if self.corrupted and self.overwrites:
            raise ValueError(
                f'{where}: overwrites={self.overwrites} and corrupted={self.corrupted} do not go together: '
                'the exact answer is known for each alone'
            )

    @property
    def input_size(self) -> int:
        return self.vocabulary

    @property
    def output_size(self) -> int:
        return self.vocabulary

    @property
    def shown(self) -> int:
        """P, the pairs of the context, repeats and overwrites included."""
        return (self.pairs + self.overwrites) * self.repeats

    @property
    def context(self) -> int:
        """Tokens of the context, 2P."""
        return 2 * self.shown

    @property
    def asked(self) -> int:
        """Questions of a row."""
        return self.pairs if self.questions is None else self.questions

    def sample(self, key: Key, batch: int) -> Batch:
        name_key, value_key, context_key, question_key, fill_key = jax.random.split(key, 5)
        half = self.vocabulary // 2
        names = 1 + choose(name_key, batch, self.pairs, half - 1)
        # The first K are the values of the keys, the others the new values of the first U keys.
        values = half + choose(value_key, batch, self.pairs + self.overwrites, half)
        context = self._context(context_key, names, values)

        place, asked = self._questions(question_key, batch)
        is_updated = asked < self.overwrites
        answers = jnp.take_along_axis(values, jnp.where(is_updated, self.pairs + asked, asked), axis=1)
        name, target, updated = (
            jnp.sum(jnp.where(place, x[:, :, None], 0), axis=1, dtype=jnp.int32)
            for x in (jnp.take_along_axis(names, asked, axis=1), answers, is_updated)
        )

        def spread(x: Int32[Array, 'B N']) -> Int32[Array, 'B T']:
            """Per slot -> per token: behind the context, first of two."""
            pairs = jnp.stack([x, jnp.zeros_like(x)], axis=-1)
            return jnp.pad(pairs.reshape(batch, -1), ((0, 0), (self.context, 0)))

        inputs = spread(name) + jnp.pad(context, ((0, 0), (0, self.tokens - self.context)))
        if self.fill:
            random = jax.random.randint(fill_key, inputs.shape, 0, self.vocabulary, jnp.int32)
            inputs = jnp.where(inputs == 0, random, inputs)
        mask = spread((name > 0).astype(jnp.int32)).astype(jnp.float32)
        return Batch(inputs, spread(target), mask, meta={'updated': spread(updated).astype(jnp.float32)})

    def _context(self, key: Key, names: Int32[Array, 'B K'], values: Int32[Array, 'B N']) -> Int32[Array, 'B T']:
        """The shown pairs, in random order; the old value of an overwritten key before the new one."""
        order_key, corrupt_key, other_key = jax.random.split(key, 3)
        batch, half = len(names), self.vocabulary // 2
        owner = np.concatenate([np.arange(self.pairs), np.arange(self.overwrites)]).repeat(self.repeats)
        which = jnp.asarray(owner)[choose(order_key, batch, self.shown, self.shown)]
        same = which[:, :, None] == which[:, None, :]
        earlier = jnp.sum(same & np.tri(self.shown, k=-1, dtype=bool)[None], axis=-1)
        index = jnp.where(earlier >= self.repeats, self.pairs + which, which)
        shown = jnp.take_along_axis(values, index, axis=1)
        if self.corrupted:
            hit = jax.random.bernoulli(corrupt_key, self.corrupted, shown.shape)
            step = jax.random.randint(other_key, shown.shape, 1, half, jnp.int32)
            shown = jnp.where(hit, half + (shown - half + step) % half, shown)
        return jnp.stack([jnp.take_along_axis(names, which, axis=1), shown], axis=-1).reshape(batch, -1)

    def _questions(self, key: Key, batch: int) -> tuple[Bool[Array, 'B Q N'], Int32[Array, 'B Q']]:
        """The slot of each question, one-hot, and the key that it asks for."""
        slot_key, asked_key = jax.random.split(key)
        slots = (self.tokens - self.context) // 2
        weights = (self.power - 1) * np.log(np.arange(1, slots + 1))
        # Gumbel top-k: the k largest of log p + Gumbel noise are draws without replacement.
        noisy = jnp.asarray(weights, jnp.float32)[None] + jax.random.gumbel(slot_key, (batch, slots))
        drawn = jax.lax.top_k(noisy, self.asked)[1]
        place = drawn[:, :, None] == jnp.arange(slots)[None, None, :]
        # Slots come out near ones first; the overwritten keys must not get these.
        return place, choose(asked_key, batch, self.asked, self.pairs)

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy at the questions, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy, sequence_accuracy (all questions of a row); accuracy of overwritten and of other keys."""
        metrics = token_metrics(outputs, batch)
        if self.overwrites:
            right = (jnp.argmax(outputs, axis=-1) == batch.targets).astype(jnp.float32)
            metrics['updated_accuracy'] = Mean.of(right, batch.meta['updated'])
            metrics['untouched_accuracy'] = Mean.of(right, batch.mask - batch.meta['updated'])
        return metrics

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the table look-up (last value, vote), the first value, any shown value."""
        context = batch.inputs[:, : self.context]
        names, values = context[:, ::2], context[:, 1::2]
        shows = (batch.inputs[:, :, None] == names[:, None, :]).astype(jnp.int32)
        upto = jnp.cumsum(shows, axis=-1)
        is_last = shows * (upto > upto[:, :, -1:] - self.repeats)
        is_value = jnp.arange(self.vocabulary) >= self.vocabulary // 2
        one_hot = jax.nn.one_hot(values, self.vocabulary)
        votes = jnp.einsum('btp,bpe->bte', is_last.astype(jnp.float32), one_hot)
        found = {'look_up': self._vote_weight() * votes - jnp.where(is_value, 0, CERTAIN)[None, None, :]}
        if self.overwrites:
            first = jnp.take_along_axis(values, jnp.argmax(shows, axis=-1), axis=1)
            found['first_value'] = certain_logits(first, self.vocabulary)
        if not self.corrupted:
            is_shown = jnp.max(one_hot, axis=1)
            found['context_values'] = CERTAIN * (jnp.broadcast_to(is_shown[:, None, :], votes.shape) - 1)
        return found

    def _vote_weight(self) -> float:
        """How much more likely a show makes its value: log of (1 - corrupted) to corrupted / others."""
        if not self.corrupted:
            return CERTAIN
        return math.log((1 - self.corrupted) * (self.vocabulary // 2 - 1) / self.corrupted)

    def facts(self) -> dict[str, float]:
        """Loss and accuracy of knowing nothing but that values answer; of any shown value; accuracy of the look-up."""
        values = self.vocabulary // 2
        of_other_keys = self.corrupted * (self.pairs - 1) / (values - 1)
        facts = {
            'chance_loss': math.log(values),
            'chance_accuracy': 1 / values,
            'context_value_accuracy': (1 - self.corrupted + of_other_keys) / (self.pairs + self.overwrites),
            'look_up_accuracy': majority_accuracy(self.repeats, self.corrupted, values - 1),
        }
        if not self.corrupted:
            facts |= {'context_values': math.log(self.pairs + self.overwrites), 'look_up': 0.0}
        if self.overwrites:
            facts['first_value_accuracy'] = 1 - self.overwrites / self.pairs
        return facts

    def tiny(self) -> 'AssociativeRecall':
        overwrites = min(self.overwrites, 1)
        tokens = 2 * (2 + overwrites) * self.repeats + 8
        questions = None if self.questions is None else min(self.questions, 2)
        return dataclasses.replace(
            self, vocabulary=16, tokens=tokens, pairs=2, overwrites=overwrites, questions=questions
        )
