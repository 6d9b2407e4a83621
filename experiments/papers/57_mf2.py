"""Paper 57, "Movie Facts and Fibs" (MF^2): a fact and a fib about one long context, judged one by one.

    python -m experiments.claims --only=57 --out=runs/claims                        minutes on two cores
    python -m experiments.claims --only=57 --size=tiny                              that everything runs
    python -m experiments.claims --only=57 --size=paper                             longer logs, a GPU

Claims: a pair counts only if the fact is called true and the fib false, which is stricter than accuracy; a claim alone
says nothing about its truth; one event is easier to find than two are to put in order or several to count; a context
is read once and its state judges every claim as the whole row would.

Choices: films and their claims are not redistributable and a model of two layers could not watch them, so contexts are
logs of events of a small world (`jattn/testbeds/event_log.py`). Decoders of two layers say TRUE or FALSE behind a log;
a training row holds several claims, but each is judged alone, behind a copy of the log's state. The training starts
with short logs: from the first step on logs of several claims nothing was learned (`mf2/settings.py`).
"""

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.mf2 import decoders, judging, pictures, protocol
from experiments.papers.mf2.settings import SIZES


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, its two tables and its picture."""
    size = SIZES[context.size]
    known = protocol.measure(size.judged(size.lengths[-1]), size.pairs_of_a_log, size.pairs_known, context.key(0))
    lines = protocol.lines(known)
    context.say('decoders that read a log once and judge claims about it')
    runs = decoders.measure(context, size)
    events = size.lengths[0]
    for title, rows in (
        (f'pairwise accuracy by kind, {events} events', judging.table(runs, size, events)),
        (f'pairwise accuracy by granularity, {events} events', judging.table_of_granularity(runs, events)),
        ('longer logs than those of the training', decoders.drops(runs, size)),
    ):
        context.say(title)
        for row in rows:
            context.say(f'  {row}')
    lines += decoders.lines(runs, size)
    pictures.draw(runs, size, context.out / 'mf2.png')
    return lines
