"""Trains small models on a testbed or a corpus, and scores them: what the papers about mixers compare.

    Setting = which model, on which data, for how many steps        train(setting, seed's key) -> variables
                                                                    score(setting, variables, ...) -> metrics

A step is the library's own (`training/step.py`: auxiliary losses, slow state, dropout), many of them in one compiled
call. Models of equal settings share it, so further seeds cost no compilation. All settings with the same key see the
same batches: a testbed's rows are drawn from the step's key, and a corpus' rows are picked by it from arrays that hold
them all.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jattn.data import Corpus
from jattn.models.trunk import TrunkConfig
from jattn.nn.losses import Mean
from jattn.testbeds import Batch, Task
from jattn.training.experiment import LossWeights
from jattn.training.optimizer import AdamWConfig, OptimizerConfig
from jattn.training.step import TrainState, abstract_params, batch_context, init_state, train_step
from jattn.training.warm_start import adopt
from jattn.typing import Array, Key, PyTree
from jattn.understanding import capture

Data = Task | Corpus
Variables = dict[str, PyTree]
Found = Mapping[str, Sequence[dict[str, float] | None]]  # what was trained -> metrics of every seed; None: it failed
WORKERS = 2  # settings at a time: compilation and small operations keep one core busy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One model's training.

    Attributes:
        model: a trunk; the sizes of its ends are the data's.
        data: a testbed, or a corpus.
        steps: optimizer steps.
        batch: rows of a step.
        optimizer: with its schedule.
        losses: weights of auxiliary losses.
        steps_per_call: of a compiled call, or all `steps` where these are fewer; divides them.
        after: an earlier stage of the training, whose parameters this one starts from where they fit; None: new ones.
    """

    model: TrunkConfig
    data: Data
    steps: int
    batch: int
    optimizer: OptimizerConfig = AdamWConfig(peak_lr=3e-3, warmup_steps=50)
    losses: LossWeights = LossWeights()
    steps_per_call: int = 50
    after: 'Setting | None' = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'steps_per_call', min(self.steps_per_call, self.steps))

    @property
    def module(self) -> nn.Module:
        """The linen module."""
        read_in = 'tokens' if self.data.kind == 'discrete' else 'linear'
        return self.model.for_data(read_in, self.data.input_size, self.data.output_size).make()

    def draw(self, rows: Batch | None, key: Key, batch: int, step: Array | int = 0) -> Batch:
        """Rows to train on at a step: new ones of a testbed, or some of a corpus' `rows`."""
        if isinstance(self.data, Task):
            return self.data.sample_at(key, batch, step)
        picked = jax.random.randint(key, (batch,), 0, len(rows.targets))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[picked], rows)

    def rows(self) -> Batch | None:
        """All of a corpus' rows to train on."""
        return None if isinstance(self.data, Task) else stacked_rows(self.data, 'train')


