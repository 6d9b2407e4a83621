"""The sheet's figures of what needs no training: elimination, parities, teaching sequences, neighbours."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.icl_boolean.settings import Size
from jattn.testbeds import Boolean
from jattn.testbeds.boolean import random_signs
from jattn.testbeds.boolean_functions import FUNCTIONS
from jattn.testbeds.boolean_solvers import nearest_neighbours, parity_elimination
from jattn.testbeds.points import split_points
from jattn.typing import Key

PAPER = '06'
PARITY = {-1: 0.695, 0: 0.805, 1: 0.890, 2: 0.941, 5: 0.992}  # examples less n -> Bayes' accuracy
INDEPENDENT = 0.2888  # n random vectors over GF(2)
LAST = (  # function, neighbours -> accuracy with 69 examples, n = 28
    ('conjunction', 1, 0.834),
    ('disjunction', 1, 0.81),
    ('disjunction', 3, 0.83),
    ('dnf', 3, 0.75),
)


def lines(context: ClaimContext, size: Size) -> list[Line]:
    """All of them."""
    return [*_elimination(), *_parity(context, size), *_teaching(), *_neighbours(context, size)]


def _elimination() -> list[Line]:
    """Mean accuracies, which the sheet simulated; these are exact."""
    out = []
    for inputs, points, simulated in ((28, 70, 0.920), (10, 40, 0.895)):
        facts = Boolean(inputs=inputs, points=points).facts()
        claim = f'elimination, n = {inputs}, m = {points}: mean accuracy, exactly'
        out.append(Line.number(PAPER, claim, facts['elimination_accuracy'], near=(simulated, 0.001)))
    return out


def _parity(context: ClaimContext, size: Size) -> list[Line]:
    """Gaussian elimination over GF(2)."""
    facts = Boolean(function='parity').facts()
    told = {10 + past: facts[f'gaussian_elimination_accuracy_at_{10 + past}'] for past in PARITY}
    equal = sum(round(told[10 + past], 3) == known for past, known in PARITY.items())
    note = ', '.join(f'{value:.3f} after {i}' for i, value in told.items())
    claim = 'parity, n = 10: accuracies of Gaussian elimination, exactly, that are the stated ones'
    ranks = parity_ranks(context.key(800), size.exact_rows, 20)
    share, error = float(np.mean(ranks == 20)), (INDEPENDENT * (1 - INDEPENDENT) / size.exact_rows) ** 0.5
    return [
        Line.count(PAPER, claim, equal, of=len(PARITY), note=note),
        Line.number(
            PAPER,
            'parity: share of 20 points in 20 dimensions that are independent',
            share,
            near=(INDEPENDENT, 3 * error),
        ),
    ]


def parity_ranks(key: Key, rows: int, inputs: int) -> np.ndarray:
    """The ranks of as many random points as there are inputs, [rows]."""
    x = random_signs(key, (rows, inputs + 1, inputs))
    return np.asarray(jax.jit(parity_elimination)(x, x[:, :, 0])[1])[:, -1]


def _teaching() -> list[Line]:
    """Functions of four inputs that their teaching sequences tell from all others."""
    notes = {
        'monotone_dnf': 'where a clause contains another it is redundant, and leaves room for other clauses; all are '
        'told in which none does, or one is empty'
    }
    out = []
    for name in ('conjunction', 'monotone_conjunction', 'parity', 'monotone_dnf'):
        told = identified(name, 4)
        claim = f'{name}, n = 4: functions that are the only ones left after their teaching sequence'
        out.append(Line.count(PAPER, claim, int(told.sum()), of=len(told), note=notes.get(name, '')))
    return out


def identified(name: str, inputs: int) -> np.ndarray:
    """Whether a function's teaching sequence leaves no other, for every choice of its clauses or its subset."""
    family = FUNCTIONS[name]
    values = (-1, 0, 1) if name == 'conjunction' else (0, 1)
    clauses = list(itertools.product(values, repeat=inputs))
    if name == 'parity':
        params = {'subset': jnp.array(clauses)}
    else:
        params = {'weights': jnp.array(list(itertools.combinations_with_replacement(clauses, family.clauses)))}
    count = len(next(iter(params.values())))
    cube = jnp.array(list(itertools.product((-1.0, 1.0), repeat=inputs)))
    tables = np.asarray(family.label(params, jnp.broadcast_to(cube[None], (count, *cube.shape))))
    different = np.unique(tables, axis=0)
    blocks, lengths = (np.asarray(part) for part in family.teach(params, family.longest_block(inputs)))
    where = (blocks > 0) @ 2 ** np.arange(inputs)[::-1]
    left = [
        np.sum(np.all(different[:, at[:length]] == table[at[:length]], axis=1))
        for at, length, table in zip(where, lengths, tables)
    ]
    return np.array(left) == 1


def _neighbours(context: ClaimContext, size: Size) -> list[Line]:
    """Votes of neighbours at the last point."""
    out = []
    for function, neighbours, stated in LAST:
        task = Boolean(function=function, inputs=size.exact_inputs, points=size.exact_points)
        keys = jax.random.split(context.key(801), -(-size.exact_rows // 500))
        accuracy = float(np.mean([last_accuracy(task, neighbours, key) for key in keys]))
        claim = f'{function}, n = {task.inputs}, m = {task.points}: accuracy of {neighbours}-NN at the last point'
        out.append(Line.number(PAPER, claim, accuracy, near=(stated, 0.01)))
    return out


@functools.partial(jax.jit, static_argnums=(0, 1))
def last_accuracy(task: Boolean, neighbours: int, key: Key) -> jax.Array:
    """Of 500 rows."""
    x, y = split_points(task.sample(key, 500).inputs)
    return jnp.mean(jnp.sign(nearest_neighbours(x, y, neighbours)[:, -1]) == y[:, -1])
