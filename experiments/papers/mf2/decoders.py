"""Trains the decoders, and says which of the sheet's expectations come out."""

from collections.abc import Mapping, Sequence

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.mf2.judging import Found, judge, mean, of
from experiments.papers.mf2.settings import MEMORY_MODELS, PAPER, Size
from experiments.papers.small_models import Setting, Variables, compare

Runs = Mapping[str, Sequence[Found | None]]  # mixer -> what was measured, by seed; None: the training failed


def measure(context: ClaimContext, size: Size) -> Runs:
    """Every mixer's decoders; equal seeds see equal rows, and all are judged on equal logs."""

    def measured(setting: Setting, variables: Variables) -> Found:
        return judge(setting, variables, size, context.key(900))

    settings = {name: size.setting(name) for name in size.mixers}
    return compare(settings, size.seeds, measured, context.say, context.key(100))


def lines(runs: Runs, size: Size) -> list[Line]:
    """What the sheet expects of every mixer, and of all together."""
    events = size.lengths[0]
    out = []
    for name, found in runs.items():
        out += _alone(name, found)
        out.append(_detail(name, found, events))
    return [*out, _stricter(runs, size), *_same_from_scratch(runs)]


def _alone(name: str, found: Sequence[Found | None]) -> list[Line]:
    """A claim without its log is a coin."""
    judged = [run.alone for run in found if run is not None]
    choice = float('nan') if len(judged) < len(found) else sum(of(one, 'forced_choice') for one in judged) / len(judged)
    note = 'pairwise ' + '/'.join(f'{of(one, "pairwise"):.3f}' for one in judged) + ', anywhere in 0 .. 0.5'
    return [Line.number(PAPER, f'{name}: forced choice without the log', choice, near=(0.5, 0.03), note=note)]


def _detail(name: str, found: Sequence[Found | None], events: int) -> Line:
    """One event is easier to find than two are to compare or several to count."""
    rates = {kind: mean(found, events, f'kind/{kind}') for kind in ('detail', 'order', 'count')}
    gap = rates['detail'] - max(rates['order'], rates['count'])
    note = ', '.join(f'{kind} {rate:.3f}' for kind, rate in rates.items())
    claim = f'{name}, {events} events: pairwise of detail minus the better of order and count'
    return Line.number(PAPER, claim, gap, above=0.0, note=note)


def _stricter(runs: Runs, size: Size) -> Line:
    """Pairwise accuracy is below accuracy by a tenth wherever accuracy leaves room."""
    cells = [(name, events) for name in runs for events in size.lengths]
    rates = {cell: [mean(runs[cell[0]], cell[1], which) for which in ('accuracy', 'pairwise')] for cell in cells}
    room = {cell: accuracy - pairwise for cell, (accuracy, pairwise) in rates.items() if not accuracy >= 0.9}
    note = 'accuracy minus pairwise: ' + ', '.join(
        f'{name} at {events} {gap:.3f}' for (name, events), gap in room.items()
    )
    claim = f'accuracy below 0.9 (of {len(cells)} mixers and lengths): pairwise is lower by more than 0.1'
    return Line.count(PAPER, claim, sum(gap > 0.1 for gap in room.values()), of=len(room), note=note)


def _same_from_scratch(runs: Runs) -> list[Line]:
    """A score behind a state that all claims share is the score of the whole row."""
    out = []
    for name, found in runs.items():
        kept = 'a recurrent state' if name in MEMORY_MODELS else 'a cache of keys and values'
        apart = max((float('inf') if run is None else run.apart for run in found), default=float('nan'))
        claim = f'{name}: largest difference of a score behind {kept} from the whole row'
        out.append(Line.number(PAPER, claim, apart, below=1e-4))
    return out


def drops(runs: Runs, size: Size) -> list[str]:
    """How much each mixer loses from T to 4 T events, attention first; memory models beside it."""
    short, *_, long = size.lengths
    out = []
    for name in sorted(runs, key=lambda name: name in MEMORY_MODELS):
        lost = {
            which: mean(runs[name], short, which) - mean(runs[name], long, which)
            for which in ('pairwise', 'accuracy', 'forced_choice')
        }
        told = ', '.join(f'{which.replace("_", " ")} {value:+.3f}' for which, value in lost.items())
        out.append(f'{name:18}lost from {short} to {long} events: {told}')
    return out
