"""Paper 37, "Landmark Attention": the last token of a block is the gate to it; what is read far away is retrieved.

    python -m experiments.claims --only=37 --data_dir=DIR --out=runs/claims          with the novels of DIR/books
    python -m experiments.claims --only=37                                           without the lines on text
    python -m experiments.claims --only=37 --size=tiny                               a minute: that everything runs

Claims: a decoder tuned with landmarks at T = 256 finds a needle in 4 to 16 times as many tokens with two blocks
retrieved, where a window of equal budget does not see it and dense softmax attention degrades; text 4 times longer than
in training is predicted no worse than by plain attention at its own length, and better with four blocks than with two;
a token scores one key a block and reads two blocks, about `block` times fewer keys than all: a factor, no exponent.

Choices: two layers without feed-forward for the needle, with it for text. The decoder with landmarks goes on from the
softmax decoder's checkpoint (`--init_from`), as the authors tune a trained model; text is learned with landmarks from
the start. Queries retrieve each for itself (`chunk=1`), so that calls do not matter.
"""

import concurrent.futures
import dataclasses

from experiments.papers import reading_cost
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.retrieval import needles, selection, text
from experiments.papers.retrieval.settings import SIZES, Size
from jattn.mixers import SoftmaxConfig
from jattn.mixers.landmark import LandmarkConfig
from jattn.nn.landmark_cache import LandmarkCache

PAPER = '37'
TRAINED = 'softmax, all keys'
RETRIEVES, DENSE, WINDOW = 'landmarks, retrieval', 'landmarks, all blocks', 'softmax, window'


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its pictures."""
    size = SIZES[context.size]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        words = pool.submit(perplexities, context, size)
        curves, share = needle(context, size)
        lines = needle_lines(curves, share, size) + text_lines(words.result(), size)
    found = reading_cost.table(context, size.cost_lengths, size.repeats, {'landmarks': _retrieving(size)})
    return lines + reading_cost.cheaper_lines(PAPER, 'landmarks', found)


def needle(context: ClaimContext, size: Size) -> tuple[needles.Curves, float]:
    """name -> length -> accuracy; and the share of heads and layers that retrieve the needle's block."""
    softmax = needles.softmax(context, size)
    landmark = needles.landmark(context, size)
    plain, retrieving = softmax.config.model.mixer[0], _retrieving(size)
    tried = {
        TRAINED: (softmax, plain),
        WINDOW: (softmax, dataclasses.replace(plain, window=(size.retrieved + 1) * size.block)),
        DENSE: (landmark, landmark.config.model.mixer[0]),
        RETRIEVES: (landmark, retrieving),
    }
    curves = {name: needles.curve(*of, size, context) for name, of in tried.items()}
    task = needles.at_length(size, size.lengths[1], landmarks=True)
    read = selection.chosen(landmark, retrieving, task, 8, context)
    title = f'{size.retrieved} blocks retrieved, T = {size.lengths[1]}'
    selection.draw({title: read}, context.out / 'landmark.png', 'block')
    hits = [read.at_end()[:, row, :, block] for row, block in enumerate(read.needle)]
    return curves, float(sum(hit.mean() for hit in hits) / len(hits))


def needle_lines(curves: needles.Curves, found: float, size: Size) -> list[Line]:
    """Retrieval keeps what was learned at one length; a window and dense attention do not."""
    first, *longer = size.lengths
    note = needles.as_text(curves)
    at = lambda name, tokens: curves[name][tokens]
    where = f'needle, trained at T = {first}'
    out = [Line.number(PAPER, f'{where}: accuracy of {TRAINED} at {first}', at(TRAINED, first), above=0.9, note=note)]
    for tokens in longer:
        out += [
            Line.number(PAPER, f'{where}: accuracy of {RETRIEVES} at {tokens}', at(RETRIEVES, tokens), above=0.8),
            Line.number(PAPER, f'{where}: accuracy of {WINDOW} at {tokens}', at(WINDOW, tokens), below=0.3),
            Line.number(
                PAPER,
                f'{where}: accuracy of {RETRIEVES} minus {TRAINED} at {tokens}',
                at(RETRIEVES, tokens) - at(TRAINED, tokens),
                above=0.0,
            ),
        ]
    lost = at(TRAINED, first) - at(TRAINED, longer[-1])
    claim = f'{where}: accuracy of {TRAINED} lost from {first} to {longer[-1]}'
    out.append(Line.number(PAPER, claim, lost, above=0.2))
    share = f'needle at {longer[0]}: share of heads and layers whose {size.retrieved} blocks contain it'
    blocks = longer[0] / (size.block - 1)
    return [*out, Line.number(PAPER, share, found, above=size.retrieved / blocks, note='the bound is a random choice')]


def perplexities(context: ClaimContext, size: Size) -> dict[str, dict[int, float]] | None:
    """name -> length -> perplexity of a byte; None without text."""
    if not size.text_lengths or context.lacks('books'):
        return None
    first, fourfold = size.text_lengths[0], 4 * size.text_lengths[0]
    plain = text.setting(context, size, SoftmaxConfig(heads=size.heads))
    marked = text.setting(context, size, LandmarkConfig(heads=size.heads, block=size.block), size.block)
    own, landmark = text.fit(context, plain, 'softmax'), text.fit(context, marked, 'landmarks')
    policies = {f'k={k}': _retrieving(dataclasses.replace(size, retrieved=k)) for k in (2, 4)}
    return text.perplexities(plain, own, {'softmax': plain.model.mixer[0]}, (first, fourfold)) | text.perplexities(
        marked, landmark, {'all': marked.model.mixer[0], **policies}, (first, fourfold)
    )


def text_lines(found: dict[str, dict[int, float]] | None, size: Size) -> list[Line]:
    """At four times the length of training, against plain attention at its own."""
    if not size.text_lengths:
        return []
    pairs = ('k=2 at 4 T minus softmax at T', 'k=4 at 4 T minus softmax at T', 'k=4 minus k=2, both at 4 T')
    claims = [f'novels, T = {size.text_tokens}, {size.text_steps} steps: perplexity of {pair}' for pair in pairs]
    if found is None:
        return [Line.missing(PAPER, claim, '< 0', needs('books')) for claim in claims]
    first, fourfold = found['softmax']
    note = needles.as_text(found)
    two, four, plain = found['k=2'][fourfold], found['k=4'][fourfold], found['softmax'][first]
    gaps = (two - plain, four - plain, four - two)
    return [Line.number(PAPER, claim, gap, below=0.0, note=note) for claim, gap in zip(claims, gaps)]


def _retrieving(size: Size) -> LandmarkConfig:
    cache = LandmarkCache(block=size.block, retrieved=size.retrieved)
    return LandmarkConfig(heads=size.heads, block=size.block, cache=cache)
