"""Babi: facts about who is where, told in order among noise, and a question about the world that they leave behind.

    . . anna moved kitchen . . . anna took milk . anna moved garden . .  where milk         target at the end: garden

The form of BABILong (Kuratov et al. 2024), whose facts are those of bAbI (Weston et al. 2015), in a world of our own of
four people, six places and three objects. A fact is three tokens, the question two; the noise has tokens of its own.

    qa1   where PERSON     the place of the person's last move
    qa2   where OBJECT     where it is: its holder's place while it is held, else the place where it was dropped
    qa3   before OBJECT    where it was before it came to the place that qa2 asks for; always another place

A person moves to any place but the one where they are. They take an object that nobody holds if it is where they are or
if no fact has said yet where it is, and drop one that they hold; both need a fact that says where they are. A held
object moves along. In qa2 and qa3 a move has twice the chance of a take or of a drop, as far as there are people who
can; then such a person is drawn, then what, uniformly. So that every row has an answer, somebody moves in its first
fact and takes in its second (qa2, qa3), and the holder moves in its third (qa3). Who or what is asked for is uniform
over those that have an answer. Places are alike: without the facts every answer has probability 1/6.

The number of facts is uniform from the least that has an answer (2, 2, 3) to `most_facts`. They stand behind sorted
uniform numbers of noise tokens, so that facts may touch; the noise is uniform. The deciding fact is the last one that
changed the answer, and its depth is the share of the row before the question that stands before it (`meta`).

Where this differs from BABILong: words are tokens, and noise is tokens where theirs is sentences of books; and bAbI's
qa3 names the later place ("before the kitchen"), which may be any that the object has come to, where ours is the last.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.config import nearest
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.babi_world import (
    BEFORE,
    FACT,
    NOISE,
    NOWHERE,
    OBJECT,
    PEOPLE,
    PERSON,
    PLACE,
    PLACES,
    WHERE,
    draw_facts,
    from_tokens,
    tell,
    to_tokens,
)
from jattn.testbeds.discrete import CERTAIN, certain_logits, token_metrics
from jattn.testbeds.haystack import accuracy_by_depth, hide
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Bool, Int32, Key

QUESTION = 2  # tokens
LEAST = {'qa1': 2, 'qa2': 2, 'qa3': 3}  # facts that a row needs to have an answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Babi(Task):
    """A question about facts among noise.

    Attributes:
        task: 'qa1', 'qa2' or 'qa3'.
        tokens: T of a row, the question's two included.
        most_facts: of a row.
        noise: how many noise tokens there are.

    >>> from jattn.testbeds.babi_world import say
    >>> task = Babi(task='qa2', tokens=18, most_facts=4, noise=1)
    >>> batch = task.sample(jax.random.key(4), 1)
    >>> say(batch.inputs[0]), say(batch.targets[0, -1:])
    ('. . . . . david moved garden . david took milk . ben moved bathroom where milk', 'garden')
    """

    kind: ClassVar[str] = 'discrete'

    task: str = 'qa1'
    tokens: int = 128
    most_facts: int = 10
    noise: int = 32

    def __post_init__(self) -> None:
        where = 'Babi'
        if self.task not in LEAST:
            raise ValueError(f'{where}: task={self.task!r} is unknown; {nearest(self.task, LEAST)}')
        if self.most_facts < LEAST[self.task]:
            raise ValueError(
                f'{where}: most_facts={self.most_facts} must be at least {LEAST[self.task]} for {self.task}'
            )
        if self.noise < 1:
            raise ValueError(f'{where}: noise={self.noise} must be at least 1')
        room = FACT * self.most_facts + QUESTION
        if self.tokens < room:
            raise ValueError(
                f'{where}: tokens={self.tokens} must be at least {room}, '
                f'the room of most_facts={self.most_facts} and the question'
            )

    @property
    def input_size(self) -> int:
        return NOISE + self.noise

    @property
    def output_size(self) -> int:
        return self.input_size

    @property
    def context(self) -> int:
        """Tokens before the question."""
        return self.tokens - QUESTION

    @property
    def _first_asked(self) -> int:
        """The first token of those that are asked for."""
        return PERSON if self.task == 'qa1' else OBJECT

    def sample(self, key: Key, batch: int) -> Batch:
        count_key, fact_key, ask_key, place_key, noise_key = jax.random.split(key, 5)
        count = jax.random.randint(count_key, (batch, 1), LEAST[self.task], self.most_facts + 1, jnp.int32)
        facts = jax.vmap(lambda key: draw_facts(key, self.task, self.most_facts))(jax.random.split(fact_key, batch))
        answers, deciding = jax.vmap(tell)(facts, count[:, 0]).answers(self.task)
        asked = _one_of(ask_key, answers != NOWHERE)
        answer, deciding = (jnp.take_along_axis(x, asked, axis=1) for x in (answers, deciding))

        before = jax.random.randint(place_key, (batch, self.most_facts), 0, self.context - FACT * count + 1, jnp.int32)
        is_told = jnp.arange(self.most_facts)[None] < count
        before = jnp.sort(jnp.where(is_told, before, self.context), axis=1)
        noise = jax.random.randint(noise_key, (batch, self.context), NOISE, self.input_size, jnp.int32)
        context = hide(noise, to_tokens(facts), before, self.context)
        question = jnp.full((batch, 1), BEFORE if self.task == 'qa3' else WHERE, jnp.int32)
        start = jnp.take_along_axis(before, deciding, axis=1) + FACT * deciding
        return Batch(
            inputs=jnp.concatenate([context, question, asked + self._first_asked], axis=1),
            targets=self._at_end(PLACE + answer),
            mask=self._at_end(jnp.ones((batch, 1))),
            meta={'depth': start[:, 0] / self.context},
        )

    def _at_end(self, x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (self.tokens - 1, 0)))

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the answer, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss and accuracy of the answer, and the curve of accuracy by the depth of the deciding fact."""
        right = jnp.argmax(outputs[:, -1], axis=-1) == batch.targets[:, -1]
        return token_metrics(outputs, batch) | {'accuracy_by_depth': accuracy_by_depth(right, batch.meta['depth'])}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the world that the facts tell; the last place that stands there; any place."""
        context, asked = batch.inputs[:, : self.context], batch.inputs[:, -1:] - self._first_asked
        facts, count = jax.vmap(lambda row: from_tokens(row, self.most_facts))(context)
        answers, _ = jax.vmap(tell)(facts, count).answers(self.task)
        is_place = (context >= PLACE) & (context < OBJECT)
        last = jnp.max(jnp.where(is_place, jnp.arange(self.context)[None], 0), axis=1)
        said = {
            'simulator': PLACE + jnp.take_along_axis(answers, asked, axis=1),
            'last_place': jnp.take_along_axis(context, last[:, None], axis=1),
        }
        ids = np.arange(self.output_size)
        chance = jnp.asarray(np.where((ids >= PLACE) & (ids < OBJECT), 0.0, -CERTAIN), jnp.float32)
        logits = {name: certain_logits(self._at_end(token), self.output_size) for name, token in said.items()}
        return logits | {'chance': jnp.broadcast_to(chance[None, None], (*batch.inputs.shape, self.output_size))}

    def facts(self) -> dict[str, float]:
        """The simulator is right; guessing a place; of qa1, saying the last place that stands in the row."""
        chance = 1 / PLACES
        facts = {'simulator': 0.0, 'chance': math.log(PLACES), 'chance_accuracy': chance}
        if self.task == 'qa1':
            counts = range(LEAST[self.task], self.most_facts + 1)
            last = sum(_asked_is_last(count) for count in counts) / len(counts)
            facts['last_place_accuracy'] = last + (1 - last) * chance
        return facts

    def tiny(self) -> 'Babi':
        return dataclasses.replace(self, tokens=24, most_facts=4, noise=4)


def _one_of(key: Key, possible: Bool[Array, 'B N']) -> Int32[Array, 'B 1']:
    """A uniform one of those that are possible."""
    chance = jax.random.uniform(key, possible.shape)
    return jnp.argmax(jnp.where(possible, chance, -1.0), axis=1).astype(jnp.int32)[:, None]


def _asked_is_last(facts: int) -> float:
    """The probability that a uniform one of those who moved is the one who moved last."""
    people = np.arange(PEOPLE + 1)
    law = (people == 0).astype(float)  # of how many different people have moved
    for _ in range(facts):
        again = law * people / PEOPLE
        law = again + np.roll(law - again, 1)
    return float(np.sum(law[1:] / people[1:]))
