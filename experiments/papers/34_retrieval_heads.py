"""Paper 34, "Retrieval Head Mechanistically Explains Long-Context Factuality", shown on SmolLM2-135M.

    make models
    python -m experiments.claims --only=34 --data_dir=DIR --out=runs/claims       minutes; a novel of DIR/books
    python -m experiments.claims --only=34 --size=tiny                            seconds: a random model, that it runs

Claims: few heads copy facts from the context; they are the same wherever the fact stands; without them the model no
longer finds what it was told, without as many others of the same layers it does.

Choices: sentences in a novel, 256 tokens, teacher-forced. As in the published code heads are silenced by uniform
attention, and only where the answer is written, in the rows that the whole model answers rightly: the prompt is read
once, its state kept, and every set of heads costs the answer's tokens alone. The sheet's checks of the score are
`tests/understanding/retrieval_test.py`; it has a model trained from scratch too, which takes ten minutes to train on a
mixture of tasks and is not rerun.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.papers import real_model
from experiments.papers.contract import ClaimContext, Line
from experiments.papers.real_model import Real
from experiments.papers.retrieval_heads import controls, needles
from jattn.typing import Array, Bool, PyTree
from jattn.understanding import ablate, capture
from jattn.understanding.heads import HeadScores, score_heads
from jattn.understanding.retrieval import RetrievalScores

PAPER = '34'
Head = tuple[int, int]
STRONGEST = {(18, 6), (17, 3), (18, 7), (17, 4)}  # of SmolLM2, found before this was written


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        rows, tokens: that are scored.
        masked: how many heads are silenced at once.
        draws: sets of other heads for each.
        outside: how many of the best heads random ones are not drawn from.
    """

    rows: int
    tokens: int
    masked: tuple[int, ...]
    draws: int
    outside: int


SIZES = {
    'tiny': Size(rows=4, tokens=200, masked=(1, 2), draws=1, outside=4),
    'small': Size(rows=24, tokens=256, masked=(3, 5, 10), draws=3, outside=100),
    'paper': Size(rows=120, tokens=1024, masked=(3, 5, 10, 20, 30), draws=8, outside=100),
}


