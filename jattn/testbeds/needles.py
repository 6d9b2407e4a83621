"""Needles: sentences that say a value are hidden in a haystack of text; say the value of the key that is asked for.

    haystack ... The number of amber-otter is 4071839.  ... haystack  What is the number of amber-otter? It is 407183
                                                                      targets from the last space on:          4071839

RULER's single needle (Hsieh et al. 2024) in bytes, with sentences of our own. The value is teacher-forced: its
characters are scored, the last of them is only a target; a row is right (`sequence_accuracy`) if all are, which is the
same as greedy generation being right. S-NIAH-1 is haystack='noise' with value='number', S-NIAH-2 haystack='text', and
S-NIAH-3 haystack='text' with value='uuid' (Titans' PK, N, W); with several `keys` it is the multi-key needle.

    haystack   noise: four sentences again and again; text: a file's, or a Markov source's letters (`haystack.py`)
    key        adjective-noun, 11 letters, of 1024; those of a row differ
    value      number: seven digits, the first no 0; uuid: 32 hex digits and four hyphens
    depth      the share of the haystack that stands before a needle, moved to the nearest end of a line or a word

Where this differs from the published code: hex digits are uniform, where a UUID of version 4 fixes six of its 128
bits; essays are cut between words and not between sentences, every row has a window of its own, and their 40 depths
(`depth=None`) are not rounded to whole percents; the length counts bytes, the question and the value among them.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.config import nearest
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds import haystack as hay
from jattn.testbeds.discrete import CERTAIN, certain_logits, choose, token_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Float, Int32, Key

HAYSTACKS = ('noise', 'text')
HEX, HYPHENS = '0123456789abcdef', (8, 13, 18, 23)
# Which characters may stand at every place of a value, equally likely.
VALUES = {
    'number': ('123456789', *['0123456789'] * 6),
    'uuid': tuple('-' if place in HYPHENS else HEX for place in range(36)),
}
ADJECTIVES = (
    'amber brave brief brisk broad civic clean clear crisp early empty exact fancy fresh giant grand '
    'green happy heavy ideal inner jolly large light loyal lucky merry noble plain proud quick quiet'
)
NOUNS = (
    'apple beach bread brick chair cliff cloud coast daisy eagle field flute forge fruit glove grain '
    'hedge horse house lemon maple otter ocean panel pearl piano river robin spoon stone tiger wagon'
)
KEYS = tuple(f'{adjective}-{noun}' for adjective in ADJECTIVES.split() for noun in NOUNS.split())
DEPTHS = 40  # evenly spaced, of depth=None
UNIFORM = 'uniform'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles(Task):
    """Values in a haystack of bytes.

    Attributes:
        tokens: T of a row, needles, question and value (but its last character) included.
        haystack: 'noise' or 'text'.
        path: with 'text', a file whose first 4 MiB are the text; None: letters of a Markov source.
        value: 'number' or 'uuid'.
        keys: how many needles are hidden, of different keys; one is asked for.
        depth: of the needle that is asked for: 'uniform', a number from 0 (the start) to 1 (just before the question),
            or None: one of 40 evenly spaced, which the other needles are drawn from too, all different. Else the depths
            of the others are uniform.

    >>> batch = Needles(tokens=120, depth=0.0).sample(jax.random.key(0), 1)
    >>> bytes(batch.inputs[0].tolist()).splitlines()
    [b'The number of clean-lemon is 4435625.', b'in the oven.', b'Nobody is in a hurry.',
     b'What is the number of clean-lemon? It is 443562']
    >>> bytes(batch.targets[0, batch.mask[0] > 0].tolist())
    b'4435625'
    """

    kind: ClassVar[str] = 'discrete'

    tokens: int = 256
    haystack: str = 'noise'
    path: str | None = None
    value: str = 'number'
    keys: int = 1
    depth: float | str | None = UNIFORM

    def __post_init__(self) -> None:
        where = 'Needles'
        for name, known in (('haystack', HAYSTACKS), ('value', tuple(VALUES))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f'{where}: {name}={getattr(self, name)!r} is unknown; {nearest(getattr(self, name), known)}'
                )
        if self.path is not None and self.haystack != 'text':
            raise ValueError(f"{where}: path={self.path} is read with haystack='text' alone, not {self.haystack!r}")
        if isinstance(self.depth, str) and self.depth != UNIFORM:
            raise ValueError(f'{where}: depth={self.depth!r} must be {UNIFORM!r}, a number in 0..1 or None')
        if isinstance(self.depth, (int, float)) and not 0 <= self.depth <= 1:
            raise ValueError(f'{where}: depth={self.depth} must lie in 0..1')
        most = DEPTHS if self.depth is None else len(KEYS)
        if not 1 <= self.keys <= most:
            places = ' places that depth=None draws from' if self.depth is None else ' keys there are'
            raise ValueError(f'{where}: keys={self.keys} must lie in 1..{most}, the{places}')
        if self.tokens <= self.room:
            raise ValueError(
                f'{where}: tokens={self.tokens} must be more than {self.room}, '
                f'the room of keys={self.keys} needles, the question and its answer'
            )

    @property
    def input_size(self) -> int:
        return hay.BYTES

    @property
    def output_size(self) -> int:
        return hay.BYTES

    @property
    def characters(self) -> int:
        """Of a value."""
        return len(VALUES[self.value])

    @property
    def room(self) -> int:
        """The tokens that needles, question and value take."""
        key, value = len(KEYS[0]), self.characters
        needle = sum(map(len, self._lead)) + key + value + len(self._end)
        return self.keys * needle + sum(map(len, self._question)) + key + value - 1

    @property
    def _lead(self) -> tuple[str, str]:
        """Of a needle, before its key and before its value."""
        return f'The {self.value} of ', ' is '

    @property
    def _end(self) -> str:
        """Of a needle: it is a line in noise, a sentence in text."""
        return '.\n' if self.haystack == 'noise' else '. '

    @property
    def _question(self) -> tuple[str, str]:
        """Before the key and behind it; nowhere in it stands the lead of a needle."""
        return f'What is the {self.value} of ', '? It is '

    def sample(self, key: Key, batch: int) -> Batch:
        text_key, name_key, value_key, depth_key = jax.random.split(key, 4)
        text = self._text(text_key, batch, self.tokens - self.room)
        names = _table(KEYS)[choose(name_key, batch, self.keys, len(KEYS))]
        values = self._values(value_key, batch)
        depths = self._depths(depth_key, batch)

        is_break = text == hay.LINE_BREAK
        before = hay.cut(is_break if self.haystack == 'noise' else is_break | (text == hay.SPACE), depths)
        order = jnp.argsort(before, axis=1, stable=True)
        needles = _join(self._lead[0], names, self._lead[1], values, self._end)
        needles = jnp.take_along_axis(needles, order[:, :, None], axis=1)
        hidden = hay.hide(text, needles, jnp.take_along_axis(before, order, axis=1), text.shape[1] + needles[0].size)
        question = _join(self._question[0], names[:, 0], self._question[1], values[:, 0, :-1])
        front = (self.tokens - self.characters, 0)
        return Batch(
            inputs=jnp.concatenate([hidden, question], axis=1),
            targets=jnp.pad(values[:, 0], ((0, 0), front)),
            mask=jnp.pad(jnp.ones((batch, self.characters)), ((0, 0), front)),
            meta={'depth': depths[:, 0]},
        )

    def _text(self, key: Key, batch: int, length: int) -> Int32[Array, 'B S']:
        if self.haystack == 'noise':
            return hay.noise(batch, length)
        return hay.letters(key, batch, length) if self.path is None else hay.windows(key, batch, length, self.path)

    def _values(self, key: Key, batch: int) -> Int32[Array, 'B N C']:
        """The bytes of the values."""
        places = VALUES[self.value]
        sizes = np.array([len(place) for place in places], np.int32)
        drawn = jax.random.randint(key, (batch, self.keys, len(places)), 0, sizes[None, None], jnp.int32)
        table = _table([place.ljust(sizes.max()) for place in places])
        return table[np.arange(len(places))[None, None], drawn]

    def _depths(self, key: Key, batch: int) -> Float[Array, 'B N']:
        """Of the needles; the first is the one that is asked for."""
        if self.depth is None:
            return choose(key, batch, self.keys, DEPTHS) / (DEPTHS - 1)
        depths = jax.random.uniform(key, (batch, self.keys))
        return depths if self.depth == UNIFORM else depths.at[:, 0].set(self.depth)

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy of the value's characters, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy of characters, sequence_accuracy (whole values), and the curve of the latter by depth."""
        right = jnp.argmax(outputs[:, -self.characters :], axis=-1) == batch.targets[:, -self.characters :]
        curve = hay.accuracy_by_depth(jnp.all(right, axis=1), batch.meta['depth'])
        return token_metrics(outputs, batch) | {'accuracy_by_depth': curve}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the value behind the first needle of the asked key; any legal character."""
        inputs, width = batch.inputs, self.characters
        behind = len(self._question[1]) + width - 1
        name = inputs[:, -behind - len(KEYS[0]) : -behind]
        lead = _join(self._lead[0], name, self._lead[1])
        places = jnp.arange(self.tokens - lead.shape[1] - width)[:, None] + jnp.arange(lead.shape[1])[None]
        start = jnp.argmax(jnp.all(inputs[:, places] == lead[:, None], axis=2), axis=1)[:, None] + lead.shape[1]
        value = jnp.take_along_axis(inputs, start + jnp.arange(width)[None], axis=1)
        legal = np.zeros((width, self.output_size), bool)
        for place, characters in enumerate(VALUES[self.value]):
            legal[place, list(characters.encode())] = True
        front = self.tokens - width
        chance = jnp.pad(jnp.asarray(np.where(legal, 0.0, -CERTAIN), jnp.float32), ((front, 0), (0, 0)))
        return {
            'look_up': certain_logits(jnp.pad(value, ((0, 0), (front, 0))), self.output_size),
            'chance': jnp.broadcast_to(chance[None], (len(inputs), *chance.shape)),
        }

    def facts(self) -> dict[str, float]:
        """The look-up is right; what a value is without the haystack; with several keys, saying any needle's value."""
        sizes = [len(place) for place in VALUES[self.value]]
        accuracy, value = sum(1 / size for size in sizes) / len(sizes), 1 / math.prod(sizes)
        facts = {
            'look_up': 0.0,
            'chance': sum(map(math.log, sizes)) / len(sizes),
            'chance_accuracy': accuracy,
            'chance_sequence_accuracy': value,
            'value_entropy': sum(map(math.log, sizes)),
        }
        if self.keys > 1:
            needle = 1 / self.keys
            facts['any_needle_accuracy'] = needle + (1 - needle) * accuracy
            facts['any_needle_sequence_accuracy'] = needle + (1 - needle) * value
        return facts

    def tiny(self) -> 'Needles':
        """Its choices, two needles at most, 40 bytes of haystack."""
        keys = min(self.keys, 2)
        room = dataclasses.replace(self, keys=keys).room
        return dataclasses.replace(self, keys=keys, tokens=room + 40)


def _table(words: list[str] | tuple[str, ...]) -> Int32[Array, 'N W']:
    """Words of one length as bytes."""
    return jnp.asarray(np.frombuffer(''.join(words).encode(), np.uint8).reshape(len(words), -1).astype(np.int32))


def _join(*parts: str | Int32[Array, '*B W']) -> Int32[Array, '*B W']:
    """Words, and arrays of bytes, one behind the other."""
    shape = next(part.shape[:-1] for part in parts if not isinstance(part, str))
    arrays = [
        jnp.broadcast_to(_table([part])[0], (*shape, len(part))) if isinstance(part, str) else part for part in parts
    ]
    return jnp.concatenate(arrays, axis=-1)
