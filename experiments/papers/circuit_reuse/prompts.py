"""Prompts of four tasks, in pairs that differ in what decides the answer and stand token beside token.

    ioi            When Mary and John went to the store, John gave a drink to        Mary, not John
    colored        Q: On the table, I see a red cup, a blue pen, and a green hat. What color is the pen? A:       blue
    greater_than   The war lasted from the year 1743 to the year 17                  5 and no 3: tens, a digit a token
    docstring      def f(self, file, size, name): \""" ... :param file: ... :param                size, not name

The corrupted prompt has John for Mary at the second place; asks for another object, behind the same solved example;
begins in the first ten years of the century; has the next two arguments exchanged. Names, objects and arguments are
words of one length in tokens, so that all rows of a task have one length and one place for everything.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jattn.typing import Array, Float, Int32

Encode = Callable[[str], list[int]]
Words = Sequence[str]

NAMES = (
    'Mary John Tom James Dan Sarah Mark Paul Anna Kate Alice Bob Peter Jack Laura Emma David Kevin Adam Lisa Jane Eric '
    'Simon Henry George Ryan Scott Steve Frank Grace Lucy Julia Alex Sam Max Ben Luke Maria Rose Ruth'
)
PLACES = 'store park school office station garden hospital library market beach'
THINGS = 'drink book ring ball letter gift key box card map'
OPENINGS = (
    'When{} and{} went to the {},{} gave a {} to',
    'While{} and{} went to the {},{} gave a {} to',
    'After{} and{} went to the {},{} gave a {} to',
    'Then{} and{} went to the {},{} gave a {} to',
)
SPANS = 'war trip study project trial voyage'
ARGUMENTS = 'file size name date color state user group key value index path mode line text page test order'
NOTES = 'input output number list title score'
OBJECTS = 'cup book pen hat box ball ring bag plate bowl phone key card brush lamp coin bottle'
COLORS = 'red blue green black white yellow orange purple'
SURFACES, SEEN = ('table', 'desk', 'floor'), ('there is', 'you see', 'I see')


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Rows of a task.

    Attributes:
        clean, corrupted: [B, T].
        right, wrong: [B], the token that is right behind `clean`, and one that is not (behind most `corrupted` it is).
        options: [B, N], tokens that the answer is chosen from.
        places: name -> [B], where it stands in `clean`.
    """

    clean: Int32[Array, 'B T']
    corrupted: Int32[Array, 'B T']
    right: Int32[Array, 'B']
    wrong: Int32[Array, 'B']
    options: Int32[Array, 'B N']
    places: Mapping[str, Int32[Array, 'B']] = dataclasses.field(default_factory=dict)

    def metric(self) -> Callable[[Float[Array, 'B T E']], Float[Array, '']]:
        """The mean difference of the right and the wrong token's logits behind the prompt."""
        right, wrong = self.right[:, None], self.wrong[:, None]

        def difference(logits: Float[Array, 'B T E']) -> Float[Array, '']:
            last = logits[:, -1]
            return jnp.mean(jnp.take_along_axis(last, right, 1) - jnp.take_along_axis(last, wrong, 1))

        return difference


@dataclasses.dataclass(frozen=True)
class Row:
    """A pair as text: what may be answered, the right and the wrong one first, and where what stands."""

    clean: str
    corrupted: str
    options: Words
    places: Mapping[str, int]

    def lengths(self, encode: Encode) -> tuple[int, int]:
        """Tokens of both."""
        return len(encode(self.clean)), len(encode(self.corrupted))


def of_one_length(encode: Encode, words: Words) -> list[str]:
    """The words that have, behind a space, as many tokens as most of them.

    >>> of_one_length(lambda text: list(text.encode()), ['cup', 'pen', 'plate'])
    ['cup', 'pen']
    """
    lengths = [len(encode(f' {word}')) for word in words]
    most = max(sorted(set(lengths)), key=lengths.count)
    return [word for word, length in zip(words, lengths) if length == most]


def ioi(encode: Encode, generator: np.random.Generator, count: int) -> Pairs:
    """Who got it: the name that stands once."""
    names, places, things = (of_one_length(encode, words.split()) for words in (NAMES, PLACES, THINGS))
    openings = of_one_length(encode, OPENINGS)
    rows = []
    for n in range(count):
        subject, other = (f' {name}' for name in generator.choice(names, 2, replace=False))
        first, second = (subject, other) if n % 2 else (other, subject)
        place, thing, opening = generator.choice(places), generator.choice(things), openings[n % len(openings)]
        clean, corrupted = (opening.format(first, second, place, name, thing) for name in (subject, other))
        before = [encode(opening.partition('{}')[0]), encode(first), encode(' and'), encode(second)]
        starts = np.cumsum([len(part) for part in before])
        own = {'IO': starts[0] if first == other else starts[2], 'S1': starts[0] if first == subject else starts[2]}
        own['S2'] = len(encode(clean.rpartition(' gave')[0])) - 1
        rows.append(Row(clean, corrupted, (other, subject), own))
    return _pairs(encode, rows)


