"""Other prompts: covariates that are not isotropic, and several tasks in one prompt."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.icl_linear.patterns import PAPER, Runs, worst_line
from experiments.papers.icl_linear.training import (
    MULTITASK,
    Size,
    Start,
    Trained,
    average_errors,
    models_predictor,
    train,
)
from jattn.testbeds import ICLLinear, ICLLinearMultitask, Task
from jattn.testbeds import icl_linear_theory as theory
from jattn.testbeds.icl_linear_model import Circuits, OneLayer, effective_preconditioner
from jattn.typing import Key

CORRELATION = 0.5


def preconditioned_lines(
    task: ICLLinear, size: Size, context: ClaimContext
) -> tuple[list[Line], dict[str, np.ndarray]]:
    """Two heads on covariates with Sigma_ij = rho^|i-j|: they pre-condition."""
    task = dataclasses.replace(task, correlation=CORRELATION)
    starts = {'2 heads': Start(OneLayer(2, task.input_size), opposite=True)}
    runs = []
    for seed in range(size.seeds):
        context.say(f'two heads on correlated covariates, run {seed}')
        runs.append(train(task, starts, size, size.steps, context.key(100 + seed))['2 heads'])
    found = _errors(task, runs, size, context.key(4))
    facts, best = task.facts(), theory.best_preconditioner(task.debiased_moments)
    learned = [np.asarray(effective_preconditioner(model.circuits)) for model in runs]
    blocks = [np.asarray(kq)[: task.dim, : task.dim] for model in runs for kq in model.circuits.kq]
    basis = np.linalg.eigh(task.covariance)[1]
    scalar = facts['debiased_gradient_descent']
    lines = [
        _line('error', found, near=(facts['preconditioned_debiased_gradient_descent'], 0.01), note='exact risk'),
        _line(
            'debiased gradient descent without pre-conditioner minus error',
            np.subtract(scalar, found),
            above=0.1,
            note=f'exact risk {scalar:.3f} at its best step',
        ),
        _line(
            'sum of mu KQ against the best pre-conditioner, relative distance',
            [np.linalg.norm(matrix - best) / np.linalg.norm(best) for matrix in learned],
            below=0.1,
        ),
        _line(
            'KQ asymmetry |KQ - KQ^T| / |KQ|, worst head',
            _by_run([np.linalg.norm(kq - kq.T) / np.linalg.norm(kq) for kq in blocks], size.seeds),
            below=0.1,
        ),
        _line(
            "KQ off the diagonal in Sigma's eigenbasis, share of the square, worst head",
            _by_run([off_diagonal_share(basis.T @ kq @ basis) for kq in blocks], size.seeds),
            below=0.02,
            note=f'in the given basis {max(off_diagonal_share(kq) for kq in blocks):.2f}',
        ),
    ]
    return lines, {'learned': learned[0], 'best': best, 'plus': blocks[0], 'minus': blocks[1]}


def _errors(task: Task, models: Sequence[Trained], size: Size, key: Key) -> list[float]:
    predictor = models_predictor({str(seed): model for seed, model in enumerate(models)})
    return [values[0][0] for values in average_errors(task, predictor, size.prompts, key).values()]


def _line(claim: str, values: Sequence[float], note: str = '', **rule: float | tuple[float, float]) -> Line:
    return worst_line(f'correlated covariates, two heads: {claim}', values, note=note, **rule)


def _by_run(values: Sequence[float], runs: int) -> list[float]:
    return np.max(np.reshape(values, (runs, -1)), axis=1).tolist()


def off_diagonal_share(matrix: np.ndarray) -> float:
    """The share of a matrix's squared entries that lie off its diagonal."""
    return float(1 - np.sum(np.square(np.diagonal(matrix))) / np.sum(np.square(matrix)))


def signals(task: ICLLinearMultitask, circuits: Circuits) -> np.ndarray:
    """How strongly each head serves each task, [H, N]: |OV of its label| x rms of KQ's diagonal on its window."""
    squares = np.square(np.diagonal(np.asarray(circuits.kq), axis1=1, axis2=2))
    windows = [np.sqrt(squares[:, start : start + task.task_dim].mean(axis=1)) for start in task.starts]
    labels = [np.asarray(circuits.ov)[:, n, task.dim + n] for n in range(task.tasks)]
    return np.abs(np.stack(windows, axis=1) * np.stack(labels, axis=1))


