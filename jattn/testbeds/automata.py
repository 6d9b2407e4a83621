"""Finite automata: the languages and word problems of state tracking, all in one form.

    s_0 = 0    s_t = next[s_{t-1}, x_t]    target_t = output[s_t]

An automaton is two tables. Parity, even pairs, cycle navigation and modular arithmetic are those of "Neural Networks
and the Chomsky Hierarchy" (Deletang et al. 2023), the groups those of "The Illusion of State in State-Space Models"
(Merrill et al. 2024): a word problem asks for the product of the elements so far, g_1 g_2 ... g_t. Z60 and A4 x Z5 are
solvable, A5 and S5 are not: their word problems are complete for NC^1, beyond a fixed number of layers of attention or
of a diagonal recurrence.

| language | symbols | states | output |
| --- | --- | --- | --- |
| parity | bits | 2 | whether the number of ones is odd |
| even_pairs | bits | 5 | whether the number of unequal neighbours is odd: the first bit differs from the last |
| cycle | moves -1, 0, 1 | 5 | the place on a ring of five |
| modular_arithmetic | digits mod 5 and + - *, in turn | 141 | the value of the expression, products first |
| z60, a4_z5, a5, s5 | the group's elements | 60, 60, 60, 120 | the product so far |

The public modular arithmetic keeps its operators in a generator that one length uses up; here they are symbols.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

DIGITS = 5  # modular arithmetic: symbols 0 .. 4 are digits, 5, 6, 7 are + - *
PLUS, MINUS, TIMES = 5, 6, 7


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """Two tables, and which symbols may stand where.

    Attributes:
        next: [states, symbols] int32, the state after a symbol.
        output: [states] int32, what a state says.
        turns: which symbols are drawn, uniformly, at places 0, 1, ... of a row; the turns repeat.
        scored: at which of the turns there is an answer.
    """

    next: np.ndarray
    output: np.ndarray
    turns: tuple[tuple[int, ...], ...]
    scored: tuple[bool, ...] = (True,)

    @property
    def symbols(self) -> int:
        """How many there are."""
        return self.next.shape[1]

    @property
    def outputs(self) -> int:
        """How many answers there are."""
        return int(self.output.max()) + 1

    def output_law(self, tokens: int) -> np.ndarray:
        """[tokens, outputs], the probability of every answer at every place, exact up to rounding.

        >>> AUTOMATA['parity']().output_law(2).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
        """
        states = np.zeros(len(self.output))
        states[0] = 1.0
        laws = np.zeros((tokens, self.outputs))
        for place in range(tokens):
            drawn = self.turns[place % len(self.turns)]
            after = np.zeros_like(states)
            for symbol in drawn:
                np.add.at(after, self.next[:, symbol], states / len(drawn))
            states = after
            np.add.at(laws[place], self.output, states)
        return laws


def group(elements: Sequence, product: Callable) -> Automaton:
    """The word problem of a group; `elements[0]` is the identity, symbols and states are places in `elements`.

    >>> z3 = group(range(3), lambda a, b: (a + b) % 3)
    >>> z3.next.tolist()
    [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    place = {element: n for n, element in enumerate(elements)}
    table = np.array([[place[product(a, b)] for b in elements] for a in elements], np.int32)
    return Automaton(table, np.arange(len(elements), dtype=np.int32), (tuple(range(len(elements))),))


def after(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that takes i to a[b[i]].

    >>> after((1, 0, 2), (0, 2, 1))
    (1, 2, 0)
    """
    return tuple(a[i] for i in b)


def permutations(points: int, even: bool) -> list[tuple[int, ...]]:
    """All permutations of the points, or the even ones, the identity first."""

    def is_even(p: tuple[int, ...]) -> bool:
        return sum(p[i] > p[j] for i, j in itertools.combinations(range(points), 2)) % 2 == 0

    return [p for p in itertools.permutations(range(points)) if not even or is_even(p)]


def _parity() -> Automaton:
    return Automaton(np.array([[0, 1], [1, 0]], np.int32), np.arange(2, dtype=np.int32), ((0, 1),))


def _even_pairs() -> Automaton:
    # State 0: nothing read; state 1 + 2 first + last.
    after_bit = [[1, 4]] + [[1 + 2 * first, 2 + 2 * first] for first in (0, 1) for _ in (0, 1)]
    return Automaton(np.array(after_bit, np.int32), np.array([0, 0, 1, 1, 0], np.int32), ((0, 1),))


def _cycle() -> Automaton:
    moves = np.arange(5)[:, None] + np.array([-1, 0, 1])
    return Automaton((moves % 5).astype(np.int32), np.arange(5, dtype=np.int32), ((0, 1, 2),))


def _modular_arithmetic() -> Automaton:
    # The sum of the finished products, the last product with its sign, and the operator before the next digit.
    states = [('start', 0, 1, PLUS)]
    states += [('digit', total, product, None) for total in range(DIGITS) for product in range(DIGITS)]
    states += [('operator', t, p, op) for t in range(DIGITS) for p in range(DIGITS) for op in (PLUS, MINUS, TIMES)]
    place = {state: n for n, state in enumerate(states)}

    def step(state: tuple, symbol: int) -> tuple:
        kind, total, product, operator = state
        if symbol < DIGITS:
            # After + and - the finished products are summed already, and a new product begins.
            digit = {PLUS: symbol, MINUS: -symbol, TIMES: product * symbol, None: symbol}[operator]
            return 'digit', total, digit % DIGITS, None
        if symbol == TIMES:
            return 'operator', total, product, TIMES
        return 'operator', (total + (product if kind == 'digit' else 0)) % DIGITS, 0, symbol

    symbols = range(DIGITS + 3)
    table = np.array([[place[step(state, symbol)] for symbol in symbols] for state in states], np.int32)
    output = np.array([(total + product) % DIGITS if kind == 'digit' else 0 for kind, total, product, _ in states])
    turns = (tuple(range(DIGITS)), (PLUS, MINUS, TIMES))
    return Automaton(table, output.astype(np.int32), turns, (True, False))


AUTOMATA: dict[str, Callable[[], Automaton]] = {
    'parity': functools.cache(_parity),
    'even_pairs': functools.cache(_even_pairs),
    'cycle': functools.cache(_cycle),
    'modular_arithmetic': functools.cache(_modular_arithmetic),
    'z60': functools.cache(lambda: group(range(60), lambda a, b: (a + b) % 60)),
    'a4_z5': functools.cache(
        lambda: group(
            [(p, n) for p in permutations(4, even=True) for n in range(5)],
            lambda a, b: (after(a[0], b[0]), (a[1] + b[1]) % 5),
        )
    ),
    'a5': functools.cache(lambda: group(permutations(5, even=True), after)),
    's5': functools.cache(lambda: group(permutations(5, even=False), after)),
}
