"""Paper 38, "Circuit Component Reuse Across Tasks in Transformer Language Models", shown on SmolLM2-135M.

    make models
    python -m experiments.claims --only=38 --out=runs/claims                      minutes
    python -m experiments.claims --only=38 --size=tiny                            seconds: a random model, that it runs

Claims: the heads that tell who got something (IOI) are largely those that tell an object's colour (Colored Objects),
more than those of an unlike task; in IOI some heads look at the repeated name and steer others, which copy the right
one; forced to look at the wrong colours, four heads repair Colored Objects.

Choices: a task's circuit is its 20 heads of the largest effects, of either sign, by attribution patching from the
corrupted prompts; the roles are told by where heads look from the last token, by mean-ablation and by path patching,
for the heads that were known before this was written. GPT-2 medium, the paper's model, does half of Colored Objects
and this one none of it, but what is forced is alike: two heads that steer, one that writes against what it looks at and
the negative one. Which colours are wrong is told to them, as in the paper. The sheet's checks of the tools are
`tests/understanding/path_patching_test.py`, `attribution_patching_test.py` and `circuit_test.py`.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.papers import real_model
from experiments.papers.circuit_reuse import heads, prompts
from experiments.papers.circuit_reuse.heads import Head, Seen
from experiments.papers.circuit_reuse.prompts import Pairs
from experiments.papers.contract import ClaimContext, Line
from experiments.papers.real_model import Real
from jattn.understanding import ablate, lens
from jattn.understanding.attribution_patching import attribute_replacement
from jattn.understanding.circuit import overlap
from jattn.understanding.interventions import sweep
from jattn.understanding.path_patching import patch_paths

PAPER = '38'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run, and which heads are asked about.

    Attributes:
        rows: pairs of every task.
        circuit: heads of a circuit.
        ablated: heads that are truly ablated.
        senders: heads whose paths to the movers' queries are patched.
        looks: head -> what it looks at from the last token of IOI, and how much it pays, as found before.
        movers, negative, against: heads that copy the right name, that write against it, that write against the other.
        steering: heads that look at the repeated name and reach the movers' queries.
        repairing: heads that are forced to the wrong colours.
    """

    rows: Mapping[str, int]
    circuit: int
    ablated: int
    senders: int
    looks: Mapping[Head, tuple[str, float]]
    movers: tuple[Head, ...]
    negative: Head
    against: Head
    steering: tuple[Head, ...]
    repairing: tuple[Head, ...]


SMOLLM2 = dict(
    looks={
        (23, 0): ('IO', 0.67),
        (23, 1): ('IO', 0.60),
        (23, 7): ('IO', 0.52),
        (24, 4): ('IO', 0.72),
        (23, 3): ('S2', 0.7),
        (20, 0): ('S2', 0.8),
        (19, 2): ('S2', 0.4),
    },
    movers=((23, 0), (23, 1), (23, 2), (23, 7)),
    negative=(24, 4),
    against=(23, 3),
    steering=((20, 0), (19, 2)),
    repairing=((19, 2), (20, 0), (23, 3), (24, 4)),
)
SIZES = {
    'tiny': Size(
        rows=dict.fromkeys(prompts.TASKS, 4),
        circuit=3,
        ablated=3,
        senders=2,
        looks={(0, 1): ('IO', 0.67), (1, 2): ('S2', 0.7)},
        movers=((1, 0), (1, 1)),
        negative=(1, 2),
        against=(1, 3),
        steering=((0, 0),),
        repairing=((0, 0), (1, 2)),
    ),
    'small': Size(
        rows=dict(ioi=36, colored=30, greater_than=36, docstring=30), circuit=20, ablated=20, senders=6, **SMOLLM2
    ),
    'paper': Size(rows=dict.fromkeys(prompts.TASKS, 1000), circuit=20, ablated=40, senders=40, **SMOLLM2),
}


def run(context: ClaimContext) -> list[Line]:
    """Every line, and the picture."""
    real = real_model.open_real(context)
    if real is None:
        return [Line.missing(PAPER, 'circuits of SmolLM2', 'as the sheet says', real_model.NEEDS)]
    size, generator = SIZES[context.size], np.random.default_rng(context.seed)
    pairs = {name: draw(real.encode, generator, size.rows[name]) for name, draw in prompts.TASKS.items()}
    seen: dict[str, Seen] = {}
    for name, own in pairs.items():
        seen[name] = heads.look(real, own)
        found = seen[name]
        best = ', '.join(f'{head} {found.effects.at(*head) / found.change:.2f}' for head in found.circuit(8))
        context.say(f'{name}: difference {float(found.effects.before):.2f}, change {found.change:.2f}; {best}')
    _draw(seen, size, context.out / 'circuit_reuse.png')
    return [
        *behaviour_lines(pairs, seen),
        *overlap_lines(seen, size),
        *role_lines(context, real, pairs['ioi'], seen['ioi'], size),
        *repair_lines(context, real, pairs['colored'], seen['colored'], size),
    ]


