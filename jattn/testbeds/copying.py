"""Copying and look-up in strings of letters: say a string again, or what follows a few of its letters.

    copy              $ s | s .
    prefix_lookup     $ g | s | answer .          g: letters of s that stand there once; answer: what follows them
    suffix_lookup     $ s | g answer .

The tasks of "Repeat After Me" (Jelassi et al. 2024): letters are 0 .. letters - 1, then come $, |, . and the pad. A
string has a uniform length, longer strings are the same task with other lengths. Scored is the answer and the full
stop behind it; `sequence_accuracy` is the paper's accuracy of whole strings.

Where this differs from the published code: a row has one string and pads behind it (theirs packs several into 220
tokens for training, an option of the data and not of the task); g is one of the places where its letters stand once,
all equally likely, where theirs only makes sure that the string has such a place and then asks for any but the last
ones. A row whose string has no such place (next to impossible with 26 letters) is not scored.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.config import nearest
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.discrete import CERTAIN, certain_logits, token_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Bool, Int32, Key

TASKS = ('copy', 'prefix_lookup', 'suffix_lookup')
Piece = tuple[Int32[Array, 'B N'], Int32[Array, 'B 1'], Int32[Array, 'B 1']]  # tokens, the first one, how many


def join(pieces: list[Piece], tokens: int, pad: int) -> Int32[Array, 'B T']:
    """The pieces one behind the other, each with its own length in every row, and pads.

    >>> letters, one = jnp.array([[5, 6, 7]]), jnp.array([[1]])
    >>> join([(letters, one, one + 1), (letters, one - 1, one)], 5, pad=0).tolist()
    [[6, 7, 5, 0, 0]]
    """
    place = jnp.arange(tokens, dtype=jnp.int32)[None]
    joined, begin = jnp.full((len(pieces[0][0]), tokens), pad, jnp.int32), 0
    for values, start, length in pieces:
        offset = place - begin
        index = jnp.clip(start + offset, 0, values.shape[1] - 1)
        inside = (offset >= 0) & (offset < length)
        joined = jnp.where(inside, jnp.take_along_axis(values, index, axis=1), joined)
        begin = begin + length
    return joined


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copying(Task):
    """One string, to be copied or to be looked up in.

    Attributes:
        task: 'copy', 'prefix_lookup' or 'suffix_lookup'.
        letters: how many; the vocabulary has four more.
        min_length: letters of the shortest string.
        max_length: letters of the longest string.
        gram: letters that a look-up gives.
        answer: letters that are asked for; None: up to the end of the string.

    >>> task = Copying(letters=4, min_length=3, max_length=4)               # 4: $   5: |   6: .   7: pad
    >>> batch = task.sample(jax.random.key(0), 1)
    >>> batch.inputs[0].tolist(), batch.targets[0].tolist()
    ([4, 3, 1, 3, 5, 3, 1, 3, 6, 7], [0, 0, 0, 0, 3, 1, 3, 6, 0, 0])
    """

    kind: ClassVar[str] = 'discrete'

    task: str = 'copy'
    letters: int = 26
    min_length: int = 5
    max_length: int = 20
    gram: int = 3
    answer: int | None = None

    def __post_init__(self) -> None:
        where = 'Copying'
        if self.task not in TASKS:
            raise ValueError(f'{where}: task={self.task!r} is unknown; {nearest(self.task, TASKS)}')
        if self.letters < 2 or self.gram < 1:
            raise ValueError(f'{where}: letters={self.letters} must be at least 2, gram={self.gram} at least 1')
        if self.answer is not None and self.answer < 1:
            raise ValueError(f'{where}: answer={self.answer} must be at least 1, or None')
        least = self._given + (self.answer or 1)
        if not least <= self.min_length <= self.max_length:
            raise ValueError(
                f'{where}: min_length={self.min_length} must lie in {least}..max_length = {self.max_length}: '
                f'{self._given} given letters and {self.answer or 1} of the answer at least'
            )

    @property
    def input_size(self) -> int:
        return self.letters + 4

    @property
    def output_size(self) -> int:
        return self.input_size

    @property
    def _given(self) -> int:
        """Letters of g; a copy is a look-up of what follows no letters, at the string's start."""
        return 0 if self.task == 'copy' else self.gram

    @property
    def tokens(self) -> int:
        """T, of the longest row."""
        longest = self.answer or self.max_length - self._given
        return 2 + self.max_length + self._given + longest + (1 if self.task == 'prefix_lookup' else 0)

    def sample(self, key: Key, batch: int) -> Batch:
        letter_key, length_key, place_key = jax.random.split(key, 3)
        string = jax.random.randint(letter_key, (batch, self.max_length), 0, self.letters, jnp.int32)
        length = jax.random.randint(length_key, (batch, 1), self.min_length, self.max_length + 1, jnp.int32)
        once = self._once(string, length)
        chance = jax.random.uniform(place_key, once.shape)
        place = jnp.argmax(jnp.where(once, chance, -1), axis=1).astype(jnp.int32)[:, None]
        if self.task == 'copy':
            place = jnp.zeros_like(place)
        given = jnp.full_like(place, self._given)
        answer = length - place - given if self.answer is None else jnp.full_like(place, self.answer)

        zero, one = jnp.zeros_like(place), jnp.ones_like(place)
        begin, bar, stop = ((zero + self.letters + mark, zero, one) for mark in range(3))
        whole, asked = (string, zero, length), (string, place, given)
        prompt = {
            'copy': [begin, whole, bar],
            'prefix_lookup': [begin, asked, bar, whole, bar],
            'suffix_lookup': [begin, whole, bar, asked],
        }[self.task]
        pieces = [*prompt, (string, place + given, answer), stop]
        stream = join(pieces, self.tokens + 1, pad=self.letters + 3)
        is_answer = join([(zero, zero, sum(piece[2] for piece in prompt)), (one, zero, answer + 1)], self.tokens + 1, 0)
        mask = (is_answer[:, 1:] * jnp.any(once, axis=1, keepdims=True)).astype(jnp.float32)
        return Batch(stream[:, :-1], jnp.where(mask > 0, stream[:, 1:], 0), mask)

    def _once(self, string: Int32[Array, 'B N'], length: Int32[Array, 'B 1']) -> Bool[Array, 'B N']:
        """The places of g: its letters stand nowhere else in the string, and the answer fits behind them."""
        place = jnp.arange(self.max_length)[None]
        same = jnp.ones((len(string), self.max_length, self.max_length), bool)
        for offset in range(self._given):
            letter = jnp.roll(string, -offset, axis=1)
            same &= letter[:, :, None] == letter[:, None, :]
        inside = place + self._given <= length
        shows = jnp.sum(same & inside[:, None, :], axis=2)
        fits = place + self._given + (self.answer or 1) <= length
        return fits & (shows == 1) if self._given else fits

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the answer and the full stop, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy of letters, sequence_accuracy (whole answers)."""
        return token_metrics(outputs, batch)

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: what follows the given letters in the string; any letter or the full stop."""
        inputs, at = batch.inputs, jnp.arange(self.tokens)[None]
        bar = jnp.argmax(inputs == self.letters + 1, axis=1)[:, None]
        behind = (at > bar) & (inputs == self.letters + 1)
        if self.task == 'prefix_lookup':
            query, first, last = jnp.ones_like(bar), bar + 1, jnp.argmax(behind, axis=1)[:, None]
            ask = last
        else:
            query, first, last, ask = bar + 1, jnp.ones_like(bar), bar, bar + self._given
        found = (at >= first) & (at + self._given <= last)
        for offset in range(self._given):
            found &= jnp.roll(inputs, -offset, axis=1) == jnp.take_along_axis(inputs, query + offset, axis=1)
        source = jnp.argmax(found, axis=1)[:, None] + self._given + at - ask
        token = jnp.take_along_axis(inputs, jnp.clip(source, 0, self.tokens - 1), axis=1)
        ended = token == self.letters + 1
        if self.answer is not None:
            ended |= at - ask == self.answer
        legal = np.isin(np.arange(self.output_size), [*range(self.letters), self.letters + 2])
        return {
            'look_up': certain_logits(jnp.where(ended, self.letters + 2, token), self.output_size),
            'chance': jnp.broadcast_to(jnp.where(legal, 0.0, -CERTAIN), (*inputs.shape, self.output_size)),
        }

    def facts(self) -> dict[str, float]:
        """The look-up is right; guessing a letter or the full stop."""
        legal = self.letters + 1
        return {'look_up': 0.0, 'chance': math.log(legal), 'chance_accuracy': 1 / legal}

    def tiny(self) -> 'Copying':
        answer = None if self.answer is None else 1
        return dataclasses.replace(self, letters=8, gram=2, answer=answer, min_length=4, max_length=6)
