"""Paper 55, "Routing Transformers": tokens attend within clusters of their content, beside local heads.

    python -m experiments.claims --only=55 --data_dir=DIR --out=runs/claims          4 minutes, with DIR/books
    python -m experiments.claims --only=55                                           without the lines on text
    python -m experiments.claims --only=55 --size=tiny                               a minute: that everything runs

Claims: with sqrt(T) clusters of sqrt(T) tokens, time and memory grow as T^1.5 where those of softmax attention grow as
T^2; routing heads find pairs far outside of the local window, nearly as full attention does, and better than with
centroids that do not move; on text they lower the loss, measured with the causal selection by prefixes; the published
selection looks better in training than it is in generation, by a leak.

Choices: decoders of two layers of width 64, four heads, two of them local where two route; those for recall have no
feed-forward. A token that routes does not see itself, unless nobody else is there. The centroids decay by .99.
"""

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.routing import costs, pictures, recall, text
from experiments.papers.routing.settings import ROUTING, SIZES


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its pictures."""
    size = SIZES[context.size]
    context.say('costs')
    lines = costs.lines(costs.table(context, size), size)
    context.say('recall')
    lines += recall.lines(recall.measure(context, size), size)
    if context.lacks('books'):
        return lines + text.missing()
    context.say('novels')
    found = text.measure(context, size)
    pictures.draw(text.settings(context, size)[ROUTING], found[ROUTING]['variables'], context.out / 'routing.png')
    return lines + text.lines(found, size)