def run(context: ClaimContext) -> list[Line]:
    """Every line, and the picture."""
    lacking = context.lacking('books')
    real = None if lacking else real_model.open_real(context)
    if real is None:
        return [Line.missing(PAPER, 'retrieval heads of SmolLM2', 'as the sheet says', lacking or real_model.NEEDS)]
    size = SIZES[context.size]
    rows, scores = needles.find_heads(context, real, size.rows, size.tokens)
    context.say(f'{size.rows} needles in {size.tokens} tokens, answers of {rows.answer}')
    words = jnp.arange(min(100, real.vocabulary // 4), real.vocabulary)
    copied = score_heads(real.model, real.params, context.key(1), words, batch=2, half=min(32, len(words)))
    masks = silence(context, real, rows, scores, size)
    _draw(scores, masks, context.out / 'retrieval_heads.png')
    return score_lines(scores, copied, context) + mask_lines(masks, size)


def silence(
    context: ClaimContext, real: Real, rows: needles.Needles, scores: RetrievalScores, size: Size
) -> dict[tuple[str, int], float]:
    """(which heads, how many) -> share of the whole model's right answers that stay right to the last token."""
    generator, ranked = np.random.default_rng(context.seed), scores.ranked()
    answers = Answers(real, rows)
    found = {}
    for count in size.masked:
        top = ranked[:count]
        sets = {'retrieval': [top], 'random': [], 'same layers': []}
        for _ in range(size.draws):
            sets['random'].append(controls.random_heads(generator, ranked[size.outside :], count))
            sets['same layers'].append(controls.of_the_same_layers(generator, top, scores))
        for name, chosen in sets.items():
            found[name, count] = float(np.mean([answers.right(heads, 'uniform') for heads in chosen]))
            context.say(f'{name}, {count} heads looking everywhere alike: {found[name, count]:.2f} of the answers')
        found['zeroed', count] = answers.right(top, 'zero')
    return found


class Answers:
    """The answers behind the prompts, which are read once."""

    def __init__(self, real: Real, rows: needles.Needles) -> None:
        self._real, cut = real, rows.tokens.shape[1] - rows.answer - 1
        self._written, self._right = rows.tokens[:, cut:-1], rows.tokens[:, cut + 1 :]
        state = real.model.cfg.init_state(len(rows.tokens), rows.tokens.shape[1])
        self._state = _read(real, rows.tokens[:, :cut], state)
        self._silent = {
            kind: ablate.prepare(real.model, real.params, self._written, kind=kind, state=self._state)
            for kind in ('uniform', 'zero')
        }
        self._kept = self._is_right([], 'zero')

    def right(self, heads: Sequence[Head], kind: str) -> float:
        """The share of the kept rows whose answer is right without these heads; 0 where no row is kept."""
        return float(jnp.sum(self._is_right(heads, kind) & self._kept) / jnp.maximum(jnp.sum(self._kept), 1))

    def _is_right(self, heads: Sequence[Head], kind: str) -> Bool[Array, 'B']:
        silent = self._silent[kind]
        edits = silent.edits(silent.table(heads))
        run = capture.run(self._real.model, self._real.params, self._written, edits=edits, state=self._state)
        return jnp.all(jnp.argmax(run.outputs, axis=-1) == self._right, axis=1)


def _read(real: Real, tokens: Array, state: PyTree) -> PyTree:
    """The state behind prompts."""
    apply = jax.jit(lambda params, tokens, state: real.model.apply({'params': params}, tokens, state=state)[1])
    return apply(real.params, tokens, state)


def score_lines(scores: RetrievalScores, copied: HeadScores, context: ClaimContext) -> list[Line]:
    """Sparse, and the heads that copy."""
    values, ranked = np.asarray(scores.scores), scores.ranked()
    recall = float(jnp.mean(scores.recall == 1))
    best = ', '.join(f'({layer},{head})' for layer, head in ranked[:8])
    pairs = np.array([[values[scores.layers.index(n), h], copied.induction[copied.layers.index(n), h]]
                      for n in copied.layers for h in range(values.shape[1])])  # fmt: skip
    same = float(np.nan_to_num(np.corrcoef(pairs.T)[0, 1]))
    told = 'SmolLM2' if context.size != 'tiny' else 'a random model'
    number = lambda line, value, **rule: Line.number(PAPER, f'{told}: {line}', value, **rule)
    return [
        number('answers found to the last token', recall, above=0.9),
        number('share of heads with a score above .1', float(np.mean(values > 0.1)), below=0.05, note='the paper'),
        number('share of heads with a score above .5', float(np.mean(values > 0.5)), below=0.05),
        number('share of heads with a score of 0', float(np.mean(values == 0)), above=0.5),
        Line.count(PAPER, f'{told}: of the four strongest heads', len(STRONGEST & set(ranked[:4])), of=4, note=best),
        number('correlation of retrieval and induction scores over heads', same, above=0.8),
    ]


def mask_lines(masks: dict[tuple[str, int], float], size: Size) -> list[Line]:
    """Causal: without them nothing is found, without others everything."""
    lines = []
    for count in size.masked:
        where = f'right answers kept with {count} heads looking everywhere alike'
        lines += [
            Line.number(PAPER, f'{where}: the strongest', masks['retrieval', count], below=0.5 if count < 5 else 0.3),
            Line.number(
                PAPER, f'{where}: of the same layers, with scores below .1', masks['same layers', count], above=0.95
            ),
            Line.number(
                PAPER, f'{where}: random ones outside the best {size.outside}', masks['random', count], above=0.95
            ),
            Line.number(
                PAPER, f'right answers kept with the {count} strongest heads zeroed', masks['zeroed', count], below=0.3
            ),
        ]
    return lines


def _draw(scores: RetrievalScores, masks: dict[tuple[str, int], float], path: object) -> None:
    """The scores of all heads, and what is found without some."""
    figure = Figure(figsize=(11, 5.2), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    image = left.imshow(np.asarray(scores.scores), origin='lower', aspect='auto', cmap='viridis', vmin=0, vmax=1)
    left.set(xlabel='head', ylabel='layer', title='retrieval score')
    figure.colorbar(image, ax=left)
    counts = sorted({count for name, count in masks if name == 'retrieval'})
    for name, style in (('retrieval', 'o-'), ('zeroed', 's--'), ('same layers', '^-'), ('random', 'v-')):
        right.plot(counts, [masks[name, count] for count in counts], style, label=name)
    right.set(xlabel='heads silenced while the answer is written', ylabel='answers that stay right', ylim=(-0.03, 1.03))
    right.set_xticks(counts)
    right.legend()
    figure.savefig(path, dpi=110)