def behaviour_lines(pairs: dict[str, Pairs], seen: dict[str, Seen]) -> list[Line]:
    """What the model does."""
    number = lambda line, value, **rule: Line.number(PAPER, line, value, **rule)
    difference = float(seen['ioi'].effects.before)
    p = jax.nn.softmax(seen['greater_than'].logits, axis=-1)
    digits = jnp.take_along_axis(p, pairs['greater_than'].options, 1)
    is_legal = jnp.arange(10)[None] >= pairs['greater_than'].places['tens'][:, None]
    legal = float(jnp.mean(jnp.sum(digits * is_legal, axis=1)))
    absent = 'the paper, of GPT-2 medium; chance is a third'
    return [
        number(
            'ioi: rows where the right name is above the other',
            _share_right(pairs['ioi'], seen['ioi'].logits),
            above=0.95,
        ),
        number('ioi: mean difference of the logits', difference, near=(5.0, 0.75)),
        number('greater_than: probability of the tens that are legal', legal, above=0.95),
        number(
            'docstring: right of five arguments', _share_right(pairs['docstring'], seen['docstring'].logits), above=0.85
        ),
        number(
            'colored: right of three colours',
            _share_right(pairs['colored'], seen['colored'].logits),
            near=(0.496, 0.05),
            note=absent,
        ),
    ]


def _share_right(pairs: Pairs, logits: jax.Array) -> float:
    """The share of rows whose likeliest option is the right one."""
    best = jnp.argmax(jnp.take_along_axis(logits, pairs.options, 1), axis=1)
    return float(jnp.mean(jnp.take_along_axis(pairs.options, best[:, None], 1)[:, 0] == pairs.right))


def overlap_lines(seen: dict[str, Seen], size: Size) -> list[Line]:
    """How many heads two tasks share."""
    among = seen['ioi'].effects.values.size
    shared = lambda one, other: overlap(seen[one].circuit(size.circuit), seen[other].circuit(size.circuit), among)
    both, far, other = shared('ioi', 'colored'), shared('ioi', 'greater_than'), shared('colored', 'greater_than')
    near = shared('ioi', 'docstring')
    counts = f'{both.shared} of {size.circuit}; ioi and docstring {near.shared}, colored and docstring '
    counts += f'{shared("colored", "docstring").shared}, greater_than and docstring '
    counts += f'{shared("greater_than", "docstring").shared}'
    return [
        Line.number(PAPER, 'heads that ioi and colored share', both.of_smaller, near=(0.78, 0.05), note='the paper'),
        Line.number(PAPER, 'chance that random circuits share as many', both.chance, below=0.05, note=counts),
        *(
            Line.number(
                PAPER,
                f'heads that {one} shares with {like} minus with greater_than',
                float(both.shared - unlike.shared),
                above=0,
                note=f'{both.shared} and {unlike.shared}',
            )
            for one, like, unlike in (('ioi', 'colored', far), ('colored', 'ioi', other))
        ),
    ]


def role_lines(context: ClaimContext, real: Real, pairs: Pairs, seen: Seen, size: Size) -> list[Line]:
    """Who looks where in IOI, who writes what, and on whom it hangs."""
    lines = []
    for head, (place, expected) in size.looks.items():
        paid = seen.attention(head, pairs.places[place])
        lines.append(Line.number(PAPER, f'ioi: attention of {head} to {place}', paid, near=(expected, 0.1)))
    rows = jnp.arange(len(pairs.right))
    direction = jnp.zeros_like(seen.logits).at[rows, pairs.right].add(1.0).at[rows, pairs.wrong].add(-1.0)
    written = lens.direct_effects(real.model, real.params, pairs.clean, direction).heads.mean(1)
    order = np.argsort(-np.abs(np.asarray(written)).reshape(-1))[:8]
    width = written.shape[1]
    context.say(
        'direct effects: ' + ', '.join(f'({n // width},{n % width}) {written.reshape(-1)[n]:.2f}' for n in order)
    )
    movers = float(sum(written[head] for head in size.movers))
    silent = ablate.prepare(real.model, real.params, pairs.clean, kind='mean')
    guessed = attribute_replacement(real.model, real.params, pairs.clean, seen.metric, silent)
    tried = guessed.ranked()[: size.ablated]
    true = sweep(real.model, real.params, pairs.clean, seen.metric, silent, tried)
    lost = {head: -true.at(*head) / float(true.before) for head in tried}
    context.say('lost by mean-ablation: ' + ', '.join(f'{head} {share:.2f}' for head, share in lost.items()))
    agree = np.corrcoef([guessed.at(*head) for head in tried], [true.at(*head) for head in tried])[0, 1]
    most = max(lost, key=lambda head: lost[head])
    return [
        *lines,
        Line.number(PAPER, 'ioi: what the heads that look at IO write, the negative one left out', movers, above=0),
        Line.number(PAPER, f'ioi: what {size.negative} writes', float(written[size.negative]), below=0),
        Line(PAPER, 'ioi: head that costs most', str(size.against), str(most), most == size.against),
        Line.number(PAPER, 'ioi: share of the difference that it costs', lost[most], near=(0.49, 0.1)),
        Line.number(PAPER, 'ioi: correlation of first-order and true effects', float(np.nan_to_num(agree)), above=0.8),
        *steering_lines(context, real, pairs, seen, size),
    ]


