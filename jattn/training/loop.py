"""The training loop: it owns time. Build, resume, then calls of the compiled step between looks at the clock.

A look (`TrainingConfig.next_stop`) comes at the multiples of the cadences and at the end: there it logs, evaluates,
saves, stops on NaN, stops on SIGTERM. What happens at a step depends on the step alone, so that a run killed at any
moment and started again is bit-identical to one that was not.
"""

import functools
import pathlib
import time
from typing import Any, TextIO

import jax
from flax import linen as nn

from jattn.nn.losses import Mean
from jattn.testbeds.task import Batch
from jattn.training import writers
from jattn.training.checkpoint import Checkpointer, latest_step
from jattn.training.evaluate import evaluate
from jattn.training.experiment import Experiment
from jattn.training.feed import CorpusFeed, TaskFeed, make_feed
from jattn.training.partition import JitPartition, Partition, PmapPartition, make_mesh
from jattn.training.preemption import Preemption
from jattn.training.step import TrainState, abstract_params, batch_context, eval_step, init_state, train_step
from jattn.training.warm_start import warm_start
from jattn.training.workdir import Workdir
from jattn.typing import Key

DROPOUT = 2**31 - 2  # folded into the root key of dropout and the like, which no step ever reaches


class TrainingFailed(RuntimeError):
    """The loss or the gradient was not finite; the message names the step."""


def make_partition(config: Experiment, feed: TaskFeed | CorpusFeed) -> Partition:
    """The compiled step of an experiment on the devices that it asks for."""
    training, model = config.training, config.make_model()
    example = feed.example()
    _check_fit(config, model, example)
    names = jax.tree.map(
        lambda box: tuple(box.names),
        abstract_params(model, example),
        is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned),
    )
    tx = training.optimizer.make(training.steps, names)
    functions = dict(
        init=functools.partial(init_state, model, tx, example),
        step=functools.partial(
            train_step,
            model,
            config.data,
            tx,
            training.optimizer.learning_rate(training.steps),
            training.losses,
            training.accumulate,
            jax.random.fold_in(jax.random.key(training.seed), DROPOUT),
        ),
        evaluate=functools.partial(eval_step, model, config.data),
        draw=feed.draw,
    )
    if training.partition == 'pmap':
        return PmapPartition(training.mesh.data, training.batch, **functions)
    return JitPartition(make_mesh(training.mesh, training.batch), **functions)


def _check_fit(config: Experiment, model: nn.Module, example: Batch) -> None:
    """That the data can score what the model gives; nothing is computed."""

    def loss(key: Key, example: Batch) -> Mean:
        (outputs, _), _ = model.init_with_output(key, example.inputs, batch_context(example))
        return config.data.loss(outputs, example)

    jax.eval_shape(loss, jax.random.key(0), example)


def train(config: Experiment, workdir: str | pathlib.Path, *, stream: TextIO | None = None) -> dict[str, Any]:
    """Trains, or goes on where the workdir stands; returns the metrics of the last step.

    Args:
        config: the experiment.
        workdir: its folder.
        stream: where the run's lines go; None: the terminal.

    Raises:
        ConfigError: before anything is written, where the config, the data, the devices or the workdir do not fit.
        TrainingFailed: the loss or the gradient was not finite.
    """
    feed = make_feed(config)
    partition = make_partition(config, feed)
    resumes = latest_step(pathlib.Path(workdir) / 'checkpoints') is not None
    state, lines = (None, []) if resumes else _start(config, feed, partition)
    with Workdir(workdir, config) as opened:
        checkpoints = Checkpointer(opened.path, config.training.keep)
        step = checkpoints.latest() or 0
        if resumes:
            saved, position = checkpoints.restore(step, partition.abstract)
            feed.seek(position)
            state = partition.replicated(saved)
        output = _Output(opened.path, config, step, stream)
        try:
            if step >= config.training.steps:
                output.say(f'finished already: {step} steps in {opened.path}')
                return writers.read_lines(opened.path / 'metrics.jsonl')[-1]
            output.greet(config, step)
            for line in lines:
                output.say(line)
            return _Run(config, feed, partition, checkpoints, output).go(state, step)
        finally:
            checkpoints.close()
            output.close()


def _start(config: Experiment, feed: TaskFeed | CorpusFeed, partition: Partition) -> tuple[TrainState, list[str]]:
    """The state before the first step, and what is to be said of it."""
    state = partition.init(jax.random.key(config.training.seed))
    if config.training.init_from is None:
        return state, []
    warm, lines = warm_start(partition.unreplicated(state), config, feed.example())
    return partition.replicated(warm), lines


class _Run:
    """One run from a step to its end."""

    def __init__(
        self,
        config: Experiment,
        feed: TaskFeed | CorpusFeed,
        partition: Partition,
        checkpoints: Checkpointer,
        output: '_Output',
    ) -> None:
        self.config, self.feed, self.partition = config, feed, partition
        self.checkpoints, self.output = checkpoints, output
        self.eval_batches = feed.eval_batches()

    def go(self, state: TrainState, step: int) -> dict[str, Any]:
        """Trains to the last step, or to where it is told to stop."""
        preemption = Preemption()
        clock, since, metrics = time.perf_counter(), step, {}
        try:
            while step < self.config.training.steps:
                stop = self.config.training.next_stop(step)
                state, last = self.partition.train(state, self.feed.take(stop - step), stop - step)
                step = stop
                told = preemption.at(step)
                if self._due('log', step) or told:
                    metrics = {name: float(value) for name, value in last.items()}
                    self._check(state)
                    now = time.perf_counter()
                    metrics['steps_per_second'] = (step - since) / (now - clock)
                if self._due('eval', step):
                    metrics |= evaluate(self.partition, state, self.eval_batches)
                if self._due('checkpoint', step) or told:
                    self._check(state)
                    saved = self.partition.unreplicated(state)
                    self.checkpoints.save(saved, self.feed.position(step), self.config, metrics.get('eval/loss'))
                if metrics:
                    self.output.write(step, metrics)
                    clock, since = time.perf_counter(), step  # evaluation and saving are not training time
                if told:
                    self.output.say(f'told to stop: saved step {step}; the same command goes on')
                    break
                if step < self.config.training.steps:
                    metrics = {}
        finally:
            preemption.close()
        return metrics

    def _due(self, what: str, step: int) -> bool:
        every = getattr(self.config.training, f'{what}_every_steps')
        return step % every == 0 or step == self.config.training.steps

    def _check(self, state: TrainState) -> None:
        failed = int(self.partition.first(state.failed_at))
        if failed >= 0:
            raise TrainingFailed(
                f'step {failed}: the loss or the gradient is not finite; the last checkpoint is from before it'
            )


class _Output:
    """What a run says and writes; silent on all processes but the first."""

    def __init__(self, path: pathlib.Path, config: Experiment, step: int, stream: TextIO | None) -> None:
        self._writers: list[writers.Writer] = []
        if jax.process_index() == 0:
            lines = path / 'metrics.jsonl'
            self._terminal = writers.Terminal(path / 'log.txt', config.training.steps, stream)
            self._writers = [
                writers.JsonLines(lines, resume_at=step),
                writers.TensorBoard(path / 'tensorboard'),
                writers.Plot(lines, path / 'loss.png'),
                self._terminal,
            ]

    def say(self, line: str) -> None:
        if self._writers:
            self._terminal.say(line)

    def greet(self, config: Experiment, step: int) -> None:
        """The model and where it starts."""
        self.say(f'{config.trunk.describe()}; from step {step} to {config.training.steps}')

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