def shared_heads(task: ICLLinearMultitask, circuits: Circuits) -> int:
    """Heads that serve several tasks: the second strongest signal is at least a quarter of the strongest.

    A head whose strongest signal is under a twentieth of the strongest of all is a dummy and not counted.
    """
    ranked = np.sort(signals(task, circuits), axis=1)
    active = ranked[:, -1] >= ranked.max() / 20
    return int(np.sum(active & (ranked[:, -2] >= ranked[:, -1] / 4)))


def support_share(task: ICLLinearMultitask, circuits: Circuits) -> float:
    """Least share, over active heads, of KQ's squared diagonal that lies on the window of the head's strongest task."""
    strength = signals(task, circuits)
    active = strength.max(axis=1) >= strength.max() / 20
    squares = np.square(np.diagonal(np.asarray(circuits.kq), axis1=1, axis2=2))[:, : task.dim]
    starts = np.array(task.starts)[np.argmax(strength, axis=1)]
    inside = [row[start : start + task.task_dim].sum() / row.sum() for row, start in zip(squares, starts)]
    return float(np.min(np.array(inside)[active]))


def multitask_lines(size: Size, context: ClaimContext) -> tuple[list[Line], Runs]:
    """Two tasks with three heads (superposition) and with four (one task a head)."""
    task = MULTITASK
    starts = {f'{heads} heads': Start(OneLayer(heads, task.input_size, task.output_size)) for heads in (3, 4)}
    runs = []
    for seed in range(size.seeds):
        context.say(f'three and four heads on two tasks, run {seed}')
        runs.append(train(task, starts, size, size.steps, context.key(200 + seed)))
    lines = []
    for name in starts:
        models = [run[name] for run in runs]
        lines += _heads_lines(name, models, size, context)
    return lines, runs


def _heads_lines(name: str, models: Sequence[Trained], size: Size, context: ClaimContext) -> list[Line]:
    task = MULTITASK
    found = _errors(task, models, size, context.key(5))
    shared = [shared_heads(task, model.circuits) for model in models]
    exact = task.facts()['debiased_gradient_descent']
    reads = '; '.join(describe_heads(task, model.circuits) for model in models[:1])
    lines = [
        worst_line(
            f'two tasks, {name}: error', found, near=(0.41, 0.03), note=f'debiased gradient descent by task {exact:.3f}'
        )
    ]
    if name == '3 heads':
        claim = 'two tasks, 3 heads: runs with at least one head that serves both tasks'
        return [*lines, Line.count(PAPER, claim, sum(n > 0 for n in shared), of=len(shared), note=reads)]
    claim = 'two tasks, 4 heads: runs in which every head serves one task'
    support = [support_share(task, model.circuits) for model in models]
    return [
        *lines,
        Line.count(PAPER, claim, sum(n == 0 for n in shared), of=len(shared), note=reads),
        worst_line("two tasks, 4 heads: KQ's squared diagonal on the head's own task, worst head", support, above=0.95),
    ]


def describe_heads(task: ICLLinearMultitask, circuits: Circuits) -> str:
    """Mean |KQ diagonal| where one task reads and where both do, and both OV label entries, of every head."""
    diagonal = jnp.abs(jnp.diagonal(circuits.kq, axis1=1, axis2=2))[:, : task.dim]
    first, second = ({*range(start, start + task.task_dim)} for start in task.starts)
    groups = [sorted(first - second), sorted(first & second), sorted(second - first)]
    parts = []
    for head, ov in enumerate(np.asarray(circuits.ov)):
        kq = '/'.join(f'{float(diagonal[head, np.array(group)].mean()):.2f}' for group in groups)
        labels = '/'.join(f'{ov[n, task.dim + n]:.2f}' for n in range(task.tasks))
        parts.append(f'head {head}: KQ {kq}, OV {labels}')
    return 'first run, KQ on task 1 only / both / task 2 only: ' + '; '.join(parts)