def steering_lines(context: ClaimContext, real: Real, pairs: Pairs, seen: Seen, size: Size) -> list[Line]:
    """Who reaches the queries of the heads that copy the name: those that look at the repeated one, says the paper."""
    first = size.movers[0][0]
    others = [
        head for head in seen.circuit(len(seen.effects.ranked())) if head[0] < first and head not in size.steering
    ]
    senders = [*size.steering, *others[: size.senders]]
    last = jnp.zeros_like(pairs.clean, bool).at[:, -1].set(True)
    receivers = [('q', layer, head) for layer, head in size.movers]
    found = patch_paths(
        real.model, real.params, pairs.clean, pairs.corrupted, seen.metric, receivers, senders=senders, positions=last
    )
    shares = {head: found.at(*head) / seen.change for head in senders}
    context.say("through the movers' queries: " + ', '.join(f'{head} {share:.3f}' for head, share in shares.items()))
    return [
        Line.number(
            PAPER,
            f"ioi: share of the change from {head} through the movers' queries",
            shares[head],
            above=0.02,
            note='the sheet',
        )
        for head in size.steering
    ]


def repair_lines(context: ClaimContext, real: Real, pairs: Pairs, seen: Seen, size: Size) -> list[Line]:
    """What Colored Objects gains when heads that steer are forced to the wrong colours, and when random ones are."""
    generator = np.random.default_rng(context.seed)
    every = [head for head in seen.effects.ranked() if head not in size.repairing]
    random = [every[n] for n in generator.permutation(len(every))[: len(size.repairing)]]
    before = _share_right(pairs, seen.logits)
    after, control = (_share_right(pairs, heads.force_to_wrong(real, pairs, own)) for own in (size.repairing, random))
    context.say(f'colored: right {before:.2f}, forced {after:.2f}, random heads forced {control:.2f}')
    note = f'{before:.3f} before'
    return [
        Line.number(
            PAPER, 'colored: right with four heads forced to the wrong colours', after, near=(0.937, 0.05), note=note
        ),
        Line.number(PAPER, 'colored: gain by forcing them', after - before, above=0.15, note='the sheet'),
        Line.number(PAPER, 'colored: gain by forcing random heads', control - before, below=0.15, note='the sheet'),
    ]


def _draw(seen: dict[str, Seen], size: Size, path: object) -> None:
    """The effects of all heads in every task, and what the circuits share."""
    figure = Figure(figsize=(13, 5.2), layout='constrained')
    axes = figure.subplots(1, len(seen) + 1, width_ratios=[1] * len(seen) + [1.8])
    for axis, (name, found) in zip(axes, seen.items()):
        shares = np.asarray(found.effects.values) / found.change
        image = axis.imshow(shares, origin='lower', aspect='auto', cmap='RdBu_r', vmin=-0.4, vmax=0.4)
        chosen = np.array(found.circuit(size.circuit))
        axis.plot(chosen[:, 1], chosen[:, 0], 's', ms=7, mfc='none', mec='black', mew=0.8)
        axis.set(title=name, xlabel='head')
        axis.set_xticks(range(0, shares.shape[1], 2))
    axes[0].set(ylabel='layer')
    figure.colorbar(image, ax=axes[:-1], label='share of the whole change', location='bottom', shrink=0.5)
    names = list(seen)
    shared = np.array(
        [[len(set(seen[a].circuit(size.circuit)) & set(seen[b].circuit(size.circuit))) for b in names] for a in names]
    )
    axes[-1].imshow(shared, cmap='Greens', vmin=0, vmax=size.circuit)
    axes[-1].set(title=f'heads shared, of {size.circuit}')
    axes[-1].set_xticks(range(len(names)), names, rotation=45)
    axes[-1].set_yticks(range(len(names)), names)
    for n in range(len(names)):
        for m in range(len(names)):
            axes[-1].text(m, n, str(shared[n, m]), ha='center', va='center', color='white' if n == m else 'black')
    figure.savefig(path, dpi=110)