def colored(encode: Encode, generator: np.random.Generator, count: int) -> Pairs:
    """Which colour has the object; the corrupted prompt asks for another one."""
    objects, colors = of_one_length(encode, OBJECTS.split()), of_one_length(encode, COLORS.split())

    def scene() -> tuple[str, list[str], list[str]]:
        own, shown = generator.choice(objects, 3, replace=False), generator.choice(colors, 3, replace=False)
        seen = [f'{"an" if color[0] in "aeiou" else "a"} {color} {thing}' for color, thing in zip(shown, own)]
        listed = f'{seen[0]}, {seen[1]}, and {seen[2]}'
        text = f'Q: On the {generator.choice(SURFACES)}, {generator.choice(SEEN)} {listed}. What color is the '
        return text, list(own), list(shown)

    rows = []
    while len(rows) < count:
        (example, things, shown), (text, own, said) = scene(), scene()
        asked, told, foil = generator.integers(3), *generator.choice(3, 2, replace=False)
        front = f'{example}{things[asked]}? A: {shown[asked]}\n{text}'
        clean, corrupted = (f'{front}{own[which]}? A:' for which in (told, foil))
        options = [f' {said[which]}' for which in (told, foil, 3 - told - foil)]
        places = {f'option {n}': _before(encode, front, option) for n, option in enumerate(options)}
        rows.append(Row(clean, corrupted, options, places))
        rows = [row for row in rows if row.lengths(encode) == rows[0].lengths(encode)]
    return _pairs(encode, rows)


def greater_than(encode: Encode, generator: np.random.Generator, count: int) -> Pairs:
    """The tens of the second year are no smaller: one more against one less."""
    spans, rows = of_one_length(encode, SPANS.split()), []
    for n in range(count):
        tens, ones, span = 2 + n % 6, generator.integers(1, 9), generator.choice(spans)
        clean, corrupted = (f'The {span} lasted from the year 17{t}{ones} to the year 17' for t in (tens, 0))
        rows.append(Row(clean, corrupted, [str(tens + 1), str(tens - 1)], {'tens': tens}))
    digits = jnp.array([encode(str(digit))[-1] for digit in range(10)], jnp.int32)
    return dataclasses.replace(_pairs(encode, rows), options=jnp.tile(digits, (count, 1)))


def docstring(encode: Encode, generator: np.random.Generator, count: int) -> Pairs:
    """The third argument is next; the corrupted prompt has it exchanged with the fourth."""
    words, rows = of_one_length(encode, ARGUMENTS.split()), []
    for _ in range(count):
        own = [str(word) for word in generator.choice(words, 5, replace=False)]
        notes = generator.choice(of_one_length(encode, NOTES.split()), 2)
        turned = [*own[:2], own[3], own[2], own[4]]
        said = f'    """Do it.\n\n    :param {own[0]}: {notes[0]}\n    :param {own[1]}: {notes[1]}\n    :param'
        clean, corrupted = (f'def run(self, {", ".join(names)}):\n{said}' for names in (own, turned))
        rows.append(Row(clean, corrupted, [f' {own[n]}' for n in (2, 3, 0, 1, 4)], {}))
    return _pairs(encode, rows)


TASKS: Mapping[str, Callable[[Encode, np.random.Generator, int], Pairs]] = {
    'ioi': ioi,
    'colored': colored,
    'greater_than': greater_than,
    'docstring': docstring,
}


def _before(encode: Encode, text: str, word: str) -> int:
    """How many tokens stand before the last place of a word."""
    return len(encode(text[: text.rindex(f'{word} ')]))


def _pairs(encode: Encode, rows: Sequence[Row]) -> Pairs:
    """The tokens; an option's token is its last, where it has several."""
    lengths = {length for row in rows for length in row.lengths(encode)}
    if len(lengths) > 1:
        raise ValueError(f'prompts: rows have {sorted(lengths)} tokens, but must stand token beside token')
    ints = lambda values: jnp.array(list(values), jnp.int32)
    options = ints([encode(word)[-1] for word in row.options] for row in rows)
    return Pairs(
        clean=ints(encode(row.clean) for row in rows),
        corrupted=ints(encode(row.corrupted) for row in rows),
        right=options[:, 0],
        wrong=options[:, 1],
        options=options,
        places={name: ints(row.places[name] for row in rows) for name in rows[0].places},
    )
