"""One cell of a comparison: a model on its data, at several learning rates, and with more seeds at the best of them.

A cell is compiled once: the learning rate and the seed are arguments of its program, not constants. Each rate is tried
with the config's seed, all are scored on the same evaluation batches, and the rate with the best score is run with
further seeds. A run that ends with numbers that are not finite has failed: it is reported and never the best.

    run = (rate, seed) -> the last evaluation, the training loss along the way, seconds of training

A step is the library's own (`training/step.py`). The learning rate of a config scales everything its optimizer does
(AdamW and Muon are linear in it), so a rate is the config's schedule times rate / peak_lr.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from jattn.nn.losses import Mean
from jattn.testbeds.task import Batch, Task
from jattn.training.evaluate import mean_metrics
from jattn.training.experiment import Experiment
from jattn.training.feed import draw, make_feed
from jattn.training.loop import DROPOUT
from jattn.training.partition import repeat, stack
from jattn.training.step import TrainState, abstract_params, eval_step, init_state, train_step
from jattn.training.warm_start import warm_start
from jattn.typing import Array, Float, Key

Metrics = dict[str, Any]  # name -> number, or a list of numbers (a curve)
LOOKS = 10  # how often a run's training loss is kept


def run_cell(
    config: Experiment,
    rates: Sequence[float],
    seeds: int,
    tests: Mapping[str, Task],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Trains a cell: every rate once, then further seeds at the best.

    Args:
        config: the model, its data, its training; its own learning rate is not used.
        rates: learning rates; the peak of the schedule.
        seeds: runs at the best rate; they count up from the config's.
        tests: name -> a task that the runs at the best rate are scored on too (other lengths of a testbed).
        say: told of every run.

    Returns:
        What stands in a cell's file: `rate` (the best; None when every run failed), `score` (its name), `rates` (rate
        -> run), `seeds` (runs at the best rate) and what the model costs.
    """
    program = Program(config)
    tried, fitted = {}, None
    for rate in rates:
        state, found = program.run(rate, config.training.seed, say)
        tried[rate] = found
        if state is not None and best_rate(tried) == rate:
            fitted = state
    rate = best_rate(tried)
    runs = []
    if rate is not None:
        runs = [tried[rate] | {'tests': program.score_on(tests, fitted)}]
        for n in range(1, seeds):
            state, found = program.run(rate, config.training.seed + n, say)
            runs.append(found | ({} if state is None else {'tests': program.score_on(tests, state)}))
    return {
        'rate': rate,
        'score': score_of(tried[rate]['metrics']) if rate is not None else None,
        'rates': {f'{one:g}': found for one, found in tried.items()},
        'seeds': runs,
        **program.costs(),
    }


def score_of(metrics: Metrics) -> str:
    """The name of the score that a cell is judged by: accuracy where there is one, else the loss."""
    return 'accuracy' if 'accuracy' in metrics else 'loss'


def best_rate(tried: Mapping[float, dict[str, Any]]) -> float | None:
    """The rate with the best score; None when every run failed.

    >>> best_rate({1e-3: {'metrics': {'loss': 2.0}}, 3e-3: {'metrics': {'loss': 1.0}}, 1e-2: {'failed': 'at step 7'}})
    0.003
    """
    scores = {}
    for rate, run in tried.items():
        if 'failed' not in run:
            name = score_of(run['metrics'])
            scores[rate] = run['metrics'][name] * (1 if name == 'accuracy' else -1)
    return max(scores, key=scores.get) if scores else None


