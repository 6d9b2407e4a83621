"""Paper 40, "AttentionInfluence: Adopting Attention Head Influence for Weak-to-Strong Pretraining Data Selection".

    make models
    python -m experiments.claims --only=40 --data_dir=DIR --out=runs/claims       minutes; five sets of DIR
    python -m experiments.claims --only=40 --size=tiny                            seconds: a random model, that it runs

Claims: how much a document's loss rises, as a share of it, when the 5% of heads that retrieve look everywhere alike,
tells documents that need their own context from others; as many other heads do not. Shown on SmolLM2-135M with the
heads that paper 34's needles find, and documents of six kinds.

Choices: the order of the kinds stands in `attention_influence/documents.py`, as it was found before this was written on
other documents of these kinds. The paper ranks within one source, as the ratio also tells how hard a text is; kinds are
compared here because their order is known. What the selection is worth to a larger model (7B, a trillion tokens) is not
rerun. The sheet's exact checks of the score are `tests/understanding/influence_test.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.papers import real_model
from experiments.papers.attention_influence import documents
from experiments.papers.attention_influence.documents import KINDS
from experiments.papers.contract import ClaimContext, Line
from experiments.papers.real_model import Real
from experiments.papers.retrieval_heads import controls, needles
from jattn.typing import Array, Int32
from jattn.understanding.depth import auc
from jattn.understanding.influence import Influence, influences

PAPER = '40'
SETS = ('books', 'xquad', 'babi', 'gsm8k', 'wikitext2')
SHARE = 0.05  # of all heads, that is silenced
IN_CONTEXT, FROM_WEIGHTS = KINDS[:3], KINDS[4:]  # maths stands between
PAIRS = (
    ('recall', 'questions'),
    ('questions', 'maths'),
    ('stories', 'maths'),
    ('maths', 'encyclopaedia'),
    ('encyclopaedia', 'novels'),
)
RETRIEVAL, OTHERS = 'retrieval', ('random', 'same layers')
Found = dict[str, dict[str, Influence]]  # which heads -> kind -> scores


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        needles: rows that the heads are found on.
        documents: of a kind.
        draws: sets of other heads of each sort.
        tokens: of a needle's row and of a document.
        outside: how many of the best heads random ones are not drawn from.
    """

    needles: int
    documents: int
    draws: int
    tokens: int
    outside: int


SIZES = {
    'tiny': Size(needles=4, documents=2, draws=1, tokens=200, outside=4),
    'small': Size(needles=24, documents=4, draws=2, tokens=256, outside=100),
    'paper': Size(needles=120, documents=200, draws=8, tokens=1024, outside=100),
}


