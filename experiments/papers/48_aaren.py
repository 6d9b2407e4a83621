"""Paper 48, "Attention as an RNN" (Aaren): attention with a learned query, stepped in constant memory.

    python -m experiments.claims --only=48 --data_dir=DIR --out=runs/claims         3 minutes, DIR/ett, DIR/ucr_uea
    python -m experiments.claims --only=48 --out=runs/claims                        without forecasts and classification
    python -m experiments.claims --only=48 --size=tiny                              half a minute: that everything runs

Claims: in forecasting, classification, event forecasting and offline reinforcement learning Aaren is comparable to a
causal Transformer, with D parameters more a layer; a sequence costs time linear in its length, a token constant time
and memory, where attention with its cache costs quadratic and linear ones. The weights do not depend on who asks, so it
cannot recall: there it stays far behind.

Choices: causal models of two layers of width 64 with feed-forward and learned positions, the same but for the mixer.
'Comparable' is 5% in squared error, 2 points of accuracy, .05 nats, 5 points of 100 in control. Forecasts are ETTh1's,
96 rows to 24; classes JapaneseVowels', from the mean of the last layer's tokens. Events are a Hawkes process
(`jattn/testbeds/events.py`), control a mass that is to be held in place (`jattn/testbeds/control.py`): both small, with
exact answers, in place of the paper's data. Costs are of one layer of width 32.
"""

from experiments.papers.aaren import costs, pictures, sequences
from experiments.papers.aaren.settings import SIZES
from experiments.papers.contract import ClaimContext, Line


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its pictures."""
    size = SIZES[context.size]
    context.say('four settings and recall')
    found = sequences.measure(context, size)
    lines = sequences.lines(found, context, size)
    pictures.draw(found, context.out / 'aaren.png')
    context.say('time and memory')
    return lines + costs.lines(costs.table(context, size), context, size)
