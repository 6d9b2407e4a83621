"""What training makes of the heads: the lines on losses, circuits, head numbers and dynamics of paper 41."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.contract import Line
from experiments.papers.icl_linear.training import Size, Trained, average_errors, draw, models_predictor
from jattn.testbeds import Batch, ICLLinear
from jattn.testbeds import icl_linear_estimators as estimators
from jattn.testbeds import icl_linear_theory as theory
from jattn.testbeds.icl_linear import split_prompts
from jattn.testbeds.icl_linear_model import Measures, measures, prediction_gap
from jattn.typing import Array, Float, Key

PAPER = '41'
Runs = Sequence[dict[str, Trained]]  # one group of trained models a seed
Errors = dict[str, tuple[float, float]]  # name -> mean squared error, its standard error


def run_errors(task: ICLLinear, runs: Runs, size: Size, key: Key) -> tuple[list[Errors], Errors]:
    """The models' errors, a dict a seed, and the closed-form predictors', all on the same prompts."""
    predict = models_predictor(
        {f'{seed}/{name}': model for seed, run in enumerate(runs) for name, model in run.items()}
    )
    names = ('gradient_descent', 'debiased_gradient_descent', 'ridge')

    def predictor(batch: Batch) -> dict[str, Array]:
        exact = task.baselines(batch)
        return predict(batch) | {name: exact[name][:, -1] for name in names}

    found = {name: values[0] for name, values in average_errors(task, predictor, size.prompts, key).items()}
    by_seed = [{name: found[f'{seed}/{name}'] for name in run} for seed, run in enumerate(runs)]
    return by_seed, {name: found[name] for name in names}


def exact_lines(task: ICLLinear, exact: Errors) -> list[Line]:
    """Simulated risks of the closed-form predictors against the formulas."""
    facts = task.facts() | {'ridge': 0.1147}
    sources = {'ridge': 'the sheet simulated 0.1147; the large-F formula says 0.1141'}
    return [
        Line.number(
            PAPER,
            f'simulated risk of {name.replace("_", " ")}',
            exact[name][0],
            near=(facts[name], 0.006),
            note=f'{sources.get(name, "exact formula")}; standard error {exact[name][1]:.4f}',
        )
        for name in exact
    ]


def loss_lines(runs: Runs, found: list[Errors], exact: Errors, task: ICLLinear) -> list[Line]:
    """Errors by head number, the worst seed of each."""
    one, two = [e['1 head'][0] for e in found], [e['2 heads'][0] for e in found]
    bound, ridge = task.facts()['debiased_gradient_descent'], exact['ridge'][0]
    lines = [
        worst_line('error of one head', one, near=(0.40, 0.015), note='simulated at the best omega, mu: 0.40'),
        worst_line('error of one head minus two heads', np.subtract(one, two), above=0.1),
        worst_line('error of two heads', two, near=(bound, 0.01), note='exact risk of debiased gradient descent'),
        worst_line('error of two heads minus ridge (Bayes)', np.subtract(two, ridge), above=0.1),
    ]
    more = [name for name in runs[0] if name in ('4 heads', '8 heads')]
    if more:
        gaps = [abs(e[name][0] - e['2 heads'][0]) for e in found for name in more]
        lines.append(worst_line(f'error of {" and ".join(more)} against two heads', gaps, below=0.01))
    drawn = [e[name][0] for e in found for name in e if 'as drawn' in name]
    if drawn:
        lines.append(
            Line.count(
                PAPER,
                'runs of two heads from independent draws that leave the solution of one head',
                sum(error < 0.3 for error in drawn),
                of=len(drawn),
                note=f'errors {joined(drawn)}; heads that start alike in sign stay there: those above start opposite',
            )
        )
    return lines


def circuit_lines(runs: Runs, name: str, task: ICLLinear, size: Size, key: Key) -> list[Line]:
    """The shape of the circuits of the model `name`, the worst seed of each measure."""
    read = [measures(run[name].circuits) for run in runs]
    sizes = (task.noise_variance, task.dim, task.context)
    step = 1 / (1 + (1 + sizes[0]) * sizes[1] / sizes[2])
    gaps = [_gap(task, run[name], size, key) for run in runs]
    counts = ', '.join(f'{int(m.active.sum())} of {len(m.active)}' for m in read)
    active = f'of the heads that carry weight ({counts}; the others are dummies)'
    slow = '' if name == '2 heads' else '; the lighter a head, the later it settles: more steps bring it nearer'

    def line(claim: str, values: Sequence[float], note: str = '', **rule: float | tuple[float, float]) -> Line:
        return worst_line(f'{name}: {claim}', values, note=note, **rule)

    return [
        line(
            'KQ diagonal share, mean of heads', _mean(read, 'diagonal_share'), above=0.99, note=f'authors 0.99926{slow}'
        ),
        line('OV share of the label, mean of heads', _mean(read, 'label_share'), above=0.99, note='authors 0.99994'),
        line('KQ diagonal, std / |omega|, worst head', _most(read, 'inhomogeneity'), below=0.05, note=active + slow),
        line('KQ label row, largest entry', _most(read, 'label_row'), below=0.02),
        line('|sum of mu| / sum of |mu|', [m.zero_sum for m in read], below=0.05),
        line('lighter sign of mu over heavier', [m.sign_balance for m in read], above=0.9),
        line('heads whose omega and mu agree in sign', [m.sign_match for m in read], near=(1, 0)),
        line('step eta = sum of mu omega', [m.step for m in read], near=(step, 0.04), note=_weights(read[0])),
        line('distance from debiased gradient descent with step eta', gaps, below=0.02, note='E(f - g)^2 / Var f'),
    ]


def flow_lines(task: ICLLinear) -> tuple[list[Line], dict[str, np.ndarray]]:
    """Gradient flow on the approximate population loss, from small opposite and from small equal signs."""
    sizes = (task.dim, task.context, task.noise_variance)
    apart, alike = _flow(jnp.array([0.05, -0.05]), sizes), _flow(jnp.array([0.02, 0.03]), sizes)
    step = 1 / (1 + (1 + task.noise_variance) * task.dim / task.context)
    late = apart['time'] >= 20
    lines = [
        Line.number(
            PAPER,
            'gradient flow: |omega| at time 1000 over time 10',
            apart['omega'][-1, 0] / apart['omega'][apart['time'] == 10][0, 0],
            below=0.5,
            note='omega falls slowly, mu grows; the factor one half is ours',
        ),
        Line.number(
            PAPER,
            'gradient flow: farthest step eta from its limit, time 20 to 1000',
            np.max(np.abs(np.sum(apart['omega'] * apart['mu'], axis=1)[late] - step)),
            below=0.04,
            note=f'mu omega stays along the fall; limit {step:.3f}',
        ),
        Line.number(
            PAPER,
            'gradient flow from equal signs: loss at its end',
            alike['loss'][-1],
            near=(task.facts()['one_head_approximate'], 0.001),
            note=f'the loss of one head; from opposite signs {apart["loss"][-1]:.3f}',
        ),
    ]
    return lines, apart


def _flow(omega: Float[Array, 'H'], sizes: tuple[int, int, float]) -> dict[str, np.ndarray]:
    """omega, mu and the loss at the times 10, 20, ... 1000, by small explicit steps."""
    interval, between = 0.01, 1000

    def move(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        gradients = theory.population_gradients(*state, *sizes)
        return jax.tree.map(lambda value, gradient: value - interval * gradient, state, gradients), None

    def stretch(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        state, _ = jax.lax.scan(move, state, None, length=between)
        return state, (*state, theory.population_loss(*state, *sizes))

    start = (omega, jnp.zeros_like(omega))
    omegas, mus, losses = jax.jit(lambda start: jax.lax.scan(stretch, start, None, length=100)[1])(start)
    times = interval * between * np.arange(1, 101)
    return {'time': times, 'omega': np.asarray(omegas), 'mu': np.asarray(mus), 'loss': np.asarray(losses)}


def _gap(task: ICLLinear, model: Trained, size: Size, key: Key) -> float:
    """The distance of a model from debiased gradient descent with the model's own step."""
    step = measures(model.circuits).step

    @jax.jit
    def both(batch: Batch) -> tuple[Array, Array]:
        x, y, query = split_prompts(batch.inputs, task.dim)
        return model(batch.inputs)[:, 0], estimators.debiased_gradient_descent(x, y[:, :, 0], query, step)

    predictions, reference = (jnp.concatenate(f) for f in zip(*map(both, draw(task, size.prompts, key))))
    return float(prediction_gap(predictions, reference))


