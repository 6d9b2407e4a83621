"""A small world told as a list of events, and pairs of claims about it: one that the list entails, one that it refutes.

An event is four tokens, a claim five after its kind:

    events  MOVE who place .   TAKE who object .   DROP who object .   GIVE giver object who   HAPPY who object .
            WAIT who . .
    kind        claim                               the fib changes  what is planted in the log
    last_state  who place                           place            who moves to the fib's place, later to the fact's
    order       who object BEFORE rival object'     BEFORE/AFTER     both drops, each once
    cause       who giver                           giver            both give, different objects; who is HAPPY with one
    count       who object number                   number, by one   that many takes
    quantifier  who place ("who never was there")   who              the fib's who moves there, the fact's elsewhere
    detail      giver object who                    object           the gift; the other object given to another person

The world is flat: no event needs another one, so that a person may drop what nobody took. What holds is what the list
says, and what it does not say is false. A person is happy with an object; the cause is the gift of that object to that
person at an earlier time. Claims of cause leave the object out: with it the gift alone would refute the fib.

**Nothing in a claim tells a fact from a fib.** First the claims are drawn, each with the two values of the slot that is
changed in random order, then a log in which the first value is true. So (fact, fib) and (fib, fact) have the same
probability, for every kind and any parameters, and a scorer that sees the claim alone has forced choice exactly 1/2.
Counts are a random neighbouring pair (n, n + 1) whose order is a coin's. The mirror image "B before A" of a claim of
order is said "A after B", which is one slot.

**Several claims of one log** never meet: the persons who move, take, drop and get gifts in the planted events of a
claim belong to it (one list of persons without replacement for each of these four ledgers). All other places of the
log are filled with random events; one that would make a claim's truth another one becomes WAIT of the same person.

The form follows MF^2 (Movie Facts and Fibs, 2025), whose claims are about films; the world is ours.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jattn.testbeds.discrete import choose
from jattn.typing import Array, Bool, Int32, Key, Shape

PAD, ANSWER, FALSE, TRUE = range(4)
MOVE, TAKE, DROP, GIVE, HAPPY, WAIT = range(4, 10)
ACTIONS = ('MOVE', 'TAKE', 'DROP', 'GIVE', 'HAPPY', 'WAIT')
KINDS = ('last_state', 'order', 'cause', 'count', 'quantifier', 'detail')
LAST_STATE, ORDER, CAUSE, COUNT, QUANTIFIER, DETAIL = range(len(KINDS))
FIRST_KIND = 10
BEFORE, AFTER = 16, 17
NUMBER = 17  # the number n is the token 17 + n
EVENT, CLAIM = 4, 6  # tokens
# Of each kind: whose list of persons its claims take from (moves, takes, drops, gifts received), and how many.
LEDGERS, LEDGER, OWNS = 4, (0, 2, 3, 1, 0, 3), (1, 2, 1, 1, 2, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """How much there is of everything, and which token says it.

    Attributes:
        entities: persons.
        places: where they move.
        objects: what they take, drop and give.
        most: the largest number that a claim of count says.

    >>> world = World(entities=3, places=2, objects=2, most=4)
    >>> world.vocabulary, world.say([GIVE, world.entity, world.object + 1, world.entity + 2])
    (29, 'GIVE e0 o1 e2')
    """

    entities: int
    places: int
    objects: int
    most: int

    @property
    def entity(self) -> int:
        """The token of the first person."""
        return NUMBER + 1 + self.most

    @property
    def place(self) -> int:
        """The token of the first place."""
        return self.entity + self.entities

    @property
    def object(self) -> int:
        """The token of the first object."""
        return self.place + self.places

    @property
    def vocabulary(self) -> int:
        return self.object + self.objects

    @property
    def planted(self) -> int:
        """M, the most events that one claim puts into the log."""
        return max(self.most, 3)

    @property
    def words(self) -> tuple[str, ...]:
        """Every token as a word."""
        numbers = [str(n) for n in range(1, self.most + 1)]
        names = [('e', self.entities), ('p', self.places), ('o', self.objects)]
        names = [f'{letter}{i}' for letter, count in names for i in range(count)]
        return ('.', 'ANSWER', 'FALSE', 'TRUE', *ACTIONS, *KINDS, 'BEFORE', 'AFTER', *numbers, *names)

    def say(self, tokens: Array | list[int]) -> str:
        """Tokens as words."""
        return ' '.join(self.words[int(token)] for token in tokens)


@struct.dataclass
class Log:
    """Logs and the pairs of claims about them.

    Attributes:
        events: [B, T, 4] tokens.
        facts: [B, K, 6] tokens of the claims that the log entails.
        fibs: [B, K, 6] tokens of those that it refutes; one slot differs.
        first: [B, K] the first event needed to tell the two apart.
        last: [B, K] the last one.
    """

    events: Int32[Array, 'B T 4']
    facts: Int32[Array, 'B K 6']
    fibs: Int32[Array, 'B K 6']
    first: Int32[Array, 'B K']
    last: Int32[Array, 'B K']


@struct.dataclass
class Cast:
    """Whom and what each claim is about, tokens [B, K]; `kind` and `count` are numbers, `flip` is a coin.

    `who` and `rival` belong to the claim. `flip` says which of its first two events comes first, or which of the
    numbers `count` and `count` + 1 is true.
    """

    kind: Int32[Array, 'B K']
    flip: Bool[Array, 'B K']
    who: Int32[Array, 'B K']
    rival: Int32[Array, 'B K']
    giver: Int32[Array, 'B K']
    other_giver: Int32[Array, 'B K']
    place: Int32[Array, 'B K']
    other_place: Int32[Array, 'B K']
    object: Int32[Array, 'B K']
    other_object: Int32[Array, 'B K']
    count: Int32[Array, 'B K']

    @property
    def takes(self) -> Int32[Array, 'B K']:
        """The true number of a claim of count."""
        return self.count + self.flip


def persons_needed(kinds: np.ndarray) -> int:
    """How many persons claims of these kinds about one log need, [..., K] ids -> the most of any row.

    >>> persons_needed(np.array([[LAST_STATE, QUANTIFIER, DETAIL], [ORDER, ORDER, ORDER]]))
    6
    """
    owned = np.asarray(OWNS)[kinds]
    return max(int(np.max(np.sum(owned * (np.asarray(LEDGER)[kinds] == one), axis=-1))) for one in range(LEDGERS))


def draw(key: Key, world: World, kinds: Int32[Array, 'B K'], events: int, noise: float) -> Log:
    """Logs with one pair of claims of each of these kinds.

    Args:
        key: of everything.
        world: the sizes.
        kinds: the ids of the claims' kinds, numbers of KINDS.
        events: T, at least K times `world.planted`.
        noise: share of WAIT among the events that no claim needs.

    >>> world = World(entities=3, places=2, objects=2, most=2)
    >>> log = draw(jax.random.key(0), world, jnp.array([[CAUSE]]), events=4, noise=1.0)
    >>> [world.say(event) for event in log.events[0]]
    ['WAIT e1 . .', 'GIVE e1 o1 e2', 'GIVE e0 o0 e2', 'HAPPY e2 o1 .']
    >>> world.say(log.facts[0, 0]), world.say(log.fibs[0, 0]), int(log.first[0, 0]), int(log.last[0, 0])
    ('cause e2 e1 . . .', 'cause e2 e0 . . .', 1, 3)
    """
    cast_key, place_key, noise_key = jax.random.split(key, 3)
    cast = draw_cast(cast_key, world, kinds)
    planted, used = script(world, cast)
    places = choose(place_key, len(kinds), used.shape[1] * world.planted, events).reshape(*used.shape, world.planted)
    # Events that a claim has no use for get the place behind the log, where nothing is written.
    places = jnp.sort(jnp.where(jnp.arange(world.planted)[None, None] < used[:, :, None], places, events), axis=-1)
    first, last = _needed(cast, places, events)
    filler = random_events(noise_key, world, len(kinds), events, noise)
    spoils = _spoils(cast, last, filler)
    waits = jnp.stack([jnp.full_like(filler[:, :, 0], WAIT), filler[:, :, 1]], axis=-1)
    filler = jnp.where(spoils[:, :, None], jnp.pad(waits, ((0, 0), (0, 0), (0, 2))), filler)
    rows = jnp.arange(len(kinds))[:, None, None]
    return Log(filler.at[rows, places].set(planted, mode='drop'), *claims_of(cast), first, last)


def draw_cast(key: Key, world: World, kinds: Int32[Array, 'B K']) -> Cast:
    """Whom and what claims of these kinds are about; whoever belongs to one claim belongs to no other."""
    keys = jax.random.split(key, 6)
    shape, batch = kinds.shape, len(kinds)
    ledger, owns = jnp.asarray(LEDGER)[kinds], jnp.asarray(OWNS)[kinds]
    earlier = (ledger[:, :, None] == ledger[:, None, :]) & np.tri(shape[1], k=-1, dtype=bool)[None]
    taken = jnp.sum(jnp.where(earlier, owns[:, None, :], 0), axis=-1)
    persons = choose(keys[0], batch * LEDGERS, world.entities, world.entities).reshape(batch, LEDGERS, world.entities)
    row = jnp.arange(batch)[:, None]
    who = persons[row, ledger, taken]
    rival = persons[row, ledger, jnp.minimum(taken + 1, world.entities - 1)]

    def two(key: Key, out_of: int) -> Int32[Array, '2 B K']:
        """Two different numbers for each claim, in random order."""
        return choose(key, who.size, 2, out_of).T.reshape(2, *shape)

    givers = (who[None] + 1 + two(keys[1], world.entities - 1)) % world.entities
    places, objects = two(keys[2], world.places), two(keys[3], world.objects)
    return Cast(
        kinds,
        jax.random.bernoulli(keys[4], 0.5, shape),
        *(world.entity + x for x in (who, rival, *givers)),
        *(world.place + x for x in places),
        *(world.object + x for x in objects),
        jax.random.randint(keys[5], shape, 1, world.most, jnp.int32),
    )


def claims_of(cast: Cast) -> tuple[Int32[Array, 'B K 6'], Int32[Array, 'B K 6']]:
    """The tokens of the facts and of the fibs: the kind, then its slots."""
    shape = cast.kind.shape

    def say(place: Array, relation: Array, giver: Array, number: Array, who: Array, thing: Array) -> Array:
        """Claims with these values of the slot that a fib changes."""
        slots = [
            (cast.who, place),
            (cast.who, cast.object, relation, cast.rival, cast.other_object),
            (cast.who, giver),
            (cast.who, cast.object, number),
            (who, cast.place),
            (cast.giver, thing, cast.who),
        ]
        said = [_columns((FIRST_KIND + kind, *values), CLAIM, shape) for kind, values in enumerate(slots)]
        return by_kind(cast.kind, said)

    relation, number = jnp.where(cast.flip, AFTER, BEFORE), NUMBER + cast.takes
    lie = NUMBER + 2 * cast.count + 1 - cast.takes
    facts = say(cast.place, relation, cast.giver, number, cast.who, cast.object)
    return facts, say(cast.other_place, BEFORE + AFTER - relation, cast.other_giver, lie, cast.rival, cast.other_object)


def script(world: World, cast: Cast) -> tuple[Int32[Array, 'B K M 4'], Int32[Array, 'B K']]:
    """The events that each claim puts into the log, in the order of time, and how many of the M are used."""
    elsewhere = jnp.where(cast.other_giver == cast.rival, cast.who, cast.other_giver)  # nobody gives to himself
    scenes = [
        ((MOVE, cast.who, cast.other_place), (MOVE, cast.who, cast.place)),
        ((DROP, cast.who, cast.object), (DROP, cast.rival, cast.other_object)),
        (
            (GIVE, cast.giver, cast.object, cast.who),
            (GIVE, cast.other_giver, cast.other_object, cast.who),
            (HAPPY, cast.who, cast.object),
        ),
        ((TAKE, cast.who, cast.object),) * world.most,
        ((MOVE, cast.rival, cast.place), (MOVE, cast.who, cast.other_place)),
        ((GIVE, cast.giver, cast.object, cast.who), (GIVE, elsewhere, cast.other_object, cast.rival)),
    ]
    used = [jnp.full_like(cast.count, len(scene)) for scene in scenes]
    used[COUNT] = cast.takes
    nothing = ((PAD,) * EVENT,)
    events = [
        jnp.stack([_columns(event, EVENT, cast.kind.shape) for event in (*scene, *nothing * world.planted)], axis=2)
        for scene in scenes
    ]
    planted = by_kind(cast.kind, [scene[:, :, : world.planted] for scene in events])
    swapped = jnp.concatenate([planted[:, :, 1::-1], planted[:, :, 2:]], axis=2)
    swap = cast.flip & (cast.kind != LAST_STATE)
    return jnp.where(swap[:, :, None, None], swapped, planted), by_kind(cast.kind, used)


def random_events(key: Key, world: World, batch: int, events: int, noise: float) -> Int32[Array, 'B T 4']:
    """Events of all kinds, equally often, and WAIT with probability `noise`."""
    keys = jax.random.split(key, 6)
    shape = (batch, events)
    who, place, thing = (
        jax.random.randint(one, shape, 0, size, jnp.int32)
        for one, size in zip(keys, (world.entities, world.places, world.objects))
    )
    receiver = (who + jax.random.randint(keys[3], shape, 1, world.entities, jnp.int32)) % world.entities
    action = jax.random.randint(keys[4], shape, MOVE, WAIT, jnp.int32)
    action = jnp.where(jax.random.bernoulli(keys[5], noise, shape), WAIT, action)
    what = jnp.where(action == MOVE, world.place + place, jnp.where(action == WAIT, PAD, world.object + thing))
    whom = jnp.where(action == GIVE, world.entity + receiver, PAD)
    return jnp.stack([action, world.entity + who, what, whom], axis=-1)


def _needed(cast: Cast, places: Int32[Array, 'B K M'], events: int) -> tuple[Int32[Array, 'B K'], Int32[Array, 'B K']]:
    """The first and the last event needed: the planted ones, without the other gift; all for "never entered"."""
    gift = jnp.where(cast.flip, places[:, :, 1], places[:, :, 0])
    final = jnp.take_along_axis(places, cast.takes[:, :, None] - 1, axis=2)[:, :, 0]
    start, end = jnp.zeros_like(gift), jnp.full_like(gift, events - 1)
    first = [places[:, :, 0], places[:, :, 0], gift, places[:, :, 0], start, gift]
    last = [places[:, :, 1], places[:, :, 1], places[:, :, 2], final, end, gift]
    return by_kind(cast.kind, first), by_kind(cast.kind, last)


def _spoils(cast: Cast, last: Int32[Array, 'B K'], events: Int32[Array, 'B T 4']) -> Bool[Array, 'B T']:
    """Whether an event at its place in the log would make a claim true or false that should not be."""
    action, subject, what, whom = (events[:, :, slot, None] for slot in range(EVENT))
    one = jax.tree.map(lambda leaf: leaf[:, None, :], cast)
    time = jnp.arange(events.shape[1])[None, :, None]
    is_object, is_other = what == one.object, what == one.other_object
    by_who, by_rival, to_who = subject == one.who, subject == one.rival, whom == one.who
    guards = [
        (action == MOVE) & by_who & (time > last[:, None, :]),
        (action == DROP) & (by_who & is_object | by_rival & is_other),
        (action == HAPPY) & by_who | (action == GIVE) & to_who & is_object,
        (action == TAKE) & by_who & is_object,
        (action == MOVE) & (by_who | by_rival) & (what == one.place),
        (action == GIVE) & (subject == one.giver) & to_who & (is_object | is_other),
    ]
    return jnp.any(by_kind(one.kind, guards), axis=-1)


def _columns(slots: tuple[int | Array, ...], width: int, shape: Shape) -> Int32[Array, '*B W']:
    """Tokens of one kind of event or claim side by side, PAD behind them."""
    columns = [jnp.broadcast_to(jnp.asarray(slot, jnp.int32), shape) for slot in slots]
    return jnp.stack(columns + [jnp.full(shape, PAD, jnp.int32)] * (width - len(columns)), axis=-1)


def by_kind(kind: Int32[Array, '*B'], options: list[Array]) -> Array:
    """Of one array for each kind of claim, [*B, ...], the entry of each claim's kind.

    >>> by_kind(jnp.array([COUNT, ORDER]), [jnp.array([n, 10 + n]) for n in range(6)]).tolist()
    [3, 11]
    """
    index = kind.reshape(*kind.shape, *[1] * (options[0].ndim - kind.ndim))
    shape = jnp.broadcast_shapes(index.shape, *(option.shape for option in options))
    return jnp.select([jnp.broadcast_to(index == i, shape) for i in range(len(KINDS))], options)
