"""Paper 56, "LongHeads": a trained decoder reads far, each head a few chunks, at distances that it has seen.

    python -m experiments.claims --only=56 --data_dir=DIR --out=runs/claims          with the novels of DIR/books
    python -m experiments.claims --only=56                                           without the lines on text
    python -m experiments.claims --only=56 --size=tiny                               a minute: that everything runs

Claims: a softmax decoder trained at T = 256 finds a needle in 4 to 16 times as many tokens when its heads choose their
chunks, without training, where reading all keys fails, a window does not see it and chunks chosen at random hold it
seldom; on text the perplexity stays as a window's; the heads together cover more than one alone; a sequence costs time
linear in its length.

Choices: two layers without feed-forward for the needle, with it for text, where the sheet has one model of text with
needles in it. Chunks of 16 tokens, 8 of them, half of the length of training. The window is as long as what is read.
"""

import concurrent.futures
import dataclasses

import numpy as np

from experiments.papers import reading_cost
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.retrieval import needles, selection, text
from experiments.papers.retrieval.settings import SIZES, Size
from jattn.mixers import SoftmaxConfig
from jattn.nn.longheads_cache import LongHeadsCache

PAPER = '56'
PLAIN, WINDOW, HEADS, RANDOM = 'all keys', 'a window', 'LongHeads', 'random chunks'


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its pictures."""
    size = SIZES[context.size]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        words = pool.submit(perplexities, context, size)
        curves, read = needle(context, size)
        lines = needle_lines(curves, size) + coverage_lines(read) + text_lines(words.result(), size)
    found = reading_cost.table(context, size.cost_lengths, size.repeats, {HEADS: policies(size)[HEADS]})
    return lines + reading_cost.linear_lines(PAPER, HEADS, found)


def policies(size: Size) -> dict[str, SoftmaxConfig]:
    """What is read, of the same parameters."""
    plain = SoftmaxConfig(heads=size.heads)
    cache = LongHeadsCache(chunk=size.chunk, chunks=size.chunks)
    return {
        PLAIN: plain,
        WINDOW: dataclasses.replace(plain, window=size.chunk * size.chunks),
        HEADS: dataclasses.replace(plain, cache=cache),
        RANDOM: dataclasses.replace(plain, cache=dataclasses.replace(cache, selection='random')),
    }


def needle(context: ClaimContext, size: Size) -> tuple[needles.Curves, selection.Chosen]:
    """policy -> length -> accuracy; and what LongHeads reads of rows of the second length."""
    trained = needles.softmax(context, size)
    curves = {name: needles.curve(trained, mixer, size, context) for name, mixer in policies(size).items()}
    task = needles.at_length(size, size.lengths[1])
    read = {name: selection.chosen(trained, policies(size)[name], task, 8, context) for name in (HEADS, RANDOM)}
    titles = {f'{name}, T = {size.lengths[1]}': shown for name, shown in read.items()}
    selection.draw(titles, context.out / 'longheads.png', 'chunk')
    return curves, read[HEADS]


def needle_lines(curves: needles.Curves, size: Size) -> list[Line]:
    """The needle is kept at every length, and nothing else keeps it."""
    first, *longer = size.lengths
    note = needles.as_text(curves)
    at = lambda name, tokens: curves[name][tokens]
    where = f'needle, trained at T = {first}'
    out = [Line.number(PAPER, f'{where}: accuracy of {PLAIN} at {first}', at(PLAIN, first), above=0.9, note=note)]
    for tokens in longer:
        out.append(Line.number(PAPER, f'{where}: accuracy of {HEADS} at {tokens}', at(HEADS, tokens), above=0.6))
        out += [
            Line.number(
                PAPER,
                f'{where}: accuracy of {HEADS} minus {other} at {tokens}',
                at(HEADS, tokens) - at(other, tokens),
                above=0.1,
            )
            for other in (PLAIN, WINDOW, RANDOM)
        ]
    return out


def coverage_lines(read: selection.Chosen) -> list[Line]:
    """What the last query's heads read, together and each alone."""
    ends = read.at_end()
    alone, together = ends.mean(), np.any(ends, axis=(0, 2)).mean()
    claim = f'share of the chunks that the last query reads at T = {ends.shape[-1] * read.size}, all heads over one'
    return [Line.number(PAPER, claim, together / alone, above=1.5, note=f'together {together:.3f}, alone {alone:.3f}')]


def perplexities(context: ClaimContext, size: Size) -> dict[str, dict[int, float]] | None:
    """policy -> length -> perplexity of a byte; None without text."""
    if not size.text_lengths or context.lacks('books'):
        return None
    setting = text.setting(context, size, SoftmaxConfig(heads=size.heads))
    variables = text.fit(context, setting, 'softmax')
    return text.perplexities(setting, variables, policies(size), size.text_lengths)


def text_lines(found: dict[str, dict[int, float]] | None, size: Size) -> list[Line]:
    """Stable, and near to a window's."""
    if not size.text_lengths:
        return []
    first, last = size.text_lengths[0], size.text_lengths[-1]
    where = f'novels, T = {size.text_tokens}, {size.text_steps} steps: perplexity'
    claims = {
        f'{where} of {WINDOW} at {last} over {first}': (WINDOW, last, WINDOW, first, 1.02),
        f'{where} of {HEADS} at {last} over {first}': (HEADS, last, HEADS, first, 1.02),
        f'{where} of {HEADS} over {WINDOW} at {last}': (HEADS, last, WINDOW, last, 1.05),
    }
    if found is None:
        return [Line.missing(PAPER, claim, f'< {bound:g}', needs('books')) for claim, (*_, bound) in claims.items()]
    note = needles.as_text(found)
    return [
        Line.number(PAPER, claim, found[a][at] / found[b][there], below=bound, note=note)
        for claim, (a, at, b, there, bound) in claims.items()
    ]