def worst_line(claim: str, values: Sequence[float], note: str = '', **rule: float | tuple[float, float]) -> Line:
    """A line on the seed that is farthest on the wrong side of the rule; the note lists all seeds."""
    (kind, bound), values = next(iter(rule.items())), [float(value) for value in values]
    badness: Callable[[float], float] = {
        'above': lambda value: -value,
        'below': lambda value: value,
        'near': lambda value: abs(value - bound[0]),
    }[kind]
    worst = max(values, key=lambda value: math.inf if math.isnan(value) else badness(value))
    seeds = f'runs {joined(values)}' if len(values) > 1 else ''
    return Line.number(PAPER, claim, worst, note='; '.join(filter(None, (note, seeds))), **rule)


def _mean(read: Sequence[Measures], name: str) -> list[float]:
    return [float(jnp.sum(getattr(m, name) * m.active) / jnp.sum(m.active)) for m in read]


def _most(read: Sequence[Measures], name: str) -> list[float]:
    return [float(jnp.max(jnp.where(m.active, getattr(m, name), 0))) for m in read]


def joined(values: Sequence[float]) -> str:
    """Numbers in three digits, for a note."""
    return ', '.join(f'{value:.3g}' for value in values)


def _weights(read: Measures) -> str:
    return f'omega {joined(read.omega.tolist())}; mu {joined(read.mu.tolist())}'
