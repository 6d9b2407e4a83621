"""Paired claims: a fact and a fib about one context are judged one by one, and a pair counts if both are judged right.

A scorer gives every claim s = logit(TRUE) - logit(FALSE), or any other log-odds, without seeing the claim's partner.
Over P pairs, with a_i = [s_fact > threshold] and b_i = [s_fib <= threshold],

    TPR = mean a    TNR = mean b    accuracy = (TPR + TNR) / 2    pairwise = mean a b
    forced_choice = mean [s_fact > s_fib] + 1/2 mean [equal]      bias_gap = forced_choice - pairwise
    none_rate = share of Nones among the 2 P answers              best_threshold_pairwise = the highest pairwise

An answer that is None (NaN) is wrong and counted; a pair with one is lost in forced choice too. Always

    max(0, TPR + TNR - 1) <= pairwise <= min(TPR, TNR)    accuracy >= pairwise    forced_choice >= pairwise

Without the context, where a claim says nothing about its truth, forced choice is 1/2 and pairwise lies anywhere in
0 .. 1/2: always TRUE 0, a fair coin for each claim 1/4, a scorer that contradicts itself on no pair 1/2. So a pairwise
accuracy below 1/2 shows no knowledge of the context by itself: read forced choice beside it. The headline is
threshold 0; another one is tuned on other contexts (`best_threshold`).

The context is read once and its state used for all its claims (`score_contexts`): one pass over the context, in pieces
if need be (`streamed`), and 2 P short ones. For a model with a memory the state is all it knows of the context.

The protocol of MF^2 (Movie Facts and Fibs, 2025). Other than in the published code a context with unequal numbers of
facts and fibs is an error (there they are padded by index). Pairs in files, and answers in words: `pair_records`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn.typing import Array, Bool, Float, Int32, Key, PyTree


def pair_metrics(
    s_fact: Float[Array, 'P'],
    s_fib: Float[Array, 'P'],
    threshold: float = 0.0,
    valid: Bool[Array, 'P 2'] | None = None,
    groups: Mapping[str, Bool[Array, 'P']] | None = None,
) -> dict[str, Any]:
    """Every number of the protocol over all pairs, and over each group of pairs; a pure function, fit for jit.

    Args:
        s_fact: scores of the facts, NaN for None.
        s_fib: scores of the fibs.
        threshold: a claim is called TRUE above it.
        valid: which answers, of the fact and of the fib, are not None.
        groups: name -> the pairs that belong to it; a pair may belong to several, or to none.

    Returns:
        TPR, TNR, accuracy, pairwise, none_rate, forced_choice, bias_gap, best_threshold_pairwise and the number of
        `pairs`; with groups also `groups`, name -> the same. All rates of no pairs are 0.

    >>> metrics = pair_metrics(jnp.array([2.0, 1.0, 3.0, jnp.nan]), jnp.array([-1.0, 0.5, 4.0, -1.0]))
    >>> {name: float(value) for name, value in metrics.items()}     # doctest: +NORMALIZE_WHITESPACE
    {'TPR': 0.75, 'TNR': 0.5, 'accuracy': 0.625, 'pairwise': 0.25, 'none_rate': 0.125, 'forced_choice': 0.5,
     'bias_gap': 0.25, 'best_threshold_pairwise': 0.5, 'pairs': 4.0}
    """
    s_fact, s_fib = _without_none(s_fact, s_fib, valid)
    outcomes = _outcomes(s_fact, s_fib, threshold)

    def over(member: Bool[Array, 'P']) -> dict[str, Array]:
        count = jnp.sum(member, dtype=jnp.int32)
        rates = _rates(jnp.sum(jnp.where(member[:, None], outcomes, 0), axis=0, dtype=jnp.int32), count)
        won = _best(jnp.where(member, s_fact, jnp.nan), s_fib)[1]
        return {**rates, 'best_threshold_pairwise': won / jnp.maximum(count, 1), 'pairs': count}

    metrics = over(jnp.ones(s_fact.shape, bool))
    if groups:
        found = jax.vmap(over)(jnp.stack([jnp.asarray(member) for member in groups.values()]))
        metrics['groups'] = {name: {key: row[i] for key, row in found.items()} for i, name in enumerate(groups)}
    return metrics


def best_threshold(
    s_fact: Float[Array, 'P'], s_fib: Float[Array, 'P'], valid: Bool[Array, 'P 2'] | None = None
) -> tuple[Float[Array, ''], Float[Array, '']]:
    """The smallest threshold with the highest pairwise accuracy, and that accuracy; to be used on other contexts.

    A pair is won for s_fib <= threshold < s_fact, so that the best threshold is the score of some fib. It is 0 where no
    threshold wins any pair.

    >>> [float(x) for x in best_threshold(jnp.array([2.0, 5.0, 3.0]), jnp.array([-1.0, 1.5, 4.0]))]
    [1.5, 0.6666666865348816]
    """
    s_fact, s_fib = _without_none(s_fact, s_fib, valid)
    threshold, won = _best(s_fact, s_fib)
    return threshold, won / max(len(s_fact), 1)


def bootstrap(
    key: Key,
    s_fact: Float[Array, 'P'],
    s_fib: Float[Array, 'P'],
    contexts: Sequence[str | int],
    samples: int = 1000,
    level: float = 0.95,
    threshold: float = 0.0,
    valid: Bool[Array, 'P 2'] | None = None,
) -> dict[str, tuple[float, float]]:
    """Intervals of all rates from drawing contexts again, each with all its pairs: those of one context are dependent.

    Args:
        key: of the draws.
        s_fact: scores of the facts, NaN for None.
        s_fib: scores of the fibs.
        contexts: the context of each pair, numbers or names.
        samples: draws of as many contexts as there are, with replacement.
        level: the share of the draws that lie inside the interval.
        threshold: a claim is called TRUE above it.
        valid: as in `pair_metrics`.

    >>> bootstrap(jax.random.key(0), jnp.ones(4), jnp.array([-1.0, -1, 1, 1]), ['a', 'a', 'b', 'b'])['pairwise']
    (0.0, 1.0)
    """
    outcomes = np.asarray(_outcomes(*_without_none(s_fact, s_fib, valid), threshold))
    names, which = np.unique(np.asarray(contexts), return_inverse=True)
    if len(which) != len(outcomes):
        raise ValueError(f'bootstrap: contexts has {len(which)} entries, but there are {len(outcomes)} pairs')
    totals, pairs = np.zeros((len(names), outcomes.shape[1]), np.int32), np.bincount(which).astype(np.int32)
    np.add.at(totals, which, outcomes)
    drawn = jax.random.randint(key, (samples, len(names)), 0, len(names))
    rates = _rates(jnp.asarray(totals)[drawn].sum(axis=1), jnp.asarray(pairs)[drawn].sum(axis=1))
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    return {name: tuple(float(end) for end in np.quantile(values, ends)) for name, values in rates.items()}


def score_contexts(
    prefix_state: Callable[[Array], PyTree],
    score: Callable[[PyTree, Array], Float[Array, '']],
    contexts: Int32[Array, 'N T'],
    claims: Int32[Array, 'N P C'],
    at_once: int | None = None,
) -> Float[Array, 'N P']:
    """Scores of claims; each context is read once, and every claim is judged on its own copy of the state.

    Args:
        prefix_state: tokens of one context [T] -> what a model keeps of them, a cache or a recurrent state.
        score: that state and one claim [C] -> its log-odds of TRUE. Mapped over the claims.
        contexts: the contexts' tokens.
        claims: the claims of each.
        at_once: how many contexts are read side by side; None: one after another.

    >>> count = lambda state, claim: jnp.sum(state == claim[0]) - 1.5          # whether a token came at least twice
    >>> score_contexts(lambda tokens: tokens, count, jnp.array([[5, 6, 5]]), jnp.array([[[5], [6]]])).tolist()
    [[0.5, -0.5]]
    """

    def one(context: tuple[Array, Array]) -> Float[Array, 'P']:
        tokens, claims = context
        return jax.vmap(score, in_axes=(None, 0))(prefix_state(tokens), claims)

    return jax.lax.map(one, (contexts, claims), batch_size=at_once)


def score_pairs(
    prefix_state: Callable[[Array], PyTree],
    score: Callable[[PyTree, Array], Float[Array, '']],
    contexts: Int32[Array, 'N T'],
    facts: Int32[Array, 'N P C'],
    fibs: Int32[Array, 'N P C'],
    at_once: int | None = None,
) -> tuple[Float[Array, 'N P'], Float[Array, 'N P']]:
    """`score_contexts` of facts and fibs over one reading of their contexts: (s_fact, s_fib)."""
    if facts.shape != fibs.shape:
        raise ValueError(f'score_pairs: facts have shape {facts.shape}, fibs {fibs.shape}: every fact needs its fib')
    scores = score_contexts(prefix_state, score, contexts, jnp.concatenate([facts, fibs], axis=1), at_once)
    return scores[:, : facts.shape[1]], scores[:, facts.shape[1] :]


def streamed(read: Callable[[PyTree, Array], PyTree], state: PyTree, chunk: int) -> Callable[[Array], PyTree]:
    """A `prefix_state` that reads a context in pieces: memory of a piece and a state, whatever the length.

    Args:
        read: state and tokens of a piece -> the next state, of the same shapes.
        state: before the first token.
        chunk: tokens of a piece; the rest of a context is read last.

    >>> int(streamed(lambda state, tokens: state + jnp.sum(tokens), jnp.int32(0), chunk=2)(jnp.arange(5)))
    10
    """

    def prefix_state(tokens: Array) -> PyTree:
        whole = len(tokens) // chunk * chunk
        pieces = tokens[:whole].reshape(-1, chunk, *tokens.shape[1:])
        after, _ = jax.lax.scan(lambda before, piece: (read(before, piece), None), state, pieces)
        return read(after, tokens[whole:]) if whole < len(tokens) else after

    return prefix_state


def _without_none(s_fact: Array, s_fib: Array, valid: Array | None) -> tuple[Array, Array]:
    """Scores with NaN where an answer is None."""
    s_fact, s_fib = jnp.asarray(s_fact), jnp.asarray(s_fib)
    if s_fact.shape != s_fib.shape or s_fact.ndim != 1:
        raise ValueError(f's_fact has shape {s_fact.shape}, s_fib {s_fib.shape}, but both must be [P]')
    if valid is None:
        return s_fact, s_fib
    if jnp.shape(valid) != (len(s_fact), 2):
        raise ValueError(f'valid has shape {jnp.shape(valid)}, but [P, 2] with P={len(s_fact)} was expected')
    valid = jnp.asarray(valid)
    return jnp.where(valid[:, 0], s_fact, jnp.nan), jnp.where(valid[:, 1], s_fib, jnp.nan)


def _best(s_fact: Float[Array, 'P'], s_fib: Float[Array, 'P']) -> tuple[Float[Array, ''], Int32[Array, '']]:
    """The smallest threshold that wins the most pairs, and how many these are."""
    winnable = s_fact > s_fib
    opens, closes = (jnp.where(winnable, s, jnp.inf) for s in (s_fib, s_fact))
    begun, over = (jnp.searchsorted(jnp.sort(ends), opens, side='right') for ends in (opens, closes))
    won = jnp.where(winnable, begun - over, 0).astype(jnp.int32)
    most = jnp.max(won, initial=0)
    threshold = jnp.min(jnp.where(winnable & (won == most), opens, jnp.inf), initial=jnp.inf)
    return jnp.where(most > 0, threshold, 0), most


def _outcomes(s_fact: Float[Array, 'P'], s_fib: Float[Array, 'P'], threshold: float) -> Int32[Array, 'P 5']:
    """What each pair adds: fact right, fib right, both, twice the forced choice, Nones. NaN compares as wrong."""
    fact, fib = s_fact > threshold, s_fib <= threshold
    choice = 2 * (s_fact > s_fib).astype(jnp.int32) + (s_fact == s_fib)
    none = jnp.isnan(s_fact).astype(jnp.int32) + jnp.isnan(s_fib)
    return jnp.stack([fact, fib, fact & fib, choice, none], axis=-1).astype(jnp.int32)


def _rates(totals: Int32[Array, '*B 5'], pairs: Int32[Array, '*B']) -> dict[str, Float[Array, '*B']]:
    """Sums of outcomes as rates."""
    fact, fib, both, choice, none = (totals[..., i] / jnp.maximum(pairs, 1) for i in range(5))
    return {
        'TPR': fact,
        'TNR': fib,
        'accuracy': (fact + fib) / 2,
        'pairwise': both,
        'none_rate': none / 2,
        'forced_choice': choice / 2,
        'bias_gap': choice / 2 - both,
    }
