"""Trains small decoders on a testbed or a corpus, and scores them: what the papers about mixers compare.

    Setting = which decoder, on which data, for how many steps        train(setting, seed's key) -> parameters
                                                                      score(setting, parameters, ...) -> metrics

Decoders of equal settings share one compiled step, so further seeds cost no compilation. All settings with the same
key see the same batches: a testbed's rows are drawn from the step's key inside the compiled loop (`fit.py`), and a
corpus' windows are picked by it from an array that holds them all.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.papers.fit import fit
from jattn.data import SeriesConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Batch, Task
from jattn.training.optimizer import AdamWConfig
from jattn.typing import Array, Key, PyTree

Data = Task | SeriesConfig
WORKERS = 2  # settings at a time: compilation and small operations keep one core busy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One decoder's training.

    Attributes:
        model: the decoder; the sizes of its ends are the data's.
        data: a testbed, or forecasting windows.
        steps: optimizer steps.
        batch: rows of a step.
        optimizer: AdamW, with its schedule.
        steps_per_call: of a compiled call; divides `steps`.
        after: an earlier stage of the training, whose parameters this one starts from; None: it starts at new ones.
    """

    model: DecoderConfig
    data: Data
    steps: int
    batch: int
    optimizer: AdamWConfig = AdamWConfig(peak_lr=3e-3, warmup_steps=50)
    steps_per_call: int = 50
    after: 'Setting | None' = None

    @property
    def module(self) -> nn.Module:
        """The linen module."""
        read_in = 'tokens' if self.data.kind == 'discrete' else 'linear'
        return self.model.for_data(read_in, self.data.input_size, self.data.output_size).make()

    def draw(self, key: Key, batch: int) -> Batch:
        """Rows to train on."""
        if isinstance(self.data, Task):
            return self.data.sample(key, batch)
        rows = _windows(self.data, 'train')
        picked = jax.random.randint(key, (batch,), 0, len(rows.targets))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[picked], rows)


@dataclasses.dataclass(frozen=True)
class _Loss:
    """The loss of one step; equal settings are equal, so that seeds share the compiled step."""

    setting: Setting

    def __call__(self, params: PyTree, key: Key) -> Array:
        batch = self.setting.draw(key, self.setting.batch)
        outputs, _ = self.setting.module.apply({'params': params}, batch.inputs)
        return self.setting.data.loss(outputs, batch).value()


def train(setting: Setting, key: Key) -> tuple[PyTree, dict[str, PyTree]]:
    """The fitted parameters and the losses along the way (`fit`); parameters and batches from two halves of the key.

    Raises:
        FloatingPointError: the loss is not finite; says after which step.
    """
    init_key, data_key = jax.random.split(key)
    params = train(setting.after, key)[0] if setting.after else _start(setting, init_key)
    return fit(params, _Loss(setting), _optimizer(setting), setting.steps, data_key, setting.steps_per_call)


@functools.partial(jax.jit, static_argnums=0)
def _start(setting: Setting, key: Key) -> PyTree:
    """Initial parameters without the boxes of their logical names."""
    return nn.unbox(setting.module.init(key, setting.draw(key, 1).inputs))['params']


@functools.cache
def _optimizer(setting: Setting) -> optax.GradientTransformation:
    """The optimizer, which asks the parameters' logical names who decays; one object a setting."""
    example = jax.eval_shape(lambda key: setting.draw(key, 1).inputs, jax.random.key(0))
    boxed = jax.eval_shape(setting.module.init, jax.random.key(0), example)['params']
    return setting.optimizer.make(setting.steps, nn.get_partition_spec(boxed))


def score(setting: Setting, params: PyTree, task: Task, rows: int, batches: int, key: Key) -> dict[str, float]:
    """The data's metrics over `batches` batches of `rows` rows; equal keys are the same rows for every setting.

    Args:
        setting: whose model.
        params: fitted ones.
        task: what draws the rows: that of the training, at this or another length.
        rows, batches: how many.
        key: of the rows.
    """
    return _mean([_drawn_metrics(setting, task, rows, params, one) for one in jax.random.split(key, batches)])


def score_windows(setting: Setting, params: PyTree, rows: int = 512) -> dict[str, float]:
    """The metrics over every window of the test split."""
    windows = _windows(setting.data, setting.data.split)
    count = len(windows.targets)
    padded = jax.tree.map(lambda leaf: np.pad(leaf, ((0, -count % rows), *[(0, 0)] * (leaf.ndim - 1))), windows)

    def piece(at: int) -> Batch:
        return jax.tree.map(lambda leaf: leaf[at : at + rows], padded)

    return _mean([_metrics(setting, params, piece(at)) for at in range(0, count, rows)])


@functools.partial(jax.jit, static_argnums=0)
def _metrics(setting: Setting, params: PyTree, batch: Batch) -> PyTree:
    outputs, _ = setting.module.apply({'params': params}, batch.inputs)
    return setting.data.metrics(outputs, batch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _drawn_metrics(setting: Setting, task: Task, rows: int, params: PyTree, key: Key) -> PyTree:
    return _metrics(setting, params, task.sample(key, rows))


def compare(
    settings: Mapping[str, Setting],
    seeds: int,
    measure: Callable[[Setting, PyTree], PyTree],
    say: Callable[[str], None],
    key: Key,
) -> dict[str, list[PyTree]]:
    """Trains every setting with every seed and measures it; seed n of all settings sees the same batches.

    Args:
        settings: by name.
        seeds: how many.
        measure: (setting, fitted parameters) -> what is kept.
        say: told of every run: its name, its last loss.
        key: root of the seeds.

    Returns:
        name -> what was measured of every seed. A run whose loss is not finite leaves None, and says so.
    """

    def runs(name: str) -> list[PyTree]:
        return [run(name, settings[name], seed) for seed in range(seeds)]

    def run(name: str, setting: Setting, seed: int) -> PyTree:
        try:
            params, trace = train(setting, jax.random.fold_in(key, seed))
        except FloatingPointError as error:
            say(f'{name}, seed {seed}: {error}')
            return None
        say(f'{name}, seed {seed}: loss {trace["loss"][-1]:.3f} in the last {setting.steps_per_call} steps')
        return measure(setting, params)

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        found = dict(zip(settings, pool.map(runs, settings)))
    jax.clear_caches()  # these settings' programs are of no use to what comes next
    return found


def _mean(found: list[PyTree]) -> dict[str, float]:
    """Sums over sums of counts."""
    total = jax.tree.map(lambda *parts: np.sum(np.asarray(parts, np.float64), axis=0), *found)
    return {name: float(mean.total / max(mean.count, 1)) for name, mean in total.items()}


@functools.cache
def _windows(data: SeriesConfig, split: str) -> Batch:
    """All windows of a split, stacked."""
    rows = data.rows(split)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(rows[n] for n in range(len(rows))))
