"""Judges a trained decoder's claims one by one behind a log that is read once, and behind no log at all.

A log is read in pieces of T events, whatever its length, so that one program reads them all and another scores claims.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.papers.mf2.settings import Size
from experiments.papers.small_models import Setting, Variables, outputs
from jattn.contract import Context
from jattn.testbeds import Batch, FactsAndFibs
from jattn.testbeds.event_log import CLAIM, EVENT, KINDS
from jattn.testbeds.facts_and_fibs import GRANULARITIES
from jattn.testbeds.pair_records import metrics_of, tabulate
from jattn.testbeds.paired_claims import score_pairs
from jattn.typing import Array, Float, Int32, Key, PyTree

Judged = dict[str, Any]  # what `metrics_of` says, with its groups


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured of one trained decoder.

    Attributes:
        by_events: events of the log -> what the protocol says.
        alone: the same behind no log.
        apart: the largest difference of a score behind a state from the same row in one call.
    """

    by_events: Mapping[int, Judged]
    alone: Judged
    apart: float


def judge(setting: Setting, variables: Variables, size: Size, key: Key) -> Found:
    """Every length and the claims alone; equal keys are the same logs and claims for every setting.

    Args:
        setting: whose model.
        variables: fitted ones.
        size: how much.
        key: of the logs.
    """
    by_events, fresh = {}, fresh_states(setting, size)
    for events in size.lengths:
        contexts, *claims, meta = _drawn(size.judged(events), size.contexts, size.pairs_of_a_log, key)
        states = fresh
        for piece in jnp.split(contexts, events // size.lengths[0], axis=1):
            states = read(setting, size, variables, states, piece)
        scores = score(setting, size, variables, states, *claims)
        by_events[events] = _metrics(scores, meta)
        if events == size.lengths[0]:
            few = jax.tree.map(lambda leaf: leaf[: size.contexts_twice], ((contexts, *claims), scores))
    return Found(by_events, _alone(setting, variables, size, fresh, key), _apart(setting, variables, *few))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _drawn(task: FactsAndFibs, contexts: int, pairs: int, key: Key) -> tuple:
    return task.pairs(key, contexts, pairs)


def fresh_states(setting: Setting, size: Size) -> PyTree:
    """What the model keeps before a log, a row for each of the logs: room for the longest one and a claim."""
    model = setting.model.for_data('tokens', setting.data.input_size, setting.data.output_size)
    fresh = model.init_state(1, EVENT * size.lengths[-1] + CLAIM + 1)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (size.contexts, *leaf.shape)), fresh)


@functools.partial(jax.jit, static_argnums=(0, 1))
def read(setting: Setting, size: Size, variables: Variables, states: PyTree, tokens: Int32[Array, 'N L']) -> PyTree:
    """The states behind the next piece of every log: states of one row each, stacked."""

    def one(log: tuple[PyTree, Array]) -> PyTree:
        state, tokens = log
        return setting.module.apply(variables, tokens[None], Context(), state)[1]

    return jax.lax.map(one, (states, tokens), batch_size=size.at_once)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(
    setting: Setting, size: Size, variables: Variables, states: PyTree, facts: Array, fibs: Array
) -> tuple[Float[Array, 'N P'], Float[Array, 'N P']]:
    """Scores of facts and of fibs [N, P, C], each on a copy of its log's state."""

    def of_claim(state: PyTree, claim: Array) -> Float[Array, '']:
        return setting.data.log_odds(setting.module.apply(variables, claim[None], Context(), state)[0])[0]

    return score_pairs(lambda state: state, of_claim, states, facts, fibs, at_once=size.at_once)


def _alone(setting: Setting, variables: Variables, size: Size, fresh: PyTree, key: Key) -> Judged:
    """The protocol's numbers of claims behind a fresh state, as many logs' at a time as were read."""
    batches = []
    for one in jax.random.split(key, size.batches_alone):
        _, *claims, meta = _drawn(size.judged(size.lengths[0]), size.contexts, size.pairs_of_a_log, one)
        batches.append((score(setting, size, variables, fresh, *claims), meta))
    return _metrics(*jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches))


def _apart(setting: Setting, variables: Variables, pairs: tuple[Array, Array, Array], scores: tuple) -> float:
    """The largest difference between scores behind a state and those of whole rows: logs, facts and fibs [N, P]."""
    contexts, *claims = pairs
    claims, behind = jnp.stack(claims, axis=1), jnp.stack(scores, axis=1)
    logs = jnp.broadcast_to(contexts[:, None, None], (*claims.shape[:3], contexts.shape[1]))
    rows = jnp.concatenate([logs, claims], axis=-1).reshape(behind.size, -1)
    whole = outputs(setting, variables, Batch(rows, rows, jnp.ones(rows.shape)))
    return float(jnp.max(jnp.abs(setting.data.log_odds(whole) - behind.ravel())))


def _metrics(scores: tuple[Array, Array], meta: Mapping[str, Array]) -> Judged:
    """The protocol's numbers, and those of each kind and granularity; contexts are left out, they are many."""
    pairs = tabulate(*scores, meta, {'kind': KINDS, 'granularity': GRANULARITIES})
    return metrics_of([dataclasses.replace(pair, context='') for pair in pairs])


def table(found: Mapping[str, Sequence[Found]], size: Size, events: int) -> list[str]:
    """Pairwise accuracy by kind, and over all pairs with accuracy and bias_gap; a row a mixer, means over seeds."""
    names = [*[f'kind/{kind}' for kind in size.kinds], 'pairwise', 'accuracy', 'bias_gap']
    head = [*[name.removeprefix('kind/') for name in names[:-3]], 'mean pairwise', *names[-2:]]
    return [_row('', head)] + [
        _row(mixer, [f'{mean(runs, events, name):.3f}' for name in names]) for mixer, runs in found.items()
    ]


def table_of_granularity(found: Mapping[str, Sequence[Found]], events: int) -> list[str]:
    """Pairwise accuracy by how far apart the events stand that a pair needs; a row a mixer."""
    judged = [run.by_events[events] for runs in found.values() for run in runs if run is not None]
    there = [one for one in GRANULARITIES if any(f'granularity/{one}' in run['groups'] for run in judged)]
    return [_row('', there)] + [
        _row(mixer, [f'{mean(runs, events, f"granularity/{one}"):.3f}' for one in there])
        for mixer, runs in found.items()
    ]


def _row(name: str, cells: Sequence[str]) -> str:
    return f'{name:18}' + ''.join(f'{cell:>14}' for cell in cells)


def of(judged: Judged, name: str) -> float:
    """A number over all pairs, or the pairwise accuracy of a group, as in 'kind/order'; nan without such pairs.

    >>> judged = {'pairwise': 0.5, 'groups': {'kind/order': {'pairwise': 0.25}}}
    >>> of(judged, 'pairwise'), of(judged, 'kind/order'), of(judged, 'kind/count')
    (0.5, 0.25, nan)
    """
    if '/' in name:
        return judged['groups'].get(name, {'pairwise': float('nan')})['pairwise']
    return judged[name]


def mean(runs: Sequence[Found | None], events: int, name: str) -> float:
    """`of` as a mean over seeds; nan when a run has failed."""
    if any(run is None for run in runs):
        return float('nan')
    return sum(of(run.by_events[events], name) for run in runs) / len(runs)
