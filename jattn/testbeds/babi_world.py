"""The world of babi: its tokens, the facts that may happen in it, and what is where behind them.

    fact      (person, verb, what), all numbers from 0; `what` is a place (MOVE) or an object (TAKE, DROP)
    tokens    where before | moved took dropped | four people | six places | three objects | noise

`babi.py` says what may happen and with which probability, and what the questions mean.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jattn.typing import Array, Bool, Float, Int32, Key

WORDS = (
    *('where', 'before', 'moved', 'took', 'dropped', 'anna', 'ben', 'clara', 'david'),
    *('bathroom', 'bedroom', 'garden', 'hallway', 'kitchen', 'office', 'apple', 'ball', 'milk'),
)
WHERE, BEFORE = 0, 1
VERB, PERSON, PLACE, OBJECT, NOISE = 2, 5, 9, 15, 18  # the first token of each kind
MOVE, TAKE, DROP = range(3)
VERBS, PEOPLE, PLACES, OBJECTS = 3, 4, 6, 3
WEIGHTS = (2, 1, 1)  # of the verbs
FACT = 3  # tokens
NOWHERE = NOBODY = -1


@struct.dataclass
class World:
    """What the facts so far say; places and people are numbers, -1 where no fact says it or nobody holds it.

    Attributes:
        place: [4] where every person is.
        moved: [4] the number of the fact that said so.
        holder: [3] who holds every object.
        there: [3] where it is.
        before: [3] where it was before it came there.
        carried: [3] the number of the fact that last changed `there`; it is the one that changed `before`.
    """

    place: Int32[Array, '4']
    moved: Int32[Array, '4']
    holder: Int32[Array, '3']
    there: Int32[Array, '3']
    before: Int32[Array, '3']
    carried: Int32[Array, '3']

    @classmethod
    def unknown(cls) -> 'World':
        """Before the first fact."""
        people, objects = (jnp.full(size, -1, jnp.int32) for size in (PEOPLE, OBJECTS))
        return cls(people, people, objects, objects, objects, objects)

    def after(self, fact: Int32[Array, '3'], number: Int32[Array, '']) -> 'World':
        """The world behind one more fact, and its number."""
        person, verb, what = fact
        mover = (verb == MOVE) & (jnp.arange(PEOPLE) == person)
        along = (verb == MOVE) & (self.holder == person)
        taken = (verb == TAKE) & (jnp.arange(OBJECTS) == what)
        dropped = (verb == DROP) & (jnp.arange(OBJECTS) == what)
        found = taken & (self.there == NOWHERE)
        return World(
            place=jnp.where(mover, what, self.place),
            moved=jnp.where(mover, number, self.moved),
            holder=jnp.where(taken, person, jnp.where(dropped, NOBODY, self.holder)),
            there=jnp.where(along, what, jnp.where(found, self.place[person], self.there)),
            before=jnp.where(along, self.there, self.before),
            carried=jnp.where(along | found, number, self.carried),
        )

    def answers(self, task: str) -> tuple[Int32[Array, 'N'], Int32[Array, 'N']]:
        """Of everyone or everything that the task can ask for: the answer, and the number of the deciding fact."""
        if task == 'qa1':
            return self.place, self.moved
        return (self.there if task == 'qa2' else self.before), self.carried

    def can(self, task: str, number: Int32[Array, '']) -> Bool[Array, '3 4 6']:
        """Which facts may come next, as the fact of that number: by verb, person and what."""
        here = self.place[:, None]
        move = here != jnp.arange(PLACES)[None]
        near = (self.there == NOWHERE)[None] | (self.there[None] == here)
        take = (here != NOWHERE) & (self.holder == NOBODY)[None] & near
        drop = self.holder[None] == jnp.arange(PEOPLE)[:, None]
        if task == 'qa1':
            take, drop = jnp.zeros_like(take), jnp.zeros_like(drop)
        else:
            move &= number != 1
        if task == 'qa3':
            free = number != 2
            move &= free | jnp.any(drop, axis=1, keepdims=True)
            take, drop = take & free, drop & free
        wide = ((0, 0), (0, PLACES - OBJECTS))
        return jnp.stack([move, jnp.pad(take, wide), jnp.pad(drop, wide)])


def log_law(can: Bool[Array, '3 4 6']) -> Float[Array, '3 4 6']:
    """The logarithm of the law of the next fact, but for a constant: the verb, then who, then what.

    >>> law = jax.nn.softmax(log_law(World.unknown().can('qa2', jnp.int32(0))), axis=(0, 1, 2))
    >>> bool(jnp.allclose(law[MOVE], 1 / 24)), law[TAKE:].sum().item()
    (True, 0.0)
    """
    kinds = jnp.sum(can, axis=2, keepdims=True)
    people = jnp.sum(kinds > 0, axis=1, keepdims=True)
    weights = jnp.array(WEIGHTS, jnp.float32)[:, None, None]
    return jnp.where(can, jnp.log(weights / (jnp.maximum(people, 1) * jnp.maximum(kinds, 1))), -jnp.inf)


def draw_facts(key: Key, task: str, count: int) -> Int32[Array, 'N 3']:
    """`count` facts, one after another.

    >>> world = tell(draw_facts(jax.random.key(0), 'qa3', 3), jnp.int32(3))
    >>> int(jnp.sum(world.before != NOWHERE)), int(jnp.sum(world.there != world.before))
    (1, 1)
    """

    def advance(world: World, drawn: tuple[Key, Int32[Array, '']]) -> tuple[World, Int32[Array, '3']]:
        key, number = drawn
        choice = jax.random.categorical(key, log_law(world.can(task, number)).reshape(-1))
        verb, person, what = jnp.unravel_index(choice, (VERBS, PEOPLE, PLACES))
        fact = jnp.stack([person, verb, what]).astype(jnp.int32)
        return world.after(fact, number), fact

    numbers = jnp.arange(count, dtype=jnp.int32)
    return jax.lax.scan(advance, World.unknown(), (jax.random.split(key, count), numbers))[1]


def tell(facts: Int32[Array, 'N 3'], count: Int32[Array, '']) -> World:
    """The world behind the first `count` facts.

    >>> facts = jnp.array([[0, MOVE, 4], [0, TAKE, 2], [0, MOVE, 1]], jnp.int32)
    >>> world = tell(facts, jnp.int32(3))
    >>> [x.tolist() for x in (world.place, world.holder, world.there, world.before)]
    [[1, -1, -1, -1], [-1, -1, 0], [-1, -1, 1], [-1, -1, 4]]
    """

    def advance(world: World, told: tuple[Int32[Array, '3'], Int32[Array, '']]) -> tuple[World, None]:
        fact, number = told
        after = world.after(fact, number)
        return jax.tree.map(lambda new, old: jnp.where(number < count, new, old), after, world), None

    return jax.lax.scan(advance, World.unknown(), (facts, jnp.arange(len(facts), dtype=jnp.int32)))[0]


def to_tokens(facts: Int32[Array, '*B 3']) -> Int32[Array, '*B 3']:
    """Facts as three tokens each."""
    person, verb, what = (facts[..., slot] for slot in range(FACT))
    return jnp.stack([PERSON + person, VERB + verb, jnp.where(verb == MOVE, PLACE, OBJECT) + what], axis=-1)


def from_tokens(tokens: Int32[Array, 'T'], most: int) -> tuple[Int32[Array, 'N 3'], Int32[Array, '']]:
    """The first `most` facts among noise (what stands behind the last one means nothing), and how many there are.

    >>> facts = jnp.array([[2, MOVE, 5], [2, TAKE, 1]], jnp.int32)
    >>> found, count = from_tokens(jnp.array([NOISE, *to_tokens(facts).reshape(-1).tolist(), NOISE]), 3)
    >>> found[:2].tolist() == facts.tolist(), int(count)
    (True, 2)
    """
    is_start = (tokens >= PERSON) & (tokens < PLACE)  # every fact begins with a person, and nothing else is one
    starts = jnp.nonzero(is_start, size=most, fill_value=0)[0]
    person, verb, what = (tokens[starts + slot] for slot in range(FACT))
    facts = [person - PERSON, verb - VERB, what - jnp.where(verb == VERB + MOVE, PLACE, OBJECT)]
    return jnp.stack(facts, axis=1).astype(jnp.int32), jnp.sum(is_start, dtype=jnp.int32)


def say(tokens: Int32[Array, 'T']) -> str:
    """Tokens as words, noise as full stops."""
    return ' '.join(WORDS[token] if token < NOISE else '.' for token in tokens.tolist())
