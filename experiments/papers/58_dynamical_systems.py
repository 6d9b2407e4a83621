"""Paper 58, "Understanding the differences in Foundation Models": attention, state spaces, RNNs in one common form.

    python -m experiments.claims --only=58 --out=runs/claims                        3 minutes on two cores
    python -m experiments.claims --only=58 --size=tiny                              half a minute: that everything runs
    python -m experiments.claims --only=58 --size=paper                             the authors' sweep, a GPU

Claims: attention, linear and normalised attention, S6, SSD and the qLSTM are all y = Phi u of one linear time-varying
system; what a layer must remember is the rank of Phi, n for a state expansion n, and for softmax all of the past; on
recall linear attention nears softmax as n grows, an input-dependent normaliser lifts it towards S6 and exp is the best
such, and the qLSTM gains by S6's reversed sigmoid, the more so on longer rows.

Choices: width 32, no feed-forward, one head. 'No worse' is -0.02. The best learning rate counts and the notes hold all;
small has one: at 3e-3 no linear or normalised attention left the plateau of a random value of the context in 500 steps.
The task is small (64 tokens of vocabulary, 4 pairs, T = 32), so that it is learned in 1000 steps. In front of the one
layer that is compared stands a gated convolution of four tokens, alike for all: with two layers and learned positions,
as the authors have it, softmax solves the task in 300 steps, but linear attention stays at a random value (.254 after
600 steps). The qLSTM's block has its own convolution: two layers of it. S6 and SSD stand without the blocks of Mamba;
SSD has one time step a head.
"""

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.dynamical_systems import pictures, recall, systems
from experiments.papers.dynamical_systems.settings import SIZES


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its picture."""
    size = SIZES[context.size]
    operators = systems.operators(context.key(0))
    lines = systems.lines(operators, systems.taylor_errors(context.key(1)))
    context.say('associative recall')
    found, gates = recall.measure_all(context, size)
    lines += recall.lines(found, size) + recall.lstm_lines(gates, size)
    pictures.draw(operators, found, gates, size, context.out / 'dynamical_systems.png')
    return lines
