"""Trained models at other prompt lengths, other means of the covariates, and trained anew at other lengths."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.icl_linear.patterns import PAPER, joined
from experiments.papers.icl_linear.training import Size, Start, Trained, at_length, average, errors, train
from jattn.testbeds import ICLLinear
from jattn.testbeds import icl_linear_estimators as estimators
from jattn.testbeds import icl_linear_theory as theory
from jattn.testbeds.icl_linear import split_prompts
from jattn.testbeds.icl_linear_model import OneLayer, measures
from jattn.typing import Array, Key

Curves = dict[str, np.ndarray]  # predictor -> its error at every point of the sweep

# True errors of two heads, trained at each length: the authors' plotted values less the noise that they add twice.
AUTHORS_TWO_HEADS = {10: 0.579, 20: 0.366, 40: 0.241, 70: 0.188, 100: 0.168}


def sweep(task: ICLLinear, points: list[ICLLinear], run: Mapping[str, Trained], size: Size, key: Key) -> Curves:
    """Errors at every point of the models and of the closed forms; these keep the steps of the training task.

    Debiased gradient descent takes the step eta = sum_h mu_h omega_h of the two trained heads.
    """
    plain = theory.best_step(task.plain_moments)
    debiased = float(measures(run['2 heads'].circuits).step)

    def closed_forms(inputs: Array) -> dict[str, Array]:
        x, y, query = split_prompts(inputs, task.dim)
        labels = y[:, :, 0]
        return {
            'gradient descent': estimators.gradient_descent(x, labels, query, plain)[:, None],
            'debiased gradient descent': estimators.debiased_gradient_descent(x, labels, query, debiased)[:, None],
            'ridge (Bayes)': estimators.ridge(x, labels, query, task.noise_variance * task.dim)[:, None],
        }

    names = ('gradient descent', 'debiased gradient descent', 'ridge (Bayes)')
    predictors = {name: lambda batch, name=name: closed_forms(batch.inputs)[name] for name in names}
    for name in ('1 head', '2 heads', 'linear', 'linear / S'):
        predictors[name] = lambda batch, model=run[name]: model(batch.inputs)
    found = [average(point, errors(predictors), size.prompts, key) for point in points]
    return {name: np.array([f[name][0] for f in found]) for name in predictors}


def length_lines(lengths: tuple[int, ...], curves: Curves) -> list[Line]:
    """The claims on prompts longer and shorter than in training."""
    two, debiased, linear = curves['2 heads'], curves['debiased gradient descent'], curves['linear']
    far = lengths.index(160)

    def line(claim: str, measured: float, note: str, **rule: float | tuple[float, float]) -> Line:
        return Line.number(PAPER, claim, measured, note=f'{note}; S = {joined(lengths)}', **rule)

    return [
        line('two heads, largest step up of the error with length', np.max(np.diff(two)), joined(two), below=0),
        line(
            'two heads against debiased gradient descent at all lengths, largest relative difference',
            np.max(np.abs(two / debiased - 1)),
            joined(debiased),
            below=0.05,
        ),
        line('linear attention without 1/S at S = 160', linear[far], joined(linear), above=5),
        line(
            'ablation, linear attention with 1/S against gradient descent, largest relative difference',
            np.max(np.abs(curves['linear / S'] / curves['gradient descent'] - 1)),
            f'it generalises: {joined(curves["linear / S"])}',
            below=0.05,
        ),
    ]


def shift_lines(task: ICLLinear, shifts: tuple[float, ...], curves: Curves) -> list[Line]:
    """The claims on covariates with a mean that training never showed."""
    two, debiased, plain, one, ridge = (
        curves[name] for name in ('2 heads', 'debiased gradient descent', 'gradient descent', '1 head', 'ridge (Bayes)')
    )
    unit = shifts.index(1.0)

    def line(claim: str, measured: float, values: np.ndarray, **rule: float | tuple[float, float]) -> Line:
        return Line.number(PAPER, claim, measured, note=f'{joined(values)} at shifts {joined(shifts)}', **rule)

    moved = theory.plain_moments(np.eye(task.dim), np.full(task.dim, 1.0), task.context, task.noise_variance)
    exact = theory.risk(moved, theory.best_step(task.plain_moments))
    return [
        line(
            'shifted covariates: two heads against debiased gradient descent, largest relative difference',
            np.max(np.abs(two / debiased - 1)),
            two,
            below=0.05,
        ),
        line('shifted covariates: two heads at shift 1', two[unit], debiased, near=(0.39, 0.02)),
        line('shifted covariates: gradient descent at shift 1', plain[unit], plain, near=(exact, 0.1 * exact)),
        line('shifted covariates: one head at shift 1', one[unit], one, near=(1.9, 0.3)),
        line(
            'shifted covariates: ridge at every shift, farthest from 0.115',
            _farthest(ridge, 0.115),
            ridge,
            near=(0.115, 0.006),
        ),
    ]


def _farthest(values: np.ndarray, centre: float) -> float:
    return float(values[np.argmax(np.abs(values - centre))])


def trained_length_lines(
    task: ICLLinear, size: Size, context: ClaimContext, at_training_length: Mapping[str, float]
) -> tuple[list[Line], dict[str, dict[int, float]]]:
    """Trains one and two heads anew at each length; the errors at the main training length are given."""
    starts = {
        '1 head': Start(OneLayer(1, task.input_size)),
        '2 heads': Start(OneLayer(2, task.input_size), opposite=True),
    }
    found = {name: {task.context: at_training_length[name]} for name in starts}
    bayes = {}
    for length in size.trained_lengths:
        context.say(f'one and two heads trained at length {length}')
        point = at_length(task, length)
        run = train(point, starts, size, size.sweep_steps, context.key(300 + length))
        predictors = {name: lambda batch, model=model: model(batch.inputs) for name, model in run.items()}
        predictors['bayes'] = lambda batch, point=point: point.baselines(batch)['ridge'][:, -1]
        means = average(point, errors(predictors), size.prompts, context.key(3))
        bayes[length] = means['bayes'][0]
        for name in starts:
            found[name][length] = means[name][0]
    one, two = ({length: curve[length] for length in sorted(curve)} for curve in found.values())
    gaps = {length: two[length] / AUTHORS_TWO_HEADS[length] - 1 for length in two}
    worst = max(gaps, key=lambda length: abs(gaps[length]))
    factors = [two[length] / bayes[length] for length in sorted(bayes)]
    lengths = f'trained at S = {joined(sorted(two))}'
    lines = [
        Line.number(
            PAPER,
            f'two heads trained at each length, farthest from the authors (S = {worst}), relative',
            gaps[worst],
            near=(0, 0.05),
            note=f'{joined([two[n] for n in sorted(two)])}, {lengths}; authors less a double sigma^2',
        ),
        Line.number(
            PAPER,
            'one head minus two heads trained at each length, smallest',
            min(one[n] - two[n] for n in two),
            above=0.05,
            note=f'one head {joined([one[n] for n in sorted(one)])}, {lengths}',
        ),
        Line.number(
            PAPER,
            "two heads' error over Bayes's, largest over lengths",
            max(factors),
            below=(1 + task.noise_variance) / task.noise_variance,
            note=f'{joined(factors)} at S = {joined(sorted(bayes))}; the bound is that of the zero predictor',
        ),
    ]
    return lines, {'1 head': one, '2 heads': two}


def shifted(task: ICLLinear, shifts: tuple[float, ...]) -> list[ICLLinear]:
    """The task at other means of the covariates."""
    return [dataclasses.replace(task, shift=shift) for shift in shifts]
