"""The picture of paper 20's rerun: a scene from above, what is true and what the models say."""

import pathlib

import jax
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.papers.small_models import Setting, Variables, outputs
from jattn.testbeds.voxels import CLASSES, Voxels
from jattn.typing import Key

COLORS = ('#d9d2c3', '#3b6fb6', '#d9534f', '#2e8b57')
EMPTY = -1


def draw(models: dict[str, tuple[Setting, Variables]], task: Voxels, key: Key, path: pathlib.Path) -> None:
    """One scene; a place shows its highest voxel, the lines are the windows' borders, crosses are errors."""
    batch = jax.jit(task.sample, static_argnums=1)(key, 1)
    at, real, truth = (np.asarray(x[0]) for x in (batch.context['coordinates'], batch.mask > 0, batch.targets))
    shown = {'true classes': truth}
    for name, (setting, variables) in models.items():
        shown[name] = np.asarray(outputs(setting, variables, batch)[0].argmax(axis=-1))
    figure = Figure(figsize=(4.2 * len(shown), 4.9), layout='constrained')
    for axis, (name, classes) in zip(figure.subplots(1, len(shown)), shown.items()):
        axis.imshow(above(classes, at, real, task), cmap=ListedColormap(['white', *COLORS]), vmin=-1.5, vmax=3.5)
        wrong = real & (classes != truth)
        axis.plot(at[wrong, 2], at[wrong, 1], 'x', color='black', markersize=4)
        for border in range(task.window, max(task.grid[1:]), task.window):
            axis.axhline(border - 0.5, color='0.7', linewidth=0.6)
            axis.axvline(border - 0.5, color='0.7', linewidth=0.6)
        title = name if classes is truth else f'{name}: {np.mean(classes[real] == truth[real]):.1%} right'
        axis.set(title=title, xticks=[], yticks=[])
    patches = [Patch(color=color, label=name) for name, color in zip(CLASSES, COLORS)]
    figure.legend(handles=patches, loc='outside lower center', ncols=len(CLASSES))
    figure.savefig(path, dpi=110)


def above(classes: np.ndarray, at: np.ndarray, real: np.ndarray, task: Voxels) -> np.ndarray:
    """The class of the highest voxel of each place, -1 for none."""
    plan = np.full(task.grid[1:], EMPTY)
    for n in np.argsort(at[:, 0], kind='stable'):
        if real[n]:
            plan[at[n, 1], at[n, 2]] = classes[n]
    return plan
