"""Facts and fibs: read a long list of events, then say of one claim whether it is TRUE or FALSE.

    event_1 ... event_T   kind slot slot slot slot slot   ANSWER          target at ANSWER: TRUE or FALSE

An event is four tokens, a claim six, PAD where it has fewer slots: a row has 4 T + 7 tokens and only its last place is
scored. What the events and the six kinds of claims are, and why a claim alone says nothing about its truth, stands in
`event_log`. In training a row has one claim, a fact or its fib with probability 1/2.

A row of one claim teaches one bit. With `claims_per_row` = K claims follow one another behind the log, each with an
ANSWER of its own that is scored: 4 T + 7 K tokens. Each is a fact or a fib by its own coin, never both of a pair, and
the inputs hold no answers. The claims of a row never meet (`event_log`), so that those before say nothing about one.

`paired` rows come in twos, a fact and then its fib about the same log, and the metrics are also those of pairs. `pairs`
makes contexts with several pairs of claims each, to be judged one by one: what `paired_claims` scores. It is the
protocol of MF^2 (Movie Facts and Fibs, 2025) without the films: a fib is a fact with one slot changed, and a pair
counts only if the fact is called true and the fib false.

How far apart the events of a pair stand, as a share of the context, is its granularity: the span from the first to the
last event needed is at most T/20 (single), at most T/2 (multi) or longer (global). Needed are

    last_state    the last move and the earlier one to the fib's place        count        the first and the last take
    order         the two drops                                               quantifier   all events
    cause         the true gift and the happiness that it causes              detail       the one gift
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds import event_log
from jattn.testbeds.discrete import CERTAIN, certain_logits
from jattn.testbeds.event_log import ANSWER, CLAIM, EVENT, FALSE, KINDS, TRUE
from jattn.testbeds.paired_claims import pair_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Bool, Float, Int32, Key

GRANULARITIES = ('single', 'multi', 'global')
OF_PAIRS = ('pairwise', 'forced_choice', 'bias_gap')  # what metrics add where rows are paired


def granularity(first: Int32[Array, '*B'], last: Int32[Array, '*B'], events: int) -> Int32[Array, '*B']:
    """Numbers of GRANULARITIES: span at most events / 20, at most events / 2, longer.

    >>> granularity(jnp.array([3, 3, 3]), jnp.array([5, 6, 24]), 40).tolist()
    [0, 1, 2]
    """
    span = last - first
    return (span * 20 > events).astype(jnp.int32) + (span * 2 > events).astype(jnp.int32)


def entails(world: event_log.World, events: Int32[Array, '*B T 4'], claim: Int32[Array, '*B 6']) -> Bool[Array, '*B']:
    """Whether a log entails a claim, from the tokens alone: the exact checker, made for any log.

    >>> world = event_log.World(entities=2, places=2, objects=2, most=3)
    >>> e, o = world.entity, world.object
    >>> log = jnp.array([[event_log.TAKE, e, o, 0], [event_log.TAKE, e, o, 0], [event_log.TAKE, e + 1, o, 0]])
    >>> kind = event_log.FIRST_KIND + event_log.COUNT
    >>> [bool(entails(world, log, jnp.array([kind, e, o, event_log.NUMBER + n, 0, 0]))) for n in (1, 2, 3)]
    [False, True, False]
    """
    action, who, what, whom = (events[..., slot] for slot in range(EVENT))
    a, b, c, d, e = (claim[..., slot, None] for slot in range(1, CLAIM))
    steps = events.shape[-2]
    time = jnp.broadcast_to(jnp.arange(steps), action.shape)

    def first(match: Bool[Array, '*B T']) -> Int32[Array, '*B']:
        return jnp.min(jnp.where(match, time, steps), axis=-1)

    def last(match: Bool[Array, '*B T']) -> Int32[Array, '*B']:
        return jnp.max(jnp.where(match, time, -1), axis=-1)

    moves = (action == event_log.MOVE) & (who == a)
    drops, gifts = action == event_log.DROP, action == event_log.GIVE
    one, other = first(drops & (who == a) & (what == b)), first(drops & (who == d) & (what == e))
    in_order = jnp.where(claim[..., 3] == event_log.BEFORE, one < other, other < one)
    takes = (action == event_log.TAKE) & (who == a) & (what == b)
    causes = []
    for thing in range(world.object, world.object + world.objects):
        given = first(gifts & (who == b) & (whom == a) & (what == thing))
        causes.append(given < last((action == event_log.HAPPY) & (who == a) & (what == thing)))
    found = [
        (last(moves) >= 0) & (last(moves) == last(moves & (what == b))),
        (one < steps) & (other < steps) & in_order,
        functools.reduce(jnp.logical_or, causes),
        jnp.sum(takes, axis=-1, dtype=jnp.int32) == claim[..., 3] - event_log.NUMBER,
        ~jnp.any(moves & (what == b), axis=-1),
        jnp.any(gifts & (who == a) & (what == b) & (whom == c), axis=-1),
    ]
    return event_log.by_kind(claim[..., 0] - event_log.FIRST_KIND, found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactsAndFibs(Task):
    """One claim about a log of events, or several, TRUE or FALSE.

    Attributes:
        events: T, of the log; a row has 4 T + 7 K tokens.
        claims: the kinds of claims, equally often.
        claims_per_row: K, of `sample`; the log must have room for what they need.
        paired: whether rows come in twos about one log: K facts, then their K fibs.
        entities: persons.
        places: where they move.
        objects: what they take, drop and give.
        most: the largest number that a claim of count says, at least 2.
        noise: share of WAIT, an event that no claim is about, among the events that no claim needs.

    >>> task = FactsAndFibs(events=4)
    >>> batch = task.sample(jax.random.key(8), 1)
    >>> [task.world.say(event) for event in batch.inputs[0, :16].reshape(4, 4)]
    ['GIVE e8 o8 e1', 'GIVE e2 o11 e1', 'MOVE e10 p5 .', 'HAPPY e1 o8 .']
    >>> task.world.say(batch.inputs[0, 16:]), task.world.say(batch.targets[0, -1:])
    ('cause e1 e8 . . . ANSWER', 'TRUE')
    """

    kind: ClassVar[str] = 'discrete'

    events: int = 16
    claims: tuple[str, ...] = KINDS
    claims_per_row: int = 1
    paired: bool = False
    entities: int = 12
    places: int = 8
    objects: int = 12
    most: int = 4
    noise: float = 0.25

    def __post_init__(self) -> None:
        where = 'FactsAndFibs'
        for name, least in (('claims_per_row', 1), ('entities', 3), ('places', 2), ('objects', 2), ('most', 2)):
            if getattr(self, name) < least:
                raise ValueError(f'{where}: {name}={getattr(self, name)} must be at least {least}')
        if not self.claims or len(set(self.claims)) < len(self.claims) or not set(self.claims) <= set(KINDS):
            raise ValueError(f'{where}: claims={self.claims} must be one or more, each once, of {", ".join(KINDS)}')
        if not 0 <= self.noise <= 1:
            raise ValueError(f'{where}: noise={self.noise} must lie in 0..1')
        self.check_claims(self.claims_per_row)

    def check_claims(self, count: int) -> None:
        """Raises a ValueError where a log has no room, or the world too few persons, for so many claims."""
        room, persons = count * self.world.planted, event_log.persons_needed(self._rotations(count))
        if self.events < room:
            raise ValueError(
                f'FactsAndFibs: events={self.events} must be at least {room}: '
                f'{self.world.planted} for each of the claims about one log, here {count}'
            )
        if self.entities < persons:
            raise ValueError(
                f'FactsAndFibs: entities={self.entities} must be at least {persons}, so that none of the claims '
                f'about one log, here {count}, meets another'
            )

    def _rotations(self, count: int) -> np.ndarray:
        """Kinds of the claims of one context, beginning with each of the kinds: [N, K] ids."""
        ids = np.array([KINDS.index(name) for name in self.claims], np.int32)
        return ids[(np.arange(len(ids))[:, None] + np.arange(count)[None, :]) % len(ids)]

    @property
    def world(self) -> event_log.World:
        return event_log.World(entities=self.entities, places=self.places, objects=self.objects, most=self.most)

    @property
    def input_size(self) -> int:
        return self.world.vocabulary

    @property
    def output_size(self) -> int:
        return self.world.vocabulary

    @property
    def context(self) -> int:
        """Tokens of the events, 4 T."""
        return EVENT * self.events

    @property
    def answers(self) -> tuple[int, ...]:
        """Where a row's ANSWERs stand, K places."""
        return tuple(self.context + (CLAIM + 1) * (i + 1) - 1 for i in range(self.claims_per_row))

    def sample(self, key: Key, batch: int) -> Batch:
        rows = 2 if self.paired else 1  # about a log
        if batch % rows:
            raise ValueError(f'FactsAndFibs: a batch of {batch} rows must be even where paired=True')
        kind_key, log_key, truth_key = jax.random.split(key, 3)
        kinds = jax.random.randint(kind_key, (batch // rows,), 0, len(self.claims))
        kinds = jnp.asarray(self._rotations(self.claims_per_row))[kinds]
        log = event_log.draw(log_key, self.world, kinds, self.events, self.noise)
        truth = jax.random.bernoulli(truth_key, 0.5, kinds.shape)
        if self.paired:
            kinds, log = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), (kinds, log))
            truth = jnp.broadcast_to(jnp.arange(batch)[:, None] % 2 == 0, kinds.shape)
        facts, fibs = _with_answer(log.facts), _with_answer(log.fibs)
        claims = jnp.where(truth[:, :, None], facts, fibs)
        inputs = jnp.concatenate([log.events.reshape(batch, -1), claims.reshape(batch, -1)], axis=1)
        at_answers = jnp.zeros(inputs.shape, jnp.int32).at[:, self.answers]
        targets, mask = at_answers.set(jnp.where(truth, TRUE, FALSE)), at_answers.set(1)
        meta = {**self._meta(kinds, log), 'fact': facts, 'fib': fibs, 'truth': truth.astype(jnp.int32)}
        if self.claims_per_row == 1:  # what is known of the claim has no axis of claims
            meta = {name: value[:, 0] for name, value in meta.items()}
        return Batch(inputs, targets, mask.astype(jnp.float32), meta=meta)

    def pairs(
        self, key: Key, contexts: int, claims_per_context: int
    ) -> tuple[Int32[Array, 'N L'], Int32[Array, 'N P 7'], Int32[Array, 'N P 7'], dict[str, Int32[Array, 'N P']]]:
        """Contexts of 4 T tokens with several pairs of claims each, all kinds equally often (to one in all).

        The kinds follow one another from pair to pair and on to the next context, from a random one on.

        Args:
            key: of everything.
            contexts: N.
            claims_per_context: P, pairs; the log must have room for what they need.

        Returns:
            contexts, the facts and the fibs about them, with ANSWER behind each, and by name: `kind` (numbers of
            KINDS), `granularity` (of GRANULARITIES), `first` and `last` event needed.

        >>> contexts, facts, fibs, meta = FactsAndFibs(events=32).pairs(jax.random.key(0), 2, 3)
        >>> contexts.shape, facts.shape, fibs.shape, meta['kind'].tolist()
        ((2, 128), (2, 3, 7), (2, 3, 7), [[1, 2, 3], [4, 5, 0]])
        """
        self.check_claims(claims_per_context)
        start_key, log_key = jax.random.split(key)
        start = jax.random.randint(start_key, (), 0, len(self.claims), jnp.int32)
        starts = (start + jnp.arange(contexts, dtype=jnp.int32) * claims_per_context) % len(self.claims)
        kinds = jnp.asarray(self._rotations(claims_per_context))[starts]
        log = event_log.draw(log_key, self.world, kinds, self.events, self.noise)
        facts, fibs = _with_answer(log.facts), _with_answer(log.fibs)
        return log.events.reshape(contexts, -1), facts, fibs, self._meta(kinds, log)

    def _meta(self, kinds: Int32[Array, 'N P'], log: event_log.Log) -> dict[str, Int32[Array, 'N P']]:
        far = granularity(log.first, log.last, self.events)
        return {'kind': kinds, 'granularity': far, 'first': log.first, 'last': log.last}

    def log_odds(self, outputs: Float[Array, 'B T E']) -> Float[Array, 'B']:
        """How much more TRUE than FALSE a model says at the end of its rows: the score of the paired protocol.

        Rows that end in one claim, or outputs of the claim alone, behind a state of the log.
        """
        return outputs[:, -1, TRUE] - outputs[:, -1, FALSE]

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy at every ANSWER over the whole vocabulary, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy (an answer that is neither word is wrong), of facts, of fibs and of each kind of claim.

        Of paired rows also `pairwise`, `forced_choice` and `bias_gap` by log-odds, as in `paired_claims`.
        """
        said = jnp.argmax(outputs[:, self.answers], axis=-1)
        right = (said == batch.targets[:, self.answers]).astype(jnp.float32)
        truth, kind = (batch.meta[name].reshape(right.shape) for name in ('truth', 'kind'))
        metrics = {
            'loss': self.loss(outputs, batch),
            'accuracy': Mean.of(right, batch.mask[:, self.answers]),
            'fact_accuracy': Mean.of(right, truth),
            'fib_accuracy': Mean.of(right, 1 - truth),
        }
        metrics |= {f'{name}_accuracy': Mean.of(right, kind == KINDS.index(name)) for name in self.claims}
        if self.paired:
            odds = outputs[:, self.answers, TRUE] - outputs[:, self.answers, FALSE]
            of_pairs = pair_metrics(odds[0::2].ravel(), odds[1::2].ravel())
            count = jnp.asarray(of_pairs['pairs'], jnp.float32)
            metrics |= {name: Mean(of_pairs[name] * count, count) for name in OF_PAIRS}
        return metrics

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits, from the inputs alone: the exact checker, and what a claim alone says, both answers at equal odds."""
        events = batch.inputs[:, : self.context].reshape(len(batch.inputs), self.events, EVENT)
        claims = batch.inputs[:, self.context :].reshape(len(batch.inputs), -1, CLAIM + 1)
        answers = jnp.where(entails(self.world, events[:, None], claims[:, :, :CLAIM]), TRUE, FALSE)
        answers = jnp.repeat(answers, CLAIM + 1, axis=1)
        is_answer = jnp.isin(jnp.arange(self.output_size), jnp.array([TRUE, FALSE]))
        either = CERTAIN * (is_answer.astype(jnp.float32) - 1)
        shape = (*batch.inputs.shape, self.output_size)
        return {
            'checker': certain_logits(jnp.pad(answers, ((0, 0), (self.context, 0)), mode='edge'), self.output_size),
            'statement_only': jnp.broadcast_to(either[None, None], shape),
        }

    def facts(self) -> dict[str, float]:
        """What is exact without and with the log: no claim alone says more than a coin."""
        return {
            'statement_only': math.log(2),
            'checker': 0.0,
            'chance_accuracy': 0.5,
            'statement_only_forced_choice': 0.5,
            'coins_pairwise': 0.25,
            'no_knowledge_ceiling_pairwise': 0.5,
        }

    def tiny(self) -> 'FactsAndFibs':
        row = min(self.claims_per_row, 2)
        return dataclasses.replace(self, events=6, claims_per_row=row, entities=4, places=3, objects=3, most=3)


def _with_answer(claims: Int32[Array, 'N P 6']) -> Int32[Array, 'N P 7']:
    """ANSWER behind each claim."""
    return jnp.pad(claims, ((0, 0), (0, 0), (0, 1)), constant_values=ANSWER)
