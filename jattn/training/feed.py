"""Where a run's batches come from: drawn on the device by a testbed, or read by Grain from a corpus. One face for both.

A position is one number, the batches taken, with a fingerprint of what it counts in; it does not depend on the number
of processes. Testbeds draw the batch of a step from the seed and the step alone. Evaluation batches are the same in
every run, whatever its seed: every model is asked the same.
"""

import hashlib
import json
from typing import Any

import jax

from jattn import config as config_lib
from jattn.config import ConfigError
from jattn.testbeds.task import Batch, Task
from jattn.training.experiment import Experiment
from jattn.typing import Array, Key

EVALUATION = 2**31 - 1  # folded into the root key of evaluation prompts, which no step ever reaches


def draw(task: Task, root: Key, step: Array, batch: int) -> Batch:
    """The rows of a step: they follow from the root of the seed and the step alone."""
    return task.sample_at(jax.random.fold_in(root, step), batch, step)


class TaskFeed:
    """Batches of a testbed: `draw(step)` runs inside the compiled step, so `take` has nothing to give."""

    def __init__(self, config: Experiment) -> None:
        task, training = config.data, config.training
        root = jax.random.key(training.seed)
        self._task, self._training = task, training
        self.draw = lambda step: draw(task, root, step, training.batch)
        described = json.dumps([config_lib.to_json(task), training.batch, training.seed])
        self._fingerprint = hashlib.sha256(described.encode()).hexdigest()[:16]

    def example(self) -> Batch:
        """A batch of one row, for shapes."""
        return self._task.sample(jax.random.key(0), 1)

    def take(self, count: int) -> None:
        """Nothing: the batches are drawn on the device."""

    def position(self, step: int) -> dict[str, Any]:
        """Where the data stands after `step` steps."""
        return {'batches': step, 'fingerprint': self._fingerprint}

    def seek(self, position: dict[str, Any]) -> None:
        """Continues at a saved position."""
        _check(self._fingerprint, position)

    def eval_batches(self) -> list[Batch]:
        """This process's rows of the evaluation batches."""
        key = jax.random.fold_in(jax.random.key(0), EVALUATION)
        rows = self._training.batch // jax.process_count()
        start = jax.process_index() * rows

        @jax.jit
        def sample(key: Key) -> Batch:
            return self._task.sample(key, self._training.batch)

        def own(x: Array) -> Array:
            return x[start : start + rows]

        keys = jax.random.split(key, self._training.eval_batches)
        return [jax.tree.map(own, jax.device_get(sample(key))) for key in keys]


class CorpusFeed:
    """Batches of a corpus, this process's rows of them."""

    draw = None

    def __init__(self, config: Experiment) -> None:
        self._config = config
        self._place = dict(process=jax.process_index(), processes=jax.process_count())
        align = config.model.document_align
        self._iterator = config.data.train_batches(config.training.batch, config.training.seed, align, **self._place)

    def example(self) -> Batch:
        """A batch of one row, for shapes."""
        position = self._iterator.position
        batch = jax.tree.map(lambda x: x[:1], next(self._iterator))
        self._iterator.position = position
        return batch

    def take(self, count: int) -> list[Batch]:
        """The next `count` batches."""
        return [next(self._iterator) for _ in range(count)]

    def position(self, step: int) -> dict[str, Any]:
        """Where the data stands after `step` steps."""
        return {'batches': step, 'fingerprint': self._iterator.fingerprint}

    def seek(self, position: dict[str, Any]) -> None:
        """Continues at a saved position."""
        _check(self._iterator.fingerprint, position)
        self._iterator.position = position['batches']

    def eval_batches(self) -> list[Batch]:
        """This process's rows of the evaluation batches."""
        training = self._config.training
        align = self._config.model.document_align
        return self._config.data.eval_batches(training.batch, training.eval_batches, align, **self._place)


def make_feed(config: Experiment) -> TaskFeed | CorpusFeed:
    """The feed of an experiment."""
    return TaskFeed(config) if isinstance(config.data, Task) else CorpusFeed(config)


def _check(fingerprint: str, position: dict[str, Any]) -> None:
    if position['fingerprint'] != fingerprint:
        raise ConfigError(
            'the data is not what this run was trained on (its files, seed or batch changed): '
            f'fingerprint {fingerprint}, the checkpoint has {position["fingerprint"]}'
        )