class Program:
    """What all runs of a cell share: the compiled step and evaluation, and the evaluation batches."""

    def __init__(self, config: Experiment) -> None:
        self.config = config
        feed = make_feed(config)
        self._example, self._model = feed.example(), config.make_model()
        self._names = nn.get_partition_spec(abstract_params(self._model, self._example))
        self._eval_batches = feed.eval_batches()
        self._compile_seconds: float | None = None
        self._start = jax.jit(lambda key: nn.unbox(init_state(self._model, self._optimizer(1.0), self._example, key)))
        self._advance = jax.jit(self._many_steps, donate_argnums=2)

    def run(self, rate: float, seed: int, say: Callable[[str], None]) -> tuple[TrainState | None, dict[str, Any]]:
        """Trains once: the fitted state (None: it failed), and the run as it stands in the cell's file."""
        training = dataclasses.replace(self.config.training, seed=seed)
        config = dataclasses.replace(self.config, training=training)
        feed, root = make_feed(config), jax.random.key(seed)
        state = self._start(root)
        if training.init_from is not None:
            state, _ = warm_start(state, config, self._example)
        factor = np.float32(rate / training.optimizer.peak_lr)
        trace, seconds = [], 0.0
        for step in _stops(training.steps, training.steps_per_call):
            count = step - (trace[-1][0] if trace else 0)
            batches = feed.take(count)
            batches = None if batches is None else stack(batches)
            if self._compile_seconds is None:  # a call of no steps, so that no run's seconds hold the compilation
                began = time.perf_counter()
                state, _ = jax.block_until_ready(self._advance(root, factor, state, batches, 0))
                self._compile_seconds = time.perf_counter() - began
            began = time.perf_counter()
            state, metrics = self._advance(root, factor, state, batches, count)
            trace.append((step, float(metrics['train/loss'])))
            seconds += time.perf_counter() - began
            if int(state.failed_at) >= 0:
                failed = f'the loss or the gradient was not finite at step {int(state.failed_at)}'
                say(f'rate {rate:g}, seed {seed}: {failed}')
                return None, {'seed': seed, 'failed': failed}
        metrics = self.evaluate(state, self.config.data, self._eval_batches)
        name = score_of(metrics)
        say(f'rate {rate:g}, seed {seed}: {name} {metrics[name]:.4g} after {training.steps} steps, {seconds:.0f} s')
        return state, {'seed': seed, 'metrics': metrics, 'trace': trace, 'seconds': round(seconds, 2)}

    def score_on(self, tests: Mapping[str, Task], state: TrainState) -> dict[str, Metrics]:
        """The metrics on other tasks, with the evaluation's number of rows."""

        def batches(task: Task) -> list[Batch]:
            return make_feed(dataclasses.replace(self.config, data=task)).eval_batches()

        return {name: self.evaluate(state, task, batches(task)) for name, task in tests.items()}

    def evaluate(self, state: TrainState, data: Any, batches: Sequence[Batch]) -> Metrics:
        """name -> mean over all batches; curves are lists."""
        return mean_metrics([jax.device_get(self._score(data, state, batch)) for batch in batches])

    def costs(self) -> dict[str, float]:
        """Parameters, bytes of state behind a row, operations of a row's forward pass, seconds of compilation."""
        params, tokens = abstract_params(self._model, self._example), self._example.inputs.shape[1]
        model = self.config.model
        return {
            'parameters': sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
            'state_bytes': sum(mixer.state_bytes(tokens, model.dtype) for mixer in model.mixers()),
            'mflops': self.config.trunk.flops(tokens) / 1e6,
            'tokens': tokens,
            'compile_seconds': round(self._compile_seconds or 0.0, 2),
        }

    def _optimizer(self, factor: Float[Array, '']) -> optax.GradientTransformation:
        training = self.config.training
        return optax.chain(training.optimizer.make(training.steps, self._names), optax.scale(factor))

    def _many_steps(
        self, root: Key, factor: Float[Array, ''], state: TrainState, batches: Batch | None, n: Array
    ) -> tuple[TrainState, dict]:
        config, training = self.config, self.config.training
        schedule = training.optimizer.learning_rate(training.steps)
        step = functools.partial(
            train_step,
            self._model,
            config.data,
            self._optimizer(factor),
            lambda step: factor * schedule(step),
            training.losses,
            training.accumulate,
            jax.random.fold_in(root, DROPOUT),
            None,
        )
        own = lambda step: draw(config.data, root, step, training.batch)
        return repeat(step, own if isinstance(config.data, Task) else None, state, batches, n)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _score(self, data: Any, state: TrainState, batch: Batch) -> dict[str, Mean]:
        return eval_step(self._model, data, None, state, batch)


def exact_rows(config: Experiment) -> dict[str, dict[str, float]]:
    """What is known exactly of the data: `exact`, a testbed's solvers on the evaluation batches, and its `facts`."""
    data = config.data
    if not isinstance(data, Task):
        return {'exact': {}, 'facts': data.facts()}
    score = jax.jit(lambda batch: {name: data.metrics(said, batch) for name, said in data.baselines(batch).items()})
    parts = [jax.device_get(score(batch)) for batch in make_feed(config).eval_batches()]
    return {'exact': {name: mean_metrics([part[name] for part in parts]) for name in parts[0]}, 'facts': data.facts()}


def _stops(steps: int, steps_per_call: int) -> list[int]:
    """The steps at which a run looks up: about `LOOKS`, multiples of `steps_per_call`, and the last."""
    every = max(math.ceil(steps / LOOKS / steps_per_call), 1) * steps_per_call
    return [*range(every, steps, every), steps]
