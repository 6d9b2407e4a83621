"""Paper 06, "Learning to Learn Discrete Functions": Boolean functions in context, taught or not.

    python -m experiments.claims --only=06 --out=runs/claims           nine minutes of two slow cores
    python -m experiments.claims --only=06 --size=tiny                 two minutes: that everything runs
    python -m experiments.claims --only=06 --size=paper                n = 28, 70 points, 12 layers, a GPU

Claims: softmax attention learns conjunctions, sparse disjunctions and ORs of ANDs no worse than other mixers; no
mixer learns sparse parities; with teaching sequences a model is right from their end on, and without them as good as
elimination; heads of a model that copies the nearest label attend to it.

Choices: models of one mixer, one a task, are trained side by side (`icl_boolean/columns.py`), with one seed and one
learning rate. An accuracy is the mean over all points, the first included, as in the sheet. 'No worse' and 'equal' are
.02. The qLSTM stands in the LSTM's place: its gates do not see its last output. The neural memory is not trained on
majority: it takes several times as long. What needs more steps is teaching, of softmax attention and DeltaNet, and
neighbours, of softmax attention alone. RetNet is trained at size paper alone. The frozen random backbone, with its
read-in and read-out of two layers, is left out.
"""

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.icl_boolean import exact, learning, pictures
from experiments.papers.icl_boolean.settings import SIZES


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its picture."""
    size = SIZES[context.size]
    context.say('what needs no training')
    lines = exact.lines(context, size)
    known = learning.learners(context, size)
    context.say('mixers by class of functions')
    found = learning.measure(context, size)
    lines += learning.lines(found, known, size)
    context.say('teaching sequences and nearest neighbours')
    taught = learning.measure_long(context, size)
    lines += learning.long_lines(taught, size)
    pictures.draw(found, known, taught, size, context.out / 'icl_boolean.png')
    return lines
