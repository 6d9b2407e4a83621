"""Aaren beside a Transformer in the paper's four settings, and on recall, which it cannot learn."""

import functools
from collections.abc import Mapping, Sequence

import jax

from experiments.papers.aaren.settings import (
    AAREN,
    CLASSES,
    CONTROL,
    EVENTS,
    FORECASTS,
    RECALL,
    SOFTMAX,
    Size,
    settings,
)
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.small_models import Setting, Variables, compare, mean, score, score_rows, values
from jattn.contract import Context
from jattn.data import Corpus
from jattn.testbeds import Control
from jattn.typing import Array, Float, Key, PyTree

PAPER = '48'
# setting -> metric, what is said of it, rule; of forecasts Aaren's over the Transformer's, else the difference.
CLAIMS = {
    FORECASTS: ('mse', 'mse of Aaren over the Transformer', dict(below=1.05)),
    CLASSES: ('accuracy', 'accuracy of Aaren minus the Transformer', dict(above=-0.02)),
    EVENTS: ('loss', 'nats an event of Aaren minus the Transformer', dict(below=0.05)),
    CONTROL: ('score', 'score of flights, Aaren minus the Transformer', dict(above=-0.05)),
    RECALL: ('accuracy', 'accuracy of Aaren minus the Transformer', dict(below=-0.3)),
}
DATA = {FORECASTS: 'ett', CLASSES: 'ucr'}
Found = Mapping[tuple[str, str], Sequence[dict[str, float] | None]]


def measure(context: ClaimContext, size: Size) -> Found:
    """(setting, model) -> metrics of every seed."""

    def metrics(setting: Setting, variables: Variables) -> dict[str, float]:
        if isinstance(setting.data, Corpus):
            return score_rows(setting, variables)
        found = score(setting, variables, setting.data, 256, 4, context.key(900))
        if isinstance(setting.data, Control):
            found['score'] = flight_score(setting, variables, size.flights, context.key(901))
        return found

    trained = settings(size, context)
    named = {', '.join(key): setting for key, setting in trained.items()}
    return dict(zip(trained, compare(named, size.seeds, metrics, context.say, context.key(100)).values()))


def flight_score(setting: Setting, variables: Variables, flights: int, key: Key) -> float:
    """The mean return of a fitted model that is told the best one; 0 is doing nothing, 1 the best gain."""
    facts = setting.data.facts()
    returns = _flights(setting, variables, flights, key, facts['best'])
    return float((returns.mean() - facts['nothing']) / (facts['best'] - facts['nothing']))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _flights(setting: Setting, variables: Variables, flights: int, key: Key, told: float) -> Float[Array, 'B']:
    """One token a call, the model's state between them."""
    module, task = setting.module, setting.data

    def policy(state: PyTree, seen: Float[Array, 'B F']) -> tuple[PyTree, Float[Array, 'B']]:
        outputs, state = module.apply(variables, seen[:, None], Context(), state)
        return state, outputs[:, 0, 0]

    return task.fly(key, policy, module.cfg.init_state(flights, task.tokens), flights, told)[2]


def lines(found: Found, context: ClaimContext, size: Size) -> list[Line]:
    """Comparable in the four settings; far behind where a key must be looked up."""
    out = []
    for where, (metric, words, rule) in CLAIMS.items():
        claim = f'{where}, {size.steps[where]} steps: {words}'
        if (where, AAREN) not in found:
            ((side, bound),) = rule.items()
            expected = f'{">" if side == "above" else "<"} {bound:g}'
            out.append(Line.missing(PAPER, claim, expected, needs(DATA[where])))
            continue
        mine, other = (mean(found[where, name], metric) for name in (AAREN, SOFTMAX))
        note = ', '.join(f'{name} {values(found[where, name], metric)}' for name in (AAREN, SOFTMAX))
        value = mine / other if where == FORECASTS else mine - other
        out.append(Line.number(PAPER, claim, value, **rule, note=f'{metric} {note}; {beside(where, context, size)}'))
    return out


def beside(where: str, context: ClaimContext, size: Size) -> str:
    """What else a reader should know of a setting's score."""
    data = size.data(context)[where]
    if where == FORECASTS:
        return f'repeating the last value {data.facts()["last_value_mse"]:.3f}'
    if where == CLASSES:
        return f'{data.name}, the largest class {data.facts()["majority_accuracy"]:.3f}'
    if where == EVENTS:
        batch = data.sample(context.key(902), 256)
        known = {name: data.loss(outputs, batch).value() for name, outputs in data.baselines(batch).items()}
        return f'{known["rates"]:.3f} for who knows the rates, {known["no_history"]:.3f} without history'
    if where == CONTROL:
        return 'told the return of the best gain, whose score is 1; doing nothing is 0'
    return f'any value of the context {data.facts()["context_value_accuracy"]:.3f}'
