"""What the protocol says of scorers that are known: the exact checker, coins, always TRUE, the claim alone."""

import jax
import jax.numpy as jnp

from experiments.papers.contract import Line
from experiments.papers.mf2.settings import PAPER
from jattn.testbeds import FactsAndFibs
from jattn.testbeds.event_log import CLAIM, EVENT
from jattn.testbeds.facts_and_fibs import entails
from jattn.testbeds.paired_claims import pair_metrics
from jattn.typing import Array, Float, Key

Scores = dict[str, tuple[Float[Array, 'P'], Float[Array, 'P']]]  # scorer -> scores of facts and of fibs
Found = dict[str, dict[str, float]]  # scorer -> what `pair_metrics` says


def measure(task: FactsAndFibs, pairs_of_a_log: int, pairs: int, key: Key) -> Found:
    """What the protocol says of each scorer, over at least `pairs` pairs.

    Args:
        task: what draws them.
        pairs_of_a_log: the claims about one log.
        pairs: how many in all.
        key: of the logs and of the coins.
    """
    scores = _scores(task, pairs_of_a_log, -(-pairs // pairs_of_a_log), key)
    return {name: jax.tree.map(float, jax.jit(pair_metrics)(*both)) for name, both in scores.items()}


def _scores(task: FactsAndFibs, pairs_of_a_log: int, logs: int, key: Key) -> Scores:
    log_key, coin_key, table_key = jax.random.split(key, 3)
    contexts, facts, fibs, _ = jax.jit(task.pairs, static_argnums=(1, 2))(log_key, logs, pairs_of_a_log)
    events = contexts.reshape(logs, 1, task.events, EVENT)
    checks = [jnp.where(entails(task.world, events, claims[..., :CLAIM]), 1.0, -1.0) for claims in (facts, fibs)]
    coins = jax.random.rademacher(coin_key, (2, facts.shape[0] * facts.shape[1]), jnp.float32)
    table = jax.random.normal(table_key, (facts.shape[-1], task.input_size))
    alone = [jnp.sum(table[jnp.arange(facts.shape[-1]), claims], axis=-1) for claims in (facts, fibs)]
    both = {
        'the exact checker': checks,
        'the checker turned round': [-score for score in checks],
        'a coin for each claim': list(coins),
        'always TRUE': [jnp.ones(facts.shape[:2])] * 2,
        'a score of the claim alone': alone,
    }
    return {name: (fact.ravel(), fib.ravel()) for name, (fact, fib) in both.items()}


def lines(found: Found) -> list[Line]:
    """Exact where nothing is random; coins within 4.5 standard errors."""
    pairs = int(found['a coin for each claim']['pairs'])
    error = 4.5 / pairs**0.5
    expected = [
        ('the exact checker', 'pairwise', (1.0, 0.0)),
        ('the checker turned round', 'pairwise', (0.0, 0.0)),
        ('always TRUE', 'pairwise', (0.0, 0.0)),
        ('always TRUE', 'accuracy', (0.5, 0.0)),
        ('a coin for each claim', 'pairwise', (0.25, error * (3 / 16) ** 0.5)),
        ('a coin for each claim', 'forced_choice', (0.5, error * (1 / 8) ** 0.5)),
        ('a score of the claim alone', 'forced_choice', (0.5, error / 2)),
    ]
    return [
        Line.number(
            PAPER, f'{name.replace("_", " ")} of {who}', found[who][name], near=near, note=f'{pairs} pairs, six kinds'
        )
        for who, name, near in expected
    ]
