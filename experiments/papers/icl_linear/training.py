"""Trains one-layer models of paper 41 and averages what is asked of them over fresh prompts.

Models of one group are trained together on one stream of batches: their parameters are apart, and so are their
gradients and Adam's moments, so each is trained as if alone, while the batches are drawn once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.papers.fit import fit
from jattn.testbeds import Batch, ICLLinear, ICLLinearMultitask, Task
from jattn.testbeds.icl_linear_model import Circuits, OneLayer, Params, predict
from jattn.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run; the tasks' sizes are the authors' at every size.

    Attributes:
        batch: prompts of a training step.
        steps: training steps of the main models.
        sweep_steps: training steps of each length of the sweep over training lengths.
        learning_rate: Adam's, falling as a cosine to `final_fraction` of it.
        final_fraction: 1 = constant.
        seeds: how many runs of everything, each with its own draws and batches.
        heads: softmax models beside the two heads that start opposite; two of them start as drawn.
        lengths: prompt lengths at which the trained models are tried.
        trained_lengths: prompt lengths at which models are trained anew; none: the sweep is left out.
        shifts: means of the covariates at which the trained models are tried.
        settings: whether non-isotropic covariates and several tasks are run.
        prompts: of an evaluation.
    """

    batch: int
    steps: int
    sweep_steps: int
    learning_rate: float
    final_fraction: float
    seeds: int
    heads: tuple[int, ...]
    lengths: tuple[int, ...]
    trained_lengths: tuple[int, ...]
    shifts: tuple[float, ...]
    settings: bool
    prompts: int


_SMALL = Size(
    batch=256,
    steps=10_000,
    sweep_steps=5000,
    learning_rate=1e-2,
    final_fraction=0.01,
    seeds=2,
    heads=(1, 2, 2, 4, 8),
    lengths=(10, 20, 40, 70, 80, 100, 160, 320),
    trained_lengths=(10, 20, 100),
    shifts=(0.0, 0.5, 1.0, 2.0),
    settings=True,
    prompts=20_000,
)
_TINY = dataclasses.replace(
    _SMALL,
    batch=128,
    steps=2500,
    seeds=1,
    heads=(1,),
    lengths=(10, 40, 160),
    trained_lengths=(),
    shifts=(0.0, 1.0),
    settings=False,
)
_PAPER = dataclasses.replace(
    _SMALL,
    steps=500_000,
    sweep_steps=500_000,
    learning_rate=1e-3,
    final_fraction=1.0,
    trained_lengths=(10, 20, 70, 100),
    prompts=100_000,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}
CHUNK = 2000  # of an evaluation


@dataclasses.dataclass(frozen=True)
class Start:
    """A model before training: its sizes, and whether its heads start in opposite pairs."""

    layer: OneLayer
    opposite: bool = False


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model after training.

    Attributes:
        layer: its sizes.
        circuits: what it computes.
        steps: [N] the steps at which `trace` was taken.
        trace: the circuits along training, stacked on axis 0.
    """

    layer: OneLayer
    circuits: Circuits
    steps: np.ndarray
    trace: Circuits

    def __call__(self, inputs: Array) -> Array:
        """Predictions [B, N] of the query's labels."""
        return predict(self.circuits, inputs, self.layer.pattern)


@dataclasses.dataclass(frozen=True)
class _GroupLoss:
    """The sum of the models' losses on one batch; equal groups are equal, so that seeds share the compiled step."""

    task: Task
    layers: tuple[tuple[str, OneLayer], ...]
    batch: int

    def __call__(self, params: Mapping[str, Params], key: Key) -> Array:
        batch = self.task.sample(key, self.batch)
        losses = [self.task.loss(layer.apply(params[name], batch.inputs), batch) for name, layer in self.layers]
        return sum(loss.value() for loss in losses)


@functools.cache
def _optimizer(size: Size, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(size.learning_rate, steps, size.final_fraction))


def train(task: Task, starts: Mapping[str, Start], size: Size, steps: int, key: Key) -> dict[str, Trained]:
    """Trains a group of models on the same batches."""
    keys = jax.random.split(key, len(starts) + 1)
    models = list(zip(keys[1:], starts.items()))
    params = jax.jit(lambda: {name: start.layer.init(k, start.opposite) for k, (name, start) in models})()
    layers = {name: start.layer for name, start in starts.items()}

    def read(params: Mapping[str, Params]) -> dict[str, Circuits]:
        return {name: layer.circuits(params[name]) for name, layer in layers.items()}

    loss = _GroupLoss(task, tuple(layers.items()), size.batch)
    params, trace = fit(params, loss, _optimizer(size, steps), steps, keys[0], watch=jax.jit(read))
    circuits = read(params)
    return {
        name: Trained(layer, circuits[name], trace['step'], trace['watched'][name]) for name, layer in layers.items()
    }


