"""Trains one-layer models of paper 41 and averages what is asked of them over fresh prompts.

Models of one group are trained together on one stream of batches: their parameters are apart, and so are their
gradients and Adam's moments, so each is trained as if alone, while the batches are drawn once.
"""

import dataclasses
import functools
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


SIZES = {
    'tiny': Size(3000, 0, 1e-2, 0.1, 1, (1,), (10, 40, 160), (), (0.0, 1.0, 2.0), False, 20_000),
    'small': Size(
        10_000,
        5000,
        1e-2,
        0.1,
        2,
        (1, 2, 2, 4, 8),
        (10, 20, 40, 80, 160, 320),
        (10, 20, 70, 100),
        (0.0, 0.5, 1.0, 2.0),
        True,
        20_000,
    ),
    'paper': Size(
        500_000,
        500_000,
        1e-3,
        1.0,
        2,
        (1, 2, 2, 4, 8),
        (10, 20, 40, 80, 160, 320),
        (10, 20, 70, 100),
        (0.0, 0.5, 1.0, 2.0),
        True,
        100_000,
    ),
}
BATCH = 256


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

    def __call__(self, params: Mapping[str, Params], key: Key) -> Array:
        batch = self.task.sample(key, BATCH)
        losses = [self.task.loss(layer.apply(params[name], batch.inputs), batch) for name, layer in self.layers]
        return sum(loss.value() for loss in losses)


@functools.cache
def _optimizer(size: Size, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(size.learning_rate, steps, size.final_fraction))


def train(task: Task, starts: Mapping[str, Start], size: Size, steps: int, key: Key) -> dict[str, Trained]:
    """Trains a group of models on the same batches."""
    keys = jax.random.split(key, len(starts) + 1)
    params = {name: start.layer.init(k, start.opposite) for k, (name, start) in zip(keys[1:], starts.items())}
    layers = {name: start.layer for name, start in starts.items()}

    def read(params: Mapping[str, Params]) -> dict[str, Circuits]:
        return {name: layer.circuits(params[name]) for name, layer in layers.items()}

    loss = _GroupLoss(task, tuple(layers.items()))
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


Statistics = Callable[[Batch], Mapping[str, Array]]


def average(task: Task, statistics: Statistics, prompts: int, key: Key) -> dict[str, tuple[float, float]]:
    """Means, and their standard errors, of numbers that each prompt has: name -> ([B]) becomes name -> (mean, error).

    The same key gives the same prompts, so differences between predictors are paired.
    """
    chunk = 2000

    @jax.jit
    def total(keys: Array) -> Mapping[str, Array]:
        def add(sums: Mapping[str, Array], key: Key) -> tuple[Mapping[str, Array], None]:
            values = statistics(task.sample(key, chunk))
            now = {name: jnp.stack([value.sum(), jnp.square(value).sum()]) for name, value in values.items()}
            return jax.tree.map(jnp.add, sums, now), None

        names = jax.eval_shape(lambda key: statistics(task.sample(key, chunk)), keys[0])
        return jax.lax.scan(add, {name: jnp.zeros(2) for name in names}, keys)[0]

    count = max(prompts // chunk, 1) * chunk
    sums = total(jax.random.split(key, count // chunk))
    means = {name: np.asarray(value, np.float64) / count for name, value in sums.items()}
    return {name: (float(m), float(np.sqrt(max(s - m * m, 0) / count))) for name, (m, s) in means.items()}


def errors(predictors: Mapping[str, Callable[[Batch], Array]]) -> Statistics:
    """The squared error of each predictor (batch -> [B, N]) on the query's labels, averaged over the labels."""

    def statistics(batch: Batch) -> dict[str, Array]:
        labels = batch.targets[:, -1]
        return {name: jnp.mean(jnp.square(f(batch) - labels), axis=-1) for name, f in predictors.items()}

    return statistics


def at_length(task: ICLLinear, context: int) -> ICLLinear:
    """The task with other prompts in length only."""
    return dataclasses.replace(task, context=context)


MULTITASK = ICLLinearMultitask()
ISOTROPIC = ICLLinear()
"""The authors' settings: F = 5, S = 40, sigma^2 = 0.1; and two tasks on F = 6, S = 48."""