def run(context: ClaimContext) -> list[Line]:
    """Every line, and the picture."""
    lacking = context.lacking(*SETS)
    real = None if lacking else real_model.open_real(context)
    if real is None:
        return [Line.missing(PAPER, 'influence of heads of SmolLM2', 'as the sheet says', lacking or real_model.NEEDS)]
    size = SIZES[context.size]
    sets = find_heads(context, real, size)
    texts = documents.draw(real.encode, context, size.documents, size.tokens)
    found = score(real, texts, sets, 'uniform')
    found |= score(real, texts, {'zeroed': sets[RETRIEVAL]}, 'zero')
    for name, kinds in found.items():
        context.say(f'{name}: ' + _listed({kind: _mean(one.score) for kind, one in kinds.items()}))
    own = found[RETRIEVAL]
    context.say('nats a token, whole: ' + _listed({kind: _mean(one.base) for kind, one in own.items()}))
    context.say('and lost: ' + _listed({kind: _mean(one.silenced - one.base) for kind, one in own.items()}))
    worst = alone(real, texts['novels'][:1, : size.tokens // 2], [sets[name] for name in sets if name != RETRIEVAL])
    context.say('alone, on half a novel: ' + ', '.join(f'{head} {value:.3f}' for head, value in worst.items()))
    _draw(found, context.out / 'attention_influence.png')
    return order_lines(own) + control_lines(found, worst)


def find_heads(context: ClaimContext, real: Real, size: Size) -> dict[str, list[controls.Head]]:
    """The 5% that retrieve, as many random ones, as many of the same layers."""
    _, scores = needles.find_heads(context, real, size.needles, size.tokens)
    generator, ranked = np.random.default_rng(context.seed), scores.ranked()
    top = ranked[: max(1, int(SHARE * len(ranked)))]
    context.say(f'{len(top)} of {len(ranked)} heads: ' + ', '.join(f'({layer},{head})' for layer, head in top))
    sets = {RETRIEVAL: top}
    for n in range(size.draws):
        sets[f'random {n}'] = controls.random_heads(generator, ranked[size.outside :], len(top))
        sets[f'same layers {n}'] = controls.of_the_same_layers(generator, top, scores)
    return sets


def score(
    real: Real, texts: Mapping[str, Int32[Array, 'N T']], sets: Mapping[str, list[controls.Head]], kind: str
) -> Found:
    """The scores of the documents of every kind by every set of heads."""
    found: Found = {name: {} for name in sets}
    for what, rows in texts.items():
        for name, one in zip(sets, influences(real.model, real.params, rows, list(sets.values()), kind=kind)):
            found[name][what] = one
    return found


def alone(
    real: Real, document: Int32[Array, '1 T'], sets: Sequence[list[controls.Head]], count: int = 4
) -> dict[controls.Head, float]:
    """The heads of some sets that cost a document most, each silenced alone: no set is more harmless than its worst."""
    every = sorted({head for heads in sets for head in heads})
    found = influences(real.model, real.params, document, [[head] for head in every])
    values = {head: float(one.score[0]) for head, one in zip(every, found)}
    return {head: values[head] for head in sorted(values, key=lambda head: -values[head])[:count]}


def order_lines(found: dict[str, Influence]) -> list[Line]:
    """The kinds in their order, and how far apart their ends are."""
    means = {kind: _mean(one.score) for kind, one in found.items()}
    lines = [
        Line.number(
            PAPER,
            f'score by the retrieval heads: {more} minus {less}',
            means[more] - means[less],
            above=0,
            note=f'{means[more]:.3f} and {means[less]:.3f}',
        )
        for more, less in PAIRS
    ]
    ends = means['recall'] / means['novels']
    return [*lines, Line.number(PAPER, 'score by the retrieval heads: recall over novels', ends, above=2)]


def control_lines(found: Found, worst: dict[controls.Head, float]) -> list[Line]:
    """What other heads do, and the same heads with zeros."""
    lines, what = [], 'AUC of documents that need their context against encyclopaedia and novels'
    for sort, rule in ((RETRIEVAL, dict(above=0.9)), *((sort, dict(below=0.6)) for sort in OTHERS)):
        values = [_auc(kinds) for name, kinds in found.items() if name.startswith(sort)]
        note = 'the sheet; the largest of the draws ' + ', '.join(f'{value:.3f}' for value in values)
        lines.append(Line.number(PAPER, f'{what}: {sort}', max(values), **rule, note=note))
    note = 'mean over draws; alone they cost a novel: ' + ', '.join(f'{h} {value:.3f}' for h, value in worst.items())
    for sort in OTHERS:
        means = [[_mean(one.score) for one in kinds.values()] for name, kinds in found.items() if name.startswith(sort)]
        largest = float(np.max(np.mean(means, axis=0)))
        lines.append(Line.number(PAPER, f'largest mean score of a kind: {sort}', largest, below=0.1, note=note))
    higher = sum(_mean(found['zeroed'][kind].score) > _mean(found[RETRIEVAL][kind].score) for kind in KINDS)
    line = 'kinds whose score is higher with the heads zeroed than uniform'
    return [*lines, Line.count(PAPER, line, higher, of=len(KINDS), note='the sheet: zeroing inflates every score')]


def _auc(found: dict[str, Influence]) -> float:
    """Of the documents that need their context against those that do not."""
    kinds = (*IN_CONTEXT, *FROM_WEIGHTS)
    labels = [np.full(len(found[kind].score), kind in IN_CONTEXT) for kind in kinds]
    return float(auc(jnp.concatenate([found[kind].score for kind in kinds]), np.concatenate(labels)))


def _mean(values: Array) -> float:
    return float(np.mean(np.asarray(values)))


def _listed(values: Mapping[str, float]) -> str:
    return ', '.join(f'{kind} {value:.3f}' for kind, value in values.items())


def _draw(found: Found, path: object) -> None:
    """The scores by kind, and where in a recall document and a novel the loss rises."""
    figure = Figure(figsize=(12, 4.8), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    width, at = 0.8 / len(found), np.arange(len(KINDS))
    for n, (name, kinds) in enumerate(found.items()):
        means = [_mean(kinds[kind].score) for kind in KINDS]
        spread = [float(np.std(np.asarray(kinds[kind].score))) for kind in KINDS]
        left.bar(at + (n - (len(found) - 1) / 2) * width, means, width, yerr=spread, error_kw=dict(lw=0.8), label=name)
    left.set(ylabel='rise of the loss over the loss', title='documents by kind; lines: deviation over documents')
    left.set_xticks(at, KINDS, rotation=20)
    left.axhline(0, color='black', lw=0.5)
    left.legend(title='heads', ncols=3, loc='upper right')
    left.set_ylim(0, 1.25 * left.get_ylim()[1])
    for kind in ('recall', 'novels'):
        rise = np.mean(np.asarray(found[RETRIEVAL][kind].by_token), axis=0)
        right.plot(np.cumsum(rise), label=kind)
    right.set(xlabel='token', ylabel='nats lost up to there', title='without the retrieval heads')
    right.legend()
    figure.savefig(path, dpi=110)