def train(setting: Setting, key: Key, start: PyTree | None = None) -> tuple[Variables, dict[str, np.ndarray]]:
    """Trains a model; parameters and batches are drawn from two halves of the key.

    Args:
        setting: what is trained, on what.
        key: of everything random.
        start: parameters to start from where they fit; None: those of `setting.after`, or new ones.

    Returns:
        The fitted variables, parameters and slow state, and {step, loss, each auxiliary loss: [calls] means of a call}.

    Raises:
        ValueError: `steps` is not a positive multiple of `steps_per_call`.
        FloatingPointError: the loss is not finite; says after which step.
    """
    if setting.steps < 1 or setting.steps % setting.steps_per_call:
        raise ValueError(
            f'steps={setting.steps} must be a positive multiple of steps_per_call={setting.steps_per_call}'
        )
    init_key, data_key = jax.random.split(key)
    if start is None and setting.after is not None:
        start = train(setting.after, key)[0]['params']
    rows = setting.rows()
    state = _start(setting, rows, init_key)
    if start is not None:
        names = nn.get_partition_spec(abstract_params(setting.module, _example(setting)))
        params, _ = adopt(state.params, names, start, 'an earlier stage')
        state = state.replace(params=params)
    calls = []
    for _ in range(setting.steps // setting.steps_per_call):
        state, means = _many_steps(setting, rows, data_key, state)
        calls.append(jax.device_get(means))
        if not np.isfinite(calls[-1]['loss']):
            first, last = int(state.step) - setting.steps_per_call, int(state.step)
            raise FloatingPointError(f'the loss is {calls[-1]["loss"]} between steps {first} and {last}')
    trace = {name: np.array([call[name] for call in calls]) for name in calls[0]}
    trace['step'] = np.arange(1, len(calls) + 1) * setting.steps_per_call
    return {'params': state.params, **state.collections}, trace


@functools.partial(jax.jit, static_argnums=0)
def _many_steps(setting: Setting, rows: Batch | None, key: Key, state: TrainState) -> tuple[TrainState, dict]:
    tx, schedule = _optimizer(setting), setting.optimizer.learning_rate(setting.steps)

    def one_step(state: TrainState, _: None) -> tuple[TrainState, dict]:
        own = jax.random.fold_in(key, state.step)
        batch = setting.draw(rows, own, setting.batch, state.step)
        return train_step(
            setting.module,
            setting.data,
            tx,
            schedule,
            setting.losses,
            1,
            jax.random.fold_in(own, 1),
            None,
            state,
            batch,
        )

    state, metrics = jax.lax.scan(one_step, state, None, length=setting.steps_per_call)
    return state, {name.removeprefix('train/'): jnp.mean(values) for name, values in metrics.items()}


@functools.partial(jax.jit, static_argnums=0)
def _start(setting: Setting, rows: Batch | None, key: Key) -> TrainState:
    """The state before the first step, without the boxes of logical names."""
    return nn.unbox(init_state(setting.module, _optimizer(setting), setting.draw(rows, key, 1), key))


@functools.cache
def _optimizer(setting: Setting) -> optax.GradientTransformation:
    """The optimizer, which asks the parameters' logical names who decays; one object a setting."""
    names = nn.get_partition_spec(abstract_params(setting.module, _example(setting)))
    return setting.optimizer.make(setting.steps, names)


def _example(setting: Setting) -> Batch:
    """The shapes of one row."""
    return jax.eval_shape(lambda key: setting.draw(setting.rows(), key, 1), jax.random.key(0))


def score(setting: Setting, variables: Variables, task: Task, rows: int, batches: int, key: Key) -> dict[str, float]:
    """The data's metrics over `batches` batches of `rows` rows; equal keys are the same rows for every setting.

    Args:
        setting: whose model.
        variables: fitted ones.
        task: what draws the rows: that of the training, at this or another length.
        rows, batches: how many.
        key: of the rows.
    """
    return _mean([_drawn_metrics(setting, task, rows, variables, one) for one in jax.random.split(key, batches)])


def score_rows(setting: Setting, variables: Variables, rows: int = 512) -> dict[str, float]:
    """The metrics over every row of the corpus' held-out split, `rows` at a time."""
    held_out = stacked_rows(setting.data, setting.data.held_out)
    count = len(held_out.targets)
    rows = min(rows, count)
    padded = jax.tree.map(lambda leaf: np.pad(leaf, ((0, -count % rows), *[(0, 0)] * (leaf.ndim - 1))), held_out)

    def piece(at: int) -> Batch:
        return jax.tree.map(lambda leaf: leaf[at : at + rows], padded)

    return _mean([_metrics(setting, variables, piece(at)) for at in range(0, count, rows)])


@functools.partial(jax.jit, static_argnums=0)
def outputs(setting: Setting, variables: Variables, batch: Batch) -> Array:
    """What the model says of a batch."""
    return setting.module.apply(variables, batch.inputs, batch_context(batch))[0]


@functools.partial(jax.jit, static_argnums=0)
def _metrics(setting: Setting, variables: Variables, batch: Batch) -> dict[str, Mean]:
    return setting.data.metrics(outputs(setting, variables, batch), batch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _drawn_metrics(setting: Setting, task: Task, rows: int, variables: Variables, key: Key) -> dict[str, Mean]:
    batch = task.sample(key, rows)
    return setting.data.metrics(outputs(setting, variables, batch), batch)


def compare(
    settings: Mapping[str, Setting],
    seeds: int,
    measure: Callable[[Setting, Variables], PyTree],
    say: Callable[[str], None],
    key: Key,
) -> dict[str, list[PyTree]]:
    """Trains every setting with every seed and measures it; seed n of all settings sees the same batches.

    Args:
        settings: by name.
        seeds: how many.
        measure: (setting, fitted variables) -> what is kept.
        say: told of every run: its name, its last loss.
        key: root of the seeds.

    Returns:
        name -> what was measured of every seed. A run whose loss is not finite leaves None, and says so.
    """

    def runs(name: str) -> list[PyTree]:
        return [run(name, settings[name], seed) for seed in range(seeds)]

    def run(name: str, setting: Setting, seed: int) -> PyTree:
        try:
            variables, trace = train(setting, jax.random.fold_in(key, seed))
        except FloatingPointError as error:
            say(f'{name}, seed {seed}: {error}')
            return None
        say(f'{name}, seed {seed}: loss {trace["loss"][-1]:.3f} in the last {setting.steps_per_call} steps')
        return measure(setting, variables)

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        found = dict(zip(settings, pool.map(runs, settings)))
    jax.clear_caches()  # these settings' programs are of no use to what comes next
    return found


def mean(runs: Sequence[dict[str, float] | None], name: str) -> float:
    """A metric over seeds; nan when a run has failed."""
    return math.nan if any(run is None for run in runs) else sum(run[name] for run in runs) / len(runs)


def values(runs: Sequence[dict[str, float] | None], name: str) -> str:
    """All seeds, as text."""
    return '/'.join('failed' if run is None else f'{run[name]:.3f}' for run in runs)


def _mean(found: list[dict[str, Mean]]) -> dict[str, float]:
    """Sums over sums of counts; curves are lists."""
    total = jax.tree.map(lambda *parts: np.sum(np.asarray(parts, np.float64), axis=0), *found)
    return {name: np.asarray(mean.value()).tolist() for name, mean in total.items()}


def first_rows(setting: Setting, count: int) -> Batch:
    """The first held-out rows of the corpus."""
    return jax.tree.map(lambda leaf: leaf[:count], stacked_rows(setting.data, setting.data.held_out))


@functools.partial(jax.jit, static_argnums=(0, 3))
def read_site(setting: Setting, variables: Variables, batch: Batch, site: str) -> Array:
    """A named value in every layer, [L, ...]."""
    slow = {name: value for name, value in variables.items() if name != 'params'}
    context = batch_context(batch)
    found = capture.run(
        setting.module, variables['params'], batch.inputs, sites=[site], context=context, collections=slow
    )
    return found.stack(site)


@functools.cache
def stacked_rows(data: Corpus, split: str) -> Batch:
    """All rows of a split."""
    rows = data.rows(split)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(rows[n] for n in range(len(rows))))
