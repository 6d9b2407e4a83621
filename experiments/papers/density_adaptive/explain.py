"""What the weights of density-adaptive attention say of the bins, beside what the classifier loses without each."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.papers.contract import ClaimContext
from experiments.papers.density_adaptive.model import bin_weights, with_bin_at
from experiments.papers.density_adaptive.settings import NoisyFSDDConfig, Size
from experiments.papers.small_models import Found, Setting, Variables, outputs, stacked_rows, train
from jattn.testbeds.task import Batch
from jattn.typing import Array


def explain(context: ClaimContext, size: Size) -> list[dict[str, np.ndarray]]:
    """Of every seed: the mean weight of each bin, and how much the loss grows when the bin is at its mean."""
    setting = size.setting(size.noisy(context.data('fsdd')), 'density')
    found = []
    for seed in range(size.seeds):
        variables, trace = train(setting, jax.random.fold_in(context.key(300), seed))
        context.say(f'noise in some bins, seed {seed}: loss {trace["loss"][-1]:.3f}')
        found.append(_explain(setting, variables))
    return found


def _explain(setting: Setting, variables: Variables) -> dict[str, np.ndarray]:
    batch = jax.tree.map(jnp.asarray, stacked_rows(setting.data, 'test'))
    real = batch.segments > 0
    means = jnp.sum(jnp.where(real[:, :, None], batch.inputs, 0), axis=(0, 1)) / jnp.sum(real)

    @jax.jit
    def growth(variables: Variables, batch: Batch, means: Array) -> Array:
        def loss(inputs: Array) -> Array:
            changed = batch.replace(inputs=inputs)
            return setting.data.loss(outputs(setting, variables, changed), changed).value()

        at = lambda place: loss(with_bin_at(batch.inputs, batch.segments > 0, place, means[place]))
        return jax.lax.map(at, jnp.arange(batch.inputs.shape[-1])) - loss(batch.inputs)

    cfg = setting.model.for_data('linear', setting.data.input_size, setting.data.output_size)
    weights = jax.jit(functools.partial(bin_weights, cfg))(variables['params'], batch.inputs, real)
    return {'weight': np.asarray(weights), 'growth': np.asarray(growth(variables, batch, means))}


def draw(found: dict[str, Found], explained: list[dict[str, np.ndarray]], path: pathlib.Path) -> None:
    """F1 by gate and task, and weight and importance of every bin."""
    figure = Figure(figsize=(14, 4.4), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    rows = [(task, gate, runs) for task, own in found.items() for gate, runs in own.items()]
    for place, (_, gate, runs) in enumerate(rows):
        scores = [run['f1'] for run in runs if run]
        color = 'tab:blue' if gate == 'density' else 'tab:gray'
        left.barh(place, np.mean(scores) if scores else 0, color=color, alpha=0.5)
        left.plot(scores, [place] * len(scores), 'k|', markersize=12)
    left.set_yticks(range(len(rows)), [f'{task}: {gate}' for task, gate, _ in rows], fontsize=8)
    left.invert_yaxis()
    left.set(xlabel='macro F1 (accuracy of synthetic bins)', xlim=(0, 1.02), title='the same classifier, other gates')

    if not explained:
        right.set_visible(False)
        figure.savefig(path, dpi=110)
        return
    weight, growth = (np.mean([run[name] for run in explained], axis=0) for name in ('weight', 'growth'))
    noisy = np.arange(len(weight)) % NoisyFSDDConfig.every == 0
    right.bar(np.arange(len(weight)) - 0.2, weight, 0.4, color=np.where(noisy, 'tab:red', 'tab:blue'))
    right.set(xlabel='mel bin (red: drowned in noise)', ylabel='mean weight (bars)')
    other = right.twinx()
    other.plot(growth, 'k.-', linewidth=0.8)
    other.set_ylabel('loss added with the bin at its mean (line)')
    right.set_title('what the gate lets through, and what the classifier needs')
    figure.savefig(path, dpi=110)
