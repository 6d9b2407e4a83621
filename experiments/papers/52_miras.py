"""Paper 52, "It's All Connected" (Miras): memories by four choices, losses that bend, retentions other than decay.

    python -m experiments.claims --only=52 --out=runs/claims                        nine minutes on two cores
    python -m experiments.claims --only=52 --size=tiny                              one minute: that everything runs
    python -m experiments.claims --only=52 --size=paper --data_dir=DIR              language models on DIR/books, a GPU

Claims: every row of the paper's Table 1 is one class with other choices; losses that bend (Huber, sign) hold clean
pairs where outliers spoil l2; in networks they cost nothing on clean values and gain on corrupted ones; Moneta, Yaad
and Memora keep what they learned on longer rows better than DeltaNet and linear attention; p = 3 is the best of
Moneta's losses and p = 4 the worst, q = 4 better than q = 2.

Choices: decoders of two layers of width 64 without feed-forward, two heads; the networks' hidden layers twice as wide
as the keys (`miras/settings.py` says what else). The recall decoders are trained on corrupted rows and tried on these
and on clean ones. The sweep over p and q is on clean rows, with one seed.
"""

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.miras import books, length, pictures, recall, robust, table
from experiments.papers.miras.settings import SIZES


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its picture."""
    size = SIZES[context.size]
    held = robust.errors(size.draws, context.key(0))
    lines = robust.lines(held)
    context.say('one class, every row of Table 1')
    lines += table.lines(context.seed, size.rows)
    context.say('recall with corrupted values')
    found = recall.measure(context, size)
    lines += recall.lines(found, size)
    curves = {}
    if size.lengths:
        context.say('longer rows')
        curves = length.measure(context, size)
        lines += length.lines(curves, size)
    if size.sweep:
        context.say('p and q of Moneta')
        lines += recall.sweep_lines(recall.measure_sweep(context, size), size)
    if size.books and context.lacks('books'):
        lines += books.missing()
    elif size.books:
        context.say('language models on novels')
        names = [name for group in books.ORDER for name in group] + list(books.OTHERS)
        found_books = books.measure(books.experiment(context, size), names, size.seeds, context.out / 'books')
        lines += books.lines(found_books)
    pictures.draw(held, found, curves, size, context.out / 'miras.png')
    return lines