def main_group(size: Size, task: ICLLinear) -> dict[str, Start]:
    """The models that are trained on isotropic prompts of one length, by name."""
    width = task.input_size
    starts = {'2 heads': Start(OneLayer(2, width), opposite=True)}
    for heads in size.heads:
        name = '1 head' if heads == 1 else f'{heads} heads'
        if name in starts:
            name = f'{name}, as drawn {sum(other.startswith(name) for other in starts)}'
        starts[name] = Start(OneLayer(heads, width))
    starts['linear'] = Start(OneLayer(2, width, pattern='linear'))
    starts['linear / S'] = Start(OneLayer(2, width, pattern='linear_mean'))
    return starts


Predictor = Callable[[Batch], Mapping[str, Array]]  # batch -> name -> predictions [B, N] of the query's labels


def models_predictor(models: Mapping[str, Trained]) -> Predictor:
    """What each model says; those of one pattern run as one, so that many models compile as quickly as one.

    A model with fewer heads than another gets heads that read nothing.
    """
    by_pattern: dict[str, list[str]] = {}
    for name, model in models.items():
        by_pattern.setdefault(model.layer.pattern, []).append(name)

    def stack(names: list[str]) -> Circuits:
        most = max(models[name].layer.heads for name in names)

        def pad(heads: Array) -> Array:
            return jnp.pad(heads, ((0, most - len(heads)), (0, 0), (0, 0)))

        return jax.tree.map(
            lambda *leaves: jnp.stack([pad(leaf) for leaf in leaves]), *(models[name].circuits for name in names)
        )

    stacks = {pattern: stack(names) for pattern, names in by_pattern.items()}

    def predictor(batch: Batch) -> dict[str, Array]:
        said = {}
        for pattern, names in by_pattern.items():
            outputs = jax.vmap(lambda one, pattern=pattern: predict(one, batch.inputs, pattern))(stacks[pattern])
            said |= dict(zip(names, outputs))
        return said

    return predictor


def average_errors(
    task: Task,
    predictor: Predictor,
    prompts: int,
    key: Key,
    changes: Mapping[float, Callable[[Batch], Batch]] | None = None,
) -> dict[str, list[tuple[float, float]]]:
    """Squared errors, averaged over labels and over fresh prompts, with their standard errors.

    Args:
        task: draws the prompts; the same key draws the same ones, so differences between predictors are paired.
        predictor: what is tried.
        prompts: how many.
        key: of the prompts.
        changes: the same prompts, changed in these ways; None: as they are.

    Returns:
        name -> [(mean, standard error) of every change].
    """
    changes = {0.0: lambda batch: batch} if changes is None else changes

    @jax.jit
    def sums(batch: Batch) -> list[dict[str, Array]]:
        found = []
        for change in changes.values():
            changed = change(batch)
            labels = changed.targets[:, -1]
            squares = {name: jnp.mean(jnp.square(f - labels), axis=-1) for name, f in predictor(changed).items()}
            found.append({name: jnp.stack([jnp.sum(e), jnp.sum(jnp.square(e))]) for name, e in squares.items()})
        return found

    batches = draw(task, prompts, key)
    total = jax.tree.map(lambda *parts: np.sum(np.asarray(parts, np.float64), axis=0), *map(sums, batches))
    count = len(batches) * CHUNK
    return {
        name: [(float(one[name][0]) / count, _error(*(one[name] / count), count)) for one in total] for name in total[0]
    }


def draw(task: Task, prompts: int, key: Key) -> list[Batch]:
    """About so many prompts, in batches of one shape: drawing compiles for seconds, so it compiles once a task."""
    return [_draw(task, chunk_key) for chunk_key in jax.random.split(key, max(prompts // CHUNK, 1))]


@functools.partial(jax.jit, static_argnums=0)
def _draw(task: Task, key: Key) -> Batch:
    return task.sample(key, CHUNK)


def _error(mean: float, square: float, count: int) -> float:
    return math.sqrt(max(square - mean * mean, 0) / count)


def at_length(task: ICLLinear, context: int) -> ICLLinear:
    """The task with other prompts in length only."""
    return dataclasses.replace(task, context=context)


# The authors' settings: F = 5, S = 40, sigma^2 = 0.1; and two tasks on F = 6, S = 48.
ISOTROPIC = ICLLinear()
MULTITASK = ICLLinearMultitask()
