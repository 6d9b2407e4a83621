"""The generators of the testbeds: tokens a second inside a scanned, compiled call, as training draws them.

    python -m experiments.benchmarks.testbeds [--pairs=20] [--out=DIR]

A contestant draws 50 batches of 64 rows, one after another in one call, and sums all that it drew. The peers draw the
same number of rows with NumPy: multi-query recall row by row with `numpy.random.choice`, as the published generator
does, and conjunctions whole batches at a time. A token of a continuous task is one vector.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli
from experiments.benchmarks import harness
from jattn.testbeds import TESTBEDS, AssociativeRecall, Boolean, StateTracking
from jattn.testbeds.task import Task
from jattn.typing import Array, Key

flags.adopt_module_key_flags(harness)
BATCHES, ROWS = 50, 64
TASKS: dict[str, Task] = {
    'associative_recall': TESTBEDS['associative_recall'],
    'boolean conjunction': Boolean(function='conjunction'),
    'boolean majority': Boolean(function='majority'),
    'boolean sparse_parity': Boolean(function='sparse_parity'),
    'regression': TESTBEDS['regression'],
    'state_tracking parity': StateTracking(language='parity'),
    'state_tracking a5': StateTracking(language='a5'),
    'induction': TESTBEDS['induction'],
    'selective_copying': TESTBEDS['selective_copying'],
    'facts_and_fibs': TESTBEDS['facts_and_fibs'],
}


def drawn(task: Task) -> Callable[[Key], Array]:
    """A function that draws and sums the batches."""

    def run(key: Key) -> Array:
        def one(total: Array, key: Key) -> tuple[Array, None]:
            batch = task.sample(key, ROWS)
            return total + sum(jnp.sum(leaf) for leaf in (batch.inputs, batch.targets, batch.mask)), None

        return jax.lax.scan(one, jnp.float32(0), jax.random.split(key, BATCHES))[0]

    return run


def numpy_recall(task: AssociativeRecall) -> Callable[[], np.ndarray]:
    """The published way: numpy.random.choice without replacement, row by row."""
    random, half = np.random.default_rng(0), task.vocabulary // 2
    slots = (task.tokens - task.context) // 2
    weights = np.arange(1, slots + 1) ** (task.power - 1)

    def row() -> np.ndarray:
        inputs = np.zeros(task.tokens, np.int64)
        keys = random.choice(np.arange(1, half), task.pairs, replace=False)
        inputs[0 : task.context : 2] = keys
        inputs[1 : task.context : 2] = random.choice(np.arange(half, task.vocabulary), task.pairs, replace=False)
        inputs[task.context + 2 * random.choice(slots, task.pairs, replace=False, p=weights / weights.sum())] = keys
        return inputs

    return lambda: np.stack([row() for _ in range(BATCHES * ROWS)])


def numpy_conjunctions(task: Boolean) -> Callable[[], np.ndarray]:
    """Whole batches: literals, points, the shaped share, labels."""
    random = np.random.default_rng(0)

    def batch() -> np.ndarray:
        literals = random.choice([0, 1, -1], (ROWS, 1, task.inputs), p=[0.7, 0.15, 0.15])
        x = random.choice([-1, 1], (ROWS, task.points, task.inputs))
        shaped = (random.random((ROWS, task.points, 1)) < task.forced) & (literals != 0)
        x = np.where(shaped, literals, x)
        y = 2 * np.all((literals == 0) | (x == literals), axis=-1) - 1
        return np.concatenate([x, y[:, :, None] * np.eye(1, task.inputs)[None]], axis=1)

    return lambda: np.stack([batch() for _ in range(BATCHES)])


def main(argv: Sequence[str]) -> None:
    """Times every generator, two of them beside NumPy."""
    del argv
    records = []
    for name, task in TASKS.items():
        contestants: dict[str, Callable] = {'jattn': harness.prepare(drawn(task), jax.random.key(0))}
        if name == 'associative_recall':
            contestants['numpy'] = numpy_recall(task)
        if name == 'boolean conjunction':
            contestants['numpy'] = numpy_conjunctions(task)
        tokens = BATCHES * ROWS * task.sample(jax.random.key(0), 1).inputs.shape[1]
        baseline = 'numpy' if 'numpy' in contestants else 'jattn'
        record = harness.compare(
            name, contestants, baseline=baseline, pairs=harness.PAIRS.value, facts={'tokens': tokens}
        )
        record['facts']['million_tokens_per_second'] = float(
            f'{tokens / record["contestants"]["jattn"]["ms"] / 1e3:.3g}'
        )
        records.append(record)
    print(harness.table(records))
    print(f'written: {harness.save("testbeds", records, cli.OUT.value)}')


if __name__ == '__main__':
    cli.run(main)
