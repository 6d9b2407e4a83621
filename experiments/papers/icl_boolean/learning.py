"""What small decoders learn to learn: each class of functions, taught conjunctions, nearest neighbours."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.icl_boolean.columns import column_of, joined
from experiments.papers.icl_boolean.settings import NEIGHBOURS, SIMPLE, SOFTMAX, TAUGHT, Size, long, table
from experiments.papers.small_models import Setting, Variables, compare, outputs
from jattn.testbeds import Batch, Boolean
from jattn.typing import Array, Float
from jattn.understanding.neighbour_heads import FOUND, NeighbourHeads, score_neighbour_heads

PAPER = '06'
TIE = 0.02  # 'equal' and 'no worse': the sheet's own width for chance
ALONE = 'from x alone'
LEARNERS = ('bayes', 'elimination', 'nearest_neighbour', 'three_neighbours', 'averaging', ALONE)
Curves = dict[str, Float[np.ndarray, 'S']]
Found = Mapping[str, Mapping[str, Float[np.ndarray, 'S']]]  # mixer -> task -> accuracy by point


@dataclasses.dataclass(frozen=True)
class Long:
    """What the models of the longer training do.

    Attributes:
        behind: accuracy behind the teaching sequence, of taught rows.
        behind_untaught: accuracy at the same points, of untaught rows of functions with as many literals.
        taught, untaught: accuracy by point, [S].
        elimination: of elimination on the untaught rows, [S].
        neighbours: accuracy by point on nearest neighbours, nan where it is not scored; None: not trained on it.
        heads: scores of the heads of that model.
    """

    behind: float
    behind_untaught: float
    taught: Float[np.ndarray, 'S']
    untaught: Float[np.ndarray, 'S']
    elimination: Float[np.ndarray, 'S']
    neighbours: Float[np.ndarray, 'S'] | None = None
    heads: NeighbourHeads | None = None


def measure(context: ClaimContext, size: Size) -> Found:
    """Every mixer of the table on the same fresh rows of each task; a training that failed has nan everywhere."""
    settings = table(size)

    def curves(setting: Setting, variables: Variables) -> Curves:
        said = _answers(setting, variables, size, context)
        return {task.function: _by_point(said_of, batch) for task, batch, said_of in said}

    runs = compare(settings, 1, curves, context.say, context.key(0))
    failed = np.full(size.points, np.nan)
    return {
        name: {function: failed if run is None else run[function] for function in size.functions(name)}
        for name, (run,) in runs.items()
    }


def learners(context: ClaimContext, size: Size) -> Found:
    """What needs no training, on the same rows: learner -> task -> accuracy by point.

    `ALONE` is Bayes' answer to each point without any example, where it is known: whoever is no better has learned
    nothing from the context.
    """
    found: dict[str, Curves] = {name: {} for name in LEARNERS}
    most = max((setting.data for setting in table(size).values()), key=lambda data: len(data.tasks))
    for task, batch in zip(most.tasks, most.each(context.key(900), size.rows)):
        for name, said in jax.jit(task.baselines)(batch).items():
            if name in found:
                found[name][task.function] = _by_point(said, batch)
        if task.function in found['bayes']:
            single = batch.replace(inputs=batch.inputs.reshape(-1, 2, task.inputs))
            said = jax.jit(lambda batch, task=task: task.baselines(batch)['bayes'])(single)
            found[ALONE][task.function] = _by_point(said.reshape(batch.targets.shape), batch)
    return found


def measure_long(context: ClaimContext, size: Size) -> dict[str, Long | None]:
    """Mixer -> what it does after teaching sequences, and with nearest neighbours; None: the training failed."""

    def read(setting: Setting, variables: Variables) -> Long:
        (taught, batch, said), *rest = _answers(setting, variables, size, context)
        elimination = jax.jit(lambda batch: taught.baselines(batch)['elimination'])(batch)
        found = _long(batch, said, elimination)
        if not rest:
            return found
        task, batch, said = rest[0]
        decoder = setting.model.for_data('linear', size.inputs, 1).decoder.make()
        params = column_of(variables['params'], 1)
        heads = score_neighbour_heads(decoder, params, batch.inputs[:128], first=task.family.unscored)
        return dataclasses.replace(found, neighbours=_by_point(said, batch), heads=heads)

    return {name: run for name, (run,) in compare(long(size), 1, read, context.say, context.key(1)).items()}


def _long(batch: Batch, said: Array, elimination: Array) -> Long:
    """Rows and points sorted out."""
    is_right, by_elimination = (_right(answers, batch) for answers in (said, elimination))
    is_taught = np.asarray(batch.meta['taught']) > 0
    lengths = np.count_nonzero(np.asarray(batch.meta['weights']), axis=(1, 2)) + 2
    is_behind = np.arange(is_right.shape[1])[None, :] >= lengths[:, None]
    return Long(
        behind=float(np.mean(is_right[is_taught[:, None] & is_behind])),
        behind_untaught=float(np.mean(is_right[~is_taught[:, None] & is_behind])),
        taught=is_right[is_taught].mean(axis=0),
        untaught=is_right[~is_taught].mean(axis=0),
        elimination=by_elimination[~is_taught].mean(axis=0),
    )


def _answers(
    setting: Setting, variables: Variables, size: Size, context: ClaimContext
) -> Sequence[tuple[Boolean, Batch, Array]]:
    """(task, rows, what its own model says of them) of every column."""
    batches = setting.data.each(context.key(900), size.rows)
    said = jnp.split(outputs(setting, variables, joined(batches)), len(batches))
    return list(zip(setting.data.tasks, batches, said))


def _right(said: Float[Array, 'B T 1'], batch: Batch) -> np.ndarray:
    """Whether an answer is right, [B, S]; 0 is wrong."""
    return np.asarray(jnp.sign(said) == batch.targets)[:, ::2, 0]


def _by_point(said: Float[Array, 'B T 1'], batch: Batch) -> Float[np.ndarray, 'S']:
    """Accuracy by point; nan where points are not scored."""
    scored = np.asarray(batch.mask)[0, ::2] > 0
    return np.where(scored, _right(said, batch).mean(axis=0), np.nan)


def exact_of(function: str, known: Found) -> str:
    """The best learner of a class that needs no training: Bayes, elimination, else the best neighbours."""
    for name in ('bayes', 'elimination'):
        if function in known[name]:
            return name
    return max((name for name in LEARNERS if function in known[name]), key=lambda name: known[name][function].mean())


def lines(found: Found, known: Found, size: Size) -> list[Line]:
    """Attention against the others, sparse parity, majority."""
    where = f'n = {size.inputs}, m = {size.points}, {size.steps} steps'
    out = []
    for function in SIMPLE:
        scores = {name: float(curves[function].mean()) for name, curves in found.items()}
        others = max(score for name, score in scores.items() if name != SOFTMAX)
        claim = f'{function}, {where}: accuracy of softmax minus the best of the other mixers'
        out.append(Line.number(PAPER, claim, scores[SOFTMAX] - others, above=-TIE, note=_note(function, found, known)))
    for name, curves in found.items():
        claim = f'sparse_parity, {where}: accuracy of {name}'
        note = _note('sparse_parity', {name: curves}, known)
        out.append(Line.number(PAPER, claim, float(curves['sparse_parity'].mean()), near=(0.5, TIE), note=note))
    alone = float(known[ALONE]['sparse_parity'].mean())
    best = max(float(curves['sparse_parity'].mean()) for curves in found.values())
    claim = f"sparse_parity, {where}: accuracy of the best mixer minus Bayes' from the point alone"
    out.append(Line.number(PAPER, claim, best - alone, near=(0.0, TIE), note=f'from the point alone {alone:.3f}'))
    if 'majority' in found[SOFTMAX]:
        claim = f"majority, {where}: accuracy of softmax minus Bayes' from the point alone"
        gain = float(found[SOFTMAX]['majority'].mean() - known[ALONE]['majority'].mean())
        out.append(Line.number(PAPER, claim, gain, above=0.0, note=_note('majority', found, known)))
    for function in SIMPLE if size.solved else ():
        claim = f'{function}, {where}: accuracy of softmax at the last point'
        out.append(Line.number(PAPER, claim, float(found[SOFTMAX][function][-1]), above=0.99))
    return out


def _note(function: str, found: Found, known: Found) -> str:
    """All accuracies, and how far each is from the exact learner, or the best there is."""
    best = exact_of(function, known)
    exact = float(known[best][function].mean())
    rows = [
        f'{name} {curves[function].mean():.3f} (gap {exact - curves[function].mean():.3f})'
        for name, curves in found.items()
        if function in curves
    ]
    others = [f'{name} {curves[function].mean():.3f}' for name, curves in known.items() if function in curves]
    return f'{", ".join(rows)}; untrained: {", ".join(others)}; gaps are to {best}'


def long_lines(found: Mapping[str, Long | None], size: Size) -> list[Line]:
    """Two algorithms for one task, and the heads that look up neighbours."""
    out = []
    for name, runs in found.items():
        out += _taught_lines(name, runs, f'{TAUGHT}, {size.long_steps} steps')
    return [*out, _heads_line(found[SOFTMAX], size)]


def _taught_lines(name: str, found: Long | None, where: str) -> list[Line]:
    nan = np.full(1, np.nan)
    found = Long(np.nan, np.nan, nan, nan, nan) if found is None else found
    gap, gain = float(found.untaught.mean() - found.elimination.mean()), found.behind - found.behind_untaught
    return [
        Line.number(
            PAPER,
            f'{where}: accuracy of {name} behind the teaching sequence',
            found.behind,
            above=0.98,
            note=f'by point: {_joined(found.taught)}; elimination is always right there',
        ),
        Line.number(
            PAPER,
            f'{where}: untaught rows, accuracy of {name} minus elimination',
            gap,
            near=(0.0, TIE),
            note=f'by point: {_joined(found.untaught)}; elimination {_joined(found.elimination)}',
        ),
        Line.number(
            PAPER,
            f'{where}: accuracy of {name} at the points behind, taught minus untaught rows',
            gain,
            above=0.0,
            note=f'untaught rows reach {found.behind_untaught:.3f} there',
        ),
    ]


def _heads_line(found: Long | None, size: Size) -> Line:
    claim = f'{NEIGHBOURS}, {size.long_steps} steps: heads of softmax that pay {FOUND:g} or more to the nearest label'
    if found is None:
        return Line.number(PAPER, claim, float('nan'), above=0.0, note='the training failed')
    layer, head, best = found.heads.best()
    note = (
        f'the best is head {head} of layer {layer}: {best:.2f}; '
        f'all, by layer: {"; ".join(_joined(row) for row in found.heads.scores)}; '
        f'the model is right at {np.nanmean(found.neighbours):.3f} of the scored points, 1-NN at all'
    )
    return Line.number(PAPER, claim, float(len(found.heads.found())), above=0.0, note=note)


def _joined(values: Sequence[float]) -> str:
    return ' '.join(f'{value:.2f}' for value in values)
