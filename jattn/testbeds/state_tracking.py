"""State tracking: read symbols, and say at every place what an automaton that reads them has come to.

    x_1 x_2 ... x_T uniform symbols        target_t = output of the state after x_1 ... x_t

The automata, from parity to the word problem of S5, are the table of `automata.py`. Two ways to score: every place
(a word problem's usual form: a dense signal), or the last place alone of rows whose lengths are uniform (the form of
"Neural Networks and the Chomsky Hierarchy" and of the papers on negative eigenvalues); behind the last place stand
symbols that a causal model does not see. Longer rows than those of training are the same task with more `tokens`.

A model that does not track the state answers by the law of the outputs, which `facts` has exactly: 1/2 for parity,
1/60 for A5.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jattn.config import nearest
from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.automata import AUTOMATA, Automaton
from jattn.testbeds.discrete import certain_logits, token_metrics
from jattn.testbeds.task import Batch, Task
from jattn.typing import Array, Int32, Key

SCORED = ('every', 'last')


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateTracking(Task):
    """An automaton's outputs along random symbols.

    Attributes:
        language: a name of `AUTOMATA`.
        tokens: T, of a row.
        scored: 'every' place, or the 'last' alone.
        min_tokens: with 'last', lengths are uniform between it and `tokens`; None: every row has all `tokens`.

    >>> task = StateTracking(language='parity', tokens=6)
    >>> batch = task.sample(jax.random.key(0), 1)
    >>> batch.inputs[0].tolist(), batch.targets[0].tolist()
    ([1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 0, 0])
    >>> task.facts()['majority_accuracy']
    0.5
    """

    kind: ClassVar[str] = 'discrete'

    language: str = 'parity'
    tokens: int = 32
    scored: str = 'every'
    min_tokens: int | None = None

    def __post_init__(self) -> None:
        where = 'StateTracking'
        if self.language not in AUTOMATA:
            raise ValueError(f'{where}: language={self.language!r} is unknown; {nearest(self.language, AUTOMATA)}')
        if self.tokens < 1:
            raise ValueError(f'{where}: tokens={self.tokens} must be at least 1')
        if self.scored not in SCORED:
            raise ValueError(f'{where}: scored={self.scored!r} must be one of {", ".join(SCORED)}')
        if self.min_tokens is not None and not (self.scored == 'last' and 1 <= self.min_tokens <= self.tokens):
            raise ValueError(
                f'{where}: min_tokens={self.min_tokens} must lie in 1..tokens = {self.tokens}, and lengths differ only '
                "with scored='last'"
            )
        if not self._answered.any():
            raise ValueError(f'{where}: tokens={self.tokens}: {self.language} has no answer behind so many symbols')

    @property
    def automaton(self) -> Automaton:
        """The two tables."""
        return AUTOMATA[self.language]()

    @property
    def input_size(self) -> int:
        return self.automaton.symbols

    @property
    def output_size(self) -> int:
        return self.automaton.outputs

    @property
    def _answered(self) -> np.ndarray:
        """[T], the places that may be scored."""
        places, turns = np.arange(self.tokens), np.asarray(self.automaton.scored)
        shortest = 1 if self.scored == 'every' else self.min_tokens or self.tokens
        return turns[places % len(turns)] & (places + 1 >= shortest)

    def sample(self, key: Key, batch: int) -> Batch:
        symbol_key, length_key = jax.random.split(key)
        inputs = self._symbols(symbol_key, batch)
        targets = run(self.automaton, inputs)
        if self.scored == 'every':
            mask = jnp.broadcast_to(jnp.asarray(self._answered, jnp.float32), inputs.shape)
        else:
            lengths = np.flatnonzero(self._answered)
            last = jax.random.choice(length_key, jnp.asarray(lengths, jnp.int32), (batch,))
            mask = jax.nn.one_hot(last, self.tokens)
        return Batch(inputs, jnp.where(mask > 0, targets, 0), mask)

    def _symbols(self, key: Key, batch: int) -> Int32[Array, 'B T']:
        """Uniform ones of those whose turn it is."""
        turns = self.automaton.turns
        counts = np.array([len(turns[t % len(turns)]) for t in range(self.tokens)], np.int32)
        table = np.array([[*turn, *[0] * (counts.max() - len(turn))] for turn in turns], np.int32)
        drawn = jax.random.randint(key, (batch, self.tokens), 0, jnp.asarray(counts)[None], jnp.int32)
        return jnp.asarray(table)[np.arange(self.tokens)[None] % len(turns), drawn]

    def loss(self, outputs: Array, batch: Batch) -> Mean:
        """Cross-entropy at the scored places, in nats."""
        return cross_entropy(outputs, batch.targets, batch.mask)

    def metrics(self, outputs: Array, batch: Batch) -> dict[str, Mean]:
        """loss, accuracy, sequence_accuracy (all scored places of a row), and the curve of accuracy by place."""
        right = (jnp.argmax(outputs, axis=-1) == batch.targets).astype(jnp.float32)
        return token_metrics(outputs, batch) | {'accuracy_by_place': Mean.of(right, batch.mask, axis=0)}

    def baselines(self, batch: Batch) -> dict[str, Array]:
        """Logits: the automaton, run by an associative scan over its maps; the law of the outputs at every place."""
        law = jnp.log(jnp.asarray(np.maximum(self.automaton.output_law(self.tokens), 1e-30), jnp.float32))
        return {
            'automaton': certain_logits(scan(self.automaton, batch.inputs), self.output_size),
            'majority': jnp.broadcast_to(law, (*batch.inputs.shape, self.output_size)),
        }

    def facts(self) -> dict[str, float]:
        """The automaton is right; the loss and accuracy of who knows only the law of the outputs at a place."""
        law = self.automaton.output_law(self.tokens)[self._answered]
        entropy = -np.sum(law * np.log(np.maximum(law, 1e-30)), axis=1)
        return {
            'automaton': 0.0,
            'majority': float(entropy.mean()),
            'majority_accuracy': float(law.max(axis=1).mean()),
            'chance_accuracy': 1 / self.output_size,
            'uniform_loss': math.log(self.output_size),
        }

    def tiny(self) -> 'StateTracking':
        low = None if self.min_tokens is None else min(self.min_tokens, 9)
        return dataclasses.replace(self, tokens=9, min_tokens=low)


def run(automaton: Automaton, inputs: Int32[Array, 'B T']) -> Int32[Array, 'B T']:
    """The outputs along the symbols, one step after another.

    >>> run(AUTOMATA['cycle'](), jnp.array([[2, 2, 0, 1]])).tolist()          # moves 1, 1, -1, 0
    [[1, 2, 1, 1]]
    """
    table = jnp.asarray(automaton.next)

    def step(state: Int32[Array, 'B'], symbol: Int32[Array, 'B']) -> tuple[Array, Array]:
        state = table[state, symbol]
        return state, state

    _, states = jax.lax.scan(step, jnp.zeros(len(inputs), jnp.int32), inputs.T)
    return jnp.asarray(automaton.output)[states.T]


def scan(automaton: Automaton, inputs: Int32[Array, 'B T']) -> Int32[Array, 'B T']:
    """The same outputs, by an associative scan: every symbol is a map of states, maps are composed.

    >>> scan(AUTOMATA['cycle'](), jnp.array([[2, 2, 0, 1]])).tolist()
    [[1, 2, 1, 1]]
    """
    maps = jnp.asarray(automaton.next.T)[inputs]  # [B, T, states]
    compose = lambda first, second: jnp.take_along_axis(second, first, axis=-1)
    return jnp.asarray(automaton.output)[jax.lax.associative_scan(compose, maps, axis=1)[..., 0]]
