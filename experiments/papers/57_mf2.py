"""Paper 57, "Movie Facts and Fibs" (MF^2): a fact and a fib about one long context, judged one by one.

    python -m experiments.claims --only=57 --out=runs/claims                        ten minutes on two slow cores
    python -m experiments.claims --only=57 --size=tiny                              half a minute: that everything runs
    python -m experiments.claims --only=57 --size=paper                             logs of 4,096 events, a GPU

Claims: a pair counts only if the fact is called true and the fib false, which is stricter than accuracy; a claim alone
says nothing about its truth; one event is easier to find than two are to put in order or several to count; a context
is read once, and a claim behind its state is scored as in the whole row, for a cache and for a recurrent state.

Choices: the films and their claims may not be passed on, so contexts are logs of events of a small world
(`jattn/testbeds/event_log.py`). Decoders of two layers say TRUE or FALSE behind a log; a training row holds two claims
of it, but each is judged alone, behind a copy of the log's state. The training starts with logs of three events, the
smallest there are: on longer ones alone softmax learned nothing in as many steps. Softmax without a short convolution
is among the decoders of size paper alone. Detail, order and count are compared by pairwise accuracy at the length of
training. Logs two and four times as long are tried without training on them.
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
