"""Paper 44, "Re-Reading Improves Reasoning in Large Language Models" (RE2): what a second read of a question is worth.

    python -m experiments.claims --only=44 --out=runs/claims                        eight minutes of two slow cores
    python -m experiments.claims --only=44 --size=tiny                              that everything runs
    python -m experiments.claims --only=44 --size=paper                             more pairs, larger states, a GPU

Claims: a decoder whose state is too small for the pairs of a context recalls more when it reads context and question
twice, because on the second read it knows what will be asked; the gain shrinks as the state grows, attention has none,
a filler of equal length gives none; tokens of the second copy attend to those of the first that come later in the text.

Choices: no language model is asked; decoders of two layers are trained from scratch, a decoder for every number of
reads, since small models trained on one read have no use for two. The question is one key of the pairs, so that little
need be kept once it is known. Memories are DeltaNets with short convolutions and one head. The training starts with
few pairs, which every state has room for. What is not rerun is the two-hop chase of a softmax decoder: see PAPERS.md.
"""

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.re_reading import pictures, recall
from experiments.papers.re_reading.settings import SIZES


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, the table of the reads and the picture."""
    size = SIZES[context.size]
    runs = recall.measure(context, size)
    for row in recall.table(runs, size):
        context.say(row)
    pictures.draw(runs, size, context.out / 're_reading.png')
    return recall.lines(runs, size)
