"""Paper 33, "Titans: Learning to Memorize at Test Time": a memory that learns while it reads, alone or with attention.

    python -m experiments.claims --only=33 --out=runs/claims                        ten minutes on two cores
    python -m experiments.claims --only=33 --data_dir=DIR                           forecasts on DIR/ett/ETTh1.csv.gz
    python -m experiments.claims --only=33 --size=tiny                              one minute: that everything runs

Claims: a memory that writes its errors holds more than one that adds, more passes and momentum help; on recall with
overwritten keys Titans' deep memory is no worse than Gated DeltaNet and far better than linear attention, and each of
its parts is worth something (decay most, then momentum, convolution, depth, persistent tokens); what is learned at
T = 256 is kept at 4096, where windowed attention alone falls to chance; on forecasts it is no worse than softmax.

Choices: decoders of two layers of width 64 without feed-forward, two heads; the memory's hidden layers twice as wide
as its keys. Recall has chunks of 4, because its contexts have 10 tokens: with one chunk a context, all gradients would
be taken at the same weights. Linear attention is as published, without a convolution.
"""

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.titans import capacity, forecast, length, pictures, recall
from experiments.papers.titans.settings import SIZES


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its picture."""
    size = SIZES[context.size]
    held = capacity.errors(size.draws, context.key(0))
    lines = capacity.lines(held)
    context.say('associative recall')
    found = recall.measure(context, size)
    lines += recall.lines(found, size)
    curves = {}
    if size.lengths:
        context.say('longer rows')
        curves = length.measure(context, size)
        lines += length.lines(curves, size)
    if size.horizons:
        context.say('forecasts')
        lines += forecast.lines(forecast.measure(context, size), context)
    pictures.draw(held, found, curves, size, context.out / 'titans.png')
    return lines
