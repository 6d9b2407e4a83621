"""The pictures of paper 41's rerun: circuits, dynamics, sweeps, pre-conditioner, tasks."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.papers.icl_linear.training import Trained
from jattn.testbeds import ICLLinearMultitask
from jattn.testbeds.icl_linear_model import Circuits, measures

# One look a predictor, the same in every picture: models are solid, closed forms dashed.
STYLES = {
    '1 head': {'color': 'tab:orange', 'marker': 'o', 'zorder': 3},
    '2 heads': {'color': 'tab:blue', 'marker': 'o', 'zorder': 3},
    'linear': {'color': 'tab:red', 'marker': 's', 'label': 'linear attention, no 1/S', 'zorder': 2},
    'linear / S': {'color': 'tab:pink', 'marker': 's', 'markersize': 9, 'label': 'linear attention, 1/S', 'zorder': 1},
    'gradient descent': {'color': 'tab:brown', 'linestyle': ':', 'zorder': 4},
    'debiased gradient descent': {'color': 'black', 'linestyle': '--', 'zorder': 4},
    'ridge (Bayes)': {'color': 'tab:green', 'linestyle': '--', 'zorder': 2},
}


def _signed(axis: Axes, matrix: np.ndarray, bound: float, digits: int = 2) -> object:
    """A matrix in red and blue around zero, its entries written in; nan is left grey."""
    axis.set_facecolor('0.85')
    image = axis.imshow(matrix, cmap='RdBu_r', vmin=-bound, vmax=bound, aspect='equal')
    for (row, column), value in np.ndenumerate(matrix):
        if np.isnan(value):
            continue
        text = f'{value:.{digits}f}'.replace('-0.00', '0.00')
        color = 'white' if abs(value) > 0.6 * bound else '0.25'
        axis.text(column, row, text, ha='center', va='center', fontsize=7, color=color)
    return image


def draw_circuits(models: Mapping[str, Trained], path: pathlib.Path) -> None:
    """KQ and OV of every head, a row of maps a model; KQ's grey column meets the query's empty label slot only."""
    columns = max(model.layer.heads for model in models.values())
    figure = Figure(figsize=(2.7 * columns + 0.6, 3.7 * len(models)), layout='constrained')
    for strip, (name, model) in zip(figure.subfigures(len(models), 1, squeeze=False)[:, 0], models.items()):
        strip.suptitle(
            f'{name}: KQ above (which examples are matched), OV below (what is read)', fontsize=10, x=0.01, ha='left'
        )
        kq, ov = np.array(model.circuits.kq), np.asarray(model.circuits.ov)
        kq[:, :, -1] = np.nan
        names = [*(f'x{i + 1}' for i in range(kq.shape[2] - 1)), 'y']
        axes = strip.subplots(2, columns, squeeze=False, height_ratios=(kq.shape[1], 1.0))
        read = measures(model.circuits)
        for head in range(columns):
            above, below = axes[:, head]
            if head >= len(kq):
                above.axis('off')
                below.axis('off')
                continue
            _signed(above, kq[head], np.nanmax(np.abs(kq)))
            above.set_title(f'head {head}: ω {float(read.omega[head]):+.3f}, μ {float(read.mu[head]):+.3f}', fontsize=9)
            above.set_xticks(range(len(names)), names, fontsize=7)
            above.set_yticks(range(len(names)), names, fontsize=7)
            _signed(below, ov[head], np.abs(ov).max())
            below.set_xticks(range(len(names)), names, fontsize=7)
            below.set_yticks([])
    _save(figure, path)


def draw_dynamics(model: Trained, flow: Mapping[str, np.ndarray], limit: float, path: pathlib.Path) -> None:
    """omega, mu and the step along training, and along gradient flow on the population loss."""
    read = [measures(Circuits(kq, ov)) for kq, ov in zip(*model.trace)]
    trained = (model.steps, np.stack([m.omega for m in read]), np.stack([m.mu for m in read]))
    figure = Figure(figsize=(9, 6.5), layout='constrained')
    columns = (
        ('training of two heads', 'step', *trained),
        ('gradient flow on the population loss', 'time', flow['time'], flow['omega'], flow['mu']),
    )
    for axes, (title, unit, times, omega, mu) in zip(figure.subplots(3, 2, sharex='col').T, columns):
        for axis, values, name in zip(axes, (omega, mu, np.sum(omega * mu, axis=1)[:, None]), ('ω', 'μ', 'Σ μω')):
            for head, curve in enumerate(values.T):
                label = f'head {head}' if values.shape[1] > 1 else 'step η'
                axis.plot(times, curve, marker='.', markersize=4, label=label)
            axis.set_ylabel(name)
            axis.grid(alpha=0.3)
        axes[2].axhline(limit, color='black', linestyle='--', label=f'1 / (1 + (1+σ²) F/S) = {limit:.3f}')
        axes[2].set_ylim(limit - 0.12, limit + 0.06)
        axes[0].set_title(title, fontsize=10)
        axes[2].set_xlabel(unit)
        axes[0].legend(fontsize=8)
        axes[2].legend(fontsize=8, loc='lower right')
    _save(figure, path)


def draw_sweep(
    points: Sequence[float],
    curves: Mapping[str, np.ndarray],
    path: pathlib.Path,
    *,
    title: str,
    unit: str,
    log_points: bool,
    mark: float | None = None,
) -> None:
    """Errors of every predictor along one axis; the mark is where the models were trained."""
    figure = Figure(figsize=(8, 4.6), layout='constrained')
    axis = figure.subplots()
    for name, style in STYLES.items():
        if name in curves:
            axis.plot(points, curves[name], **{'label': name, **style})
    if log_points:
        axis.set_xscale('log')
    crowded = [log_points and after < 1.2 * point for point, after in zip(points, [*points[1:], math.inf])]
    axis.set_xticks(points, ['' if skip else f'{point:g}' for point, skip in zip(points, crowded)])
    axis.set_yscale('log')
    low, high = min(map(np.min, curves.values())), max(map(np.max, curves.values()))
    steps = (1, 10, 100, 1000) if high > 1000 * low else (0.2, 0.5, 1, 2, 5, 10, 20, 50)
    ticks = [0.1, *(step for step in steps if step < 1.2 * high)]
    axis.set_yticks(ticks, [f'{tick:g}' for tick in ticks])
    axis.minorticks_off()
    if mark is not None:
        axis.axvline(mark, color='0.6', linewidth=1)
        axis.annotate('trained here', (mark, 1), xycoords=('data', 'axes fraction'), xytext=(3, -10), **_SMALL)
    axis.set_xlabel(unit)
    axis.set_ylabel('squared error')
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc='center left', bbox_to_anchor=(1.01, 0.5))
    _save(figure, path)


def draw_trained_lengths(
    found: Mapping[str, Mapping[int, float]], exact: Mapping[int, float], path: pathlib.Path
) -> None:
    """Errors of models trained at each length, beside the exact risk of debiased gradient descent."""
    figure = Figure(figsize=(6.4, 4.2), layout='constrained')
    axis = figure.subplots()
    for name, values in found.items():
        axis.plot(list(values), list(values.values()), **{'label': name, **STYLES[name]})
    debiased = {'label': 'debiased gradient descent, exact', **STYLES['debiased gradient descent']}
    axis.plot(list(exact), list(exact.values()), **debiased)
    axis.set_ylim(bottom=0)
    axis.set_xlabel('examples in a prompt, at training and at evaluation')
    axis.set_ylabel('squared error')
    axis.set_title('trained anew at each length', fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)


def draw_preconditioner(matrices: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """What two heads apply to correlated covariates, the exact optimum, and the circuits."""
    titles = {
        'learned': 'learned: Σ μ KQ',
        'best': 'best for debiased\ngradient descent',
        'plus': 'KQ of head 0',
        'minus': 'KQ of head 1',
    }
    figure = Figure(figsize=(11, 3.1), layout='constrained')
    for axis, (name, title) in zip(figure.subplots(1, len(titles)), titles.items()):
        _signed(axis, matrices[name], np.abs(matrices[name]).max())
        axis.set_title(title, fontsize=10)
        ticks = range(len(matrices[name]))
        axis.set_xticks(ticks, [f'x{i + 1}' for i in ticks], fontsize=7)
        axis.set_yticks(ticks, [f'x{i + 1}' for i in ticks], fontsize=7)
    _save(figure, path)


def draw_tasks(task: ICLLinearMultitask, models: Mapping[str, Trained], path: pathlib.Path) -> None:
    """KQ's diagonal and the OV label entries of every head, a column a model."""
    figure = Figure(figsize=(5.4 * len(models), 4.6), layout='constrained')
    for strip, (name, model) in zip(figure.subfigures(1, len(models), squeeze=False)[0], models.items()):
        diagonal = np.diagonal(np.asarray(model.circuits.kq), axis1=1, axis2=2)[:, : task.dim]
        labels = np.asarray(model.circuits.ov)[:, :, task.dim :].reshape(len(diagonal), -1)
        strip.suptitle(f'two tasks, {name}', fontsize=10)
        above, below = strip.subplots(2, 1)
        heads = [f'head {head}' for head in range(len(diagonal))]
        _signed(above, diagonal, np.abs(diagonal).max())
        above.set_title('diagonal of KQ (task 1 reads x1-x4, task 2 reads x3-x6)', fontsize=9)
        above.set_xticks(range(task.dim), [f'x{i + 1}' for i in range(task.dim)], fontsize=8)
        _signed(below, labels, np.abs(labels).max())
        below.set_title('OV: label read → output written', fontsize=9)
        pairs = [f'y{n + 1} → f{m + 1}' for m in range(task.tasks) for n in range(task.tasks)]
        below.set_xticks(range(len(pairs)), pairs, fontsize=8)
        for axis in (above, below):
            axis.set_yticks(range(len(heads)), heads, fontsize=8)
            axis.set_aspect('auto')
    _save(figure, path)


_SMALL = {'textcoords': 'offset points', 'fontsize': 8, 'color': '0.4'}


def _save(figure: Figure, path: pathlib.Path) -> None:
    figure.savefig(path, dpi=120)
