"""Paper 41, "In-Context Linear Regression Demystified": what one attention layer learns, and which algorithm it is.

    python -m experiments.claims --only=41 --out=runs/claims           six minutes of CPU time
    python -m experiments.claims --only=41 --size=tiny                 half a minute: one run, isotropic prompts only
    python -m experiments.claims --only=41 --size=paper                the authors' 500k steps: hours

Claims: heads become omega_h I on the covariates and read the label only, in groups of opposite sign with sum mu_h = 0;
two or more heads are debiased gradient descent and far better than one; longer prompts and shifted covariates do not
break them, while linear attention without 1/S breaks; correlated covariates are pre-conditioned; several tasks are
shared among few heads, and split among many.

Choices: all models of one run see the same batches. Two heads start opposite (`OneLayer.init`), because two heads that
start with equal signs stay at the solution of one head; how many starts as drawn escape is a line of its own. Below the
authors' size the learning rate falls from 1e-2 to 1e-4, not to 1e-3: the noise that a larger last rate leaves in
sum_h mu_h shows on shifted covariates. omega still shrinks after that many steps, at almost equal loss. Heads with
|mu omega| under a twentieth of the largest count as dummies.
"""

import numpy as np

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.icl_linear import patterns, pictures, settings, sweeps
from experiments.papers.icl_linear.training import ISOTROPIC, MULTITASK, SIZES, Size, at_length, main_group, train
from jattn.testbeds.icl_linear_model import measures


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its pictures."""
    size, task = SIZES[context.size], ISOTROPIC
    starts = main_group(size, task)
    runs = []
    for seed in range(size.seeds):
        context.say(f'training {", ".join(starts)}; run {seed}')
        runs.append(train(task, starts, size, size.steps, context.key(seed)))
    found, exact = patterns.run_errors(task, runs, size, context.key(1000))
    lines = patterns.exact_lines(task, exact) + patterns.loss_lines(runs, found, exact, task)
    for name in ('2 heads', '4 heads'):
        if name in starts:
            lines += patterns.circuit_lines(runs, name, task, size, context.key(1001))
    flow_lines, flow = patterns.flow_lines(task)
    lines += flow_lines
    shown = {name: runs[0][name] for name in ('1 head', '2 heads', '4 heads') if name in starts}
    pictures.draw_circuits(shown, context.out / 'circuits.png')
    limit = 1 / (1 + (1 + task.noise_variance) * task.dim / task.context)
    pictures.draw_dynamics(runs[0]['2 heads'], flow, limit, context.out / 'dynamics.png')
    lines += _sweeps(context, size, runs)
    if size.trained_lengths:
        lines += _trained_lengths(context, size, {name: value for name, (value, _) in found[0].items()})
    if size.settings:
        lines += _settings(context, size)
    return lines


def _sweeps(context: ClaimContext, size: Size, runs: patterns.Runs) -> list[Line]:
    """The first run's models at other lengths and shifts."""
    task, run = ISOTROPIC, runs[0]
    context.say('other lengths and other means')
    lengths = sweeps.length_sweep(task, size.lengths, run, size, context.key(1002))
    shifts = sweeps.shift_sweep(task, size.shifts, run, size, context.key(1003))
    pictures.draw_sweep(
        size.lengths,
        lengths,
        context.out / 'lengths.png',
        title='prompts of other lengths than in training',
        unit='examples in a prompt',
        log_points=True,
        mark=task.context,
    )
    pictures.draw_sweep(
        size.shifts,
        {name: values for name, values in shifts.items() if not name.startswith('linear')},
        context.out / 'shifts.png',
        title='covariates whose mean training never showed',
        unit='mean of every covariate',
        log_points=False,
    )
    omega = float(np.abs(measures(run['2 heads'].circuits).omega).mean())
    return sweeps.length_lines(size.lengths, lengths) + sweeps.shift_lines(task, size.shifts, shifts, omega)


def _trained_lengths(context: ClaimContext, size: Size, found: dict[str, float]) -> list[Line]:
    """One and two heads trained anew at each length."""
    lines, errors = sweeps.trained_length_lines(ISOTROPIC, size, context, found)
    lengths = np.unique(np.geomspace(8, 120, 30).astype(int)).tolist()
    exact = {length: at_length(ISOTROPIC, length).facts()['debiased_gradient_descent'] for length in lengths}
    path = context.out / 'trained_lengths.png'
    pictures.draw_trained_lengths(errors, exact, path)
    return lines


def _settings(context: ClaimContext, size: Size) -> list[Line]:
    """Correlated covariates, and two tasks."""
    conditioned, matrices = settings.preconditioned_lines(ISOTROPIC, size, context)
    pictures.draw_preconditioner(matrices, context.out / 'preconditioner.png')
    multitask, runs = settings.multitask_lines(size, context)
    pictures.draw_tasks(MULTITASK, runs[0], context.out / 'tasks.png')
    return conditioned + multitask
