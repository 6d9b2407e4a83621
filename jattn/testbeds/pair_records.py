"""Pairs of claims in files and answers in words: what is kept of every pair that `paired_claims` measures.

A line of a file is a pair in JSON: its context, its number there, its kinds, which part of the context it needs, and
the scores of the fact and of the fib. Any program can write such a file, for any scorer; `metrics_of` measures it.
Other than in the published code of MF^2 (2025) a tag in a model's answer may hold line breaks.
"""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jattn.testbeds.paired_claims import pair_metrics
from jattn.typing import Array, Float, Int32

WORD = re.compile(r'\b(true|false)\b', re.IGNORECASE)
TAG = re.compile(r'<answer>(.*?)</answer>', re.IGNORECASE | re.DOTALL)
WHICH = ('tagged', 'first', 'last', 'tagged_or_first')
LARGEST = sys.float_info.max  # JSON has no infinity; this one compares the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """What is kept of one pair, a line of a file.

    Attributes:
        context: number or name of the context.
        pair: the pair's number in its context.
        kind: its type; several are separated by commas, and the pair counts in each.
        granularity: how far apart the events stand that it needs.
        first: the first event needed; None: not known.
        last: the last one.
        s_fact: the fact's score; None: no answer.
        s_fib: the fib's.
    """

    context: str | int
    pair: int
    kind: str = ''
    granularity: str = ''
    first: int | None = None
    last: int | None = None
    s_fact: float | None
    s_fib: float | None


def tabulate(
    s_fact: Float[Array, 'N P'],
    s_fib: Float[Array, 'N P'],
    meta: Mapping[str, Int32[Array, 'N P']],
    names: Mapping[str, Sequence[str]],
) -> list[Pair]:
    """Records of scored pairs of generated contexts; numbers of `meta` become words where `names` has them.

    >>> meta = {'kind': np.array([[1]]), 'first': np.array([[3]])}
    >>> tabulate(np.array([[2.0]]), np.array([[np.nan]]), meta, {'kind': ('count', 'order')})
    [Pair(context=0, pair=0, kind='order', granularity='', first=3, last=None, s_fact=2.0, s_fib=None)]
    """
    columns = {'s_fact': s_fact, 's_fib': s_fib, **meta}
    columns = {name: np.asarray(values).tolist() for name, values in columns.items()}
    pairs = []
    for context, pair in np.ndindex(*np.shape(s_fact)):
        row = {name: values[context][pair] for name, values in columns.items()}
        row |= {name: words[row[name]] for name, words in names.items()}
        row |= {name: None if math.isnan(row[name]) else row[name] for name in ('s_fact', 's_fib')}
        pairs.append(Pair(context=context, pair=pair, **row))
    return pairs


def join_pairs(facts: Mapping[Any, Sequence], fibs: Mapping[Any, Sequence]) -> list[tuple]:
    """(context, number, fact, fib) of every pair of claims listed by context.

    Raises:
        ValueError: a context has unequal numbers of facts and fibs; names it.

    >>> join_pairs({'film': ['it rained', 'he left']}, {'film': ['it snowed', 'she left']})
    [('film', 0, 'it rained', 'it snowed'), ('film', 1, 'he left', 'she left')]
    >>> join_pairs({'film': ['it rained']}, {'film': []})
    Traceback (most recent call last):
    ...
    ValueError: join_pairs: context 'film' has 1 facts and 0 fibs, but every fact needs its fib
    """
    pairs = []
    for context in dict.fromkeys([*facts, *fibs]):
        true, false = facts.get(context, ()), fibs.get(context, ())
        if len(true) != len(false):
            raise ValueError(
                f'join_pairs: context {context!r} has {len(true)} facts and {len(false)} fibs, '
                'but every fact needs its fib'
            )
        pairs += [(context, number, *both) for number, both in enumerate(zip(true, false))]
    return pairs


def write_lines(pairs: Iterable[Pair]) -> list[str]:
    """One JSON line a pair, for `file.writelines`; None and NaN are null, an infinite score is the largest number.

    >>> print(write_lines([Pair(context='film', pair=0, s_fact=float('nan'), s_fib=-1.5)])[0], end='')
    {"context": "film", "pair": 0, "kind": "", "granularity": "",
     "first": null, "last": null, "s_fact": null, "s_fib": -1.5}
    """
    lines = []
    for pair in pairs:
        row = dataclasses.asdict(pair)
        for name in ('s_fact', 's_fib'):
            if row[name] is not None:
                row[name] = None if math.isnan(row[name]) else min(max(float(row[name]), -LARGEST), LARGEST)
        lines.append(json.dumps(row, allow_nan=False) + '\n')
    return lines


def read_lines(lines: Iterable[str]) -> list[Pair]:
    """The pairs of an open file, or of lines; empty ones are passed over.

    >>> read_lines(write_lines([Pair(context=3, pair=0, s_fact=None, s_fib=-1.5)]))[0].s_fib
    -1.5
    """
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                pairs.append(Pair(**json.loads(line)))
            except (TypeError, json.JSONDecodeError) as error:
                raise ValueError(f'read_lines: line {number} is no pair: {error}') from error
    return pairs


def metrics_of(pairs: Sequence[Pair], threshold: float = 0.0) -> dict[str, Any]:
    """`pair_metrics` of records as floats, grouped by kind, granularity and context: `groups['kind/order']` and so on.

    >>> pairs = [Pair(context=0, pair=i, kind='order', s_fact=2.0, s_fib=s) for i, s in enumerate((-1.0, None))]
    >>> metrics = metrics_of(pairs)
    >>> metrics['pairwise'], metrics['groups']['kind/order']['none_rate'], sorted(metrics['groups'])
    (0.5, 0.25, ['context/0', 'kind/order'])
    """
    labels = [
        {f'{name}/{word.strip()}' for name in ('kind', 'granularity', 'context') for word in _words(pair, name)}
        for pair in pairs
    ]
    groups = {name: np.array([name in own for own in labels]) for name in sorted(set().union(*labels))}
    scores = (as_scores([getattr(pair, name) for pair in pairs]) for name in ('s_fact', 's_fib'))
    return jax.tree.map(float, jax.jit(pair_metrics)(*scores, threshold, groups=groups))


def _words(pair: Pair, name: str) -> list[str]:
    value = str(getattr(pair, name))
    return [word for word in (value.split(',') if name == 'kind' else [value]) if word.strip()]


def as_scores(answers: Sequence[bool | float | None]) -> np.ndarray:
    """Answers as scores: TRUE 1, FALSE -1, None NaN; numbers stay.

    >>> as_scores([True, False, None, 0.25]).tolist()
    [1.0, -1.0, nan, 0.25]
    """
    words = {True: 1.0, False: -1.0}
    scores = [words[bool(a)] if isinstance(a, bool | np.bool_) else math.nan if a is None else a for a in answers]
    with np.errstate(over='ignore'):  # what is too large for float32 is infinite, and compares the same
        return np.array(scores, np.float32)


def answer_of(text: str, which: str = 'tagged') -> bool | None:
    """The answer in a model's text, in any case; None where there is none.

    Args:
        text: what the model said.
        which: 'tagged': the first <answer>...</answer>, if it holds TRUE or FALSE and nothing else; 'first' or 'last':
            of all words TRUE and FALSE (the last where an explanation comes first); 'tagged_or_first'.

    >>> text = 'It is true that he left, but <answer> FALSE </answer>'
    >>> answer_of(text), answer_of(text, 'first'), answer_of(text, 'last'), answer_of('Perhaps.', 'last')
    (False, True, False, None)
    """
    if which not in WHICH:
        raise ValueError(f'answer_of: which={which!r} must be one of {", ".join(WHICH)}')
    tag = TAG.search(text) if which.startswith('tagged') else None
    word = tag.group(1).strip().lower() if tag else ''
    if word not in ('true', 'false') and which != 'tagged':
        words = WORD.findall(text) or ['']
        word = words[-1 if which == 'last' else 0].lower()
    return {'true': True, 'false': False}.get(word)
