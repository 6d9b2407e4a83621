"""Decoders on novels: what routing adds to local heads, and how much of the published selection's gain is a leak.

    full      every centroid picks its tokens from the whole row, the future included, as in training
    blanked   all that stands behind the place that is scored is padding, as in generation

Values of the future never reach an output; but which tokens a centroid picks depends on them. The loss that is higher
when blanked was too low by the leak.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.papers import novels
from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.routing.settings import LEAKY, LOCAL, PAPER, ROUTING, Size, attentions
from experiments.papers.small_models import Setting, Variables, compare, first_rows, outputs, score_rows
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Batch
from jattn.training.optimizer import AdamWConfig

NAMES = (LOCAL, ROUTING, LEAKY)
Found = Mapping[str, Mapping[str, Any]]  # name -> variables; loss; full; blanked


def settings(context: ClaimContext, size: Size) -> dict[str, Setting]:
    """The trainings, by name."""
    mixers = attentions(size.window, size.clusters, size.members)
    return {
        name: Setting(
            model=DecoderConfig(width=size.width, layers=size.layers, mixer=(mixers[name],), remat='none'),
            data=novels.windows(context, size.tokens, size.held_out_bytes, size.titles),
            steps=size.steps,
            batch=size.batch,
            optimizer=AdamWConfig(peak_lr=5e-3, warmup_steps=size.steps // 20),
        )
        for name in NAMES
    }


def measure(context: ClaimContext, size: Size) -> Found:
    """One seed of each."""

    def measured(setting: Setting, variables: Variables) -> Mapping[str, Any]:
        found = {'variables': variables, 'loss': score_rows(setting, variables, 16)['loss']}
        return found | dict(zip(('full', 'blanked'), leak(setting, variables, *size.blanked)))

    found = compare(settings(context, size), 1, measured, context.say, context.key(100))
    return {name: runs[0] for name, runs in found.items()}


def leak(setting: Setting, variables: Variables, rows: int, places: int) -> tuple[float, float]:
    """The loss at some places of held-out rows, read from whole rows and from rows whose future is blanked."""
    held_out, totals = first_rows(setting, rows), np.zeros(2)
    for row in range(len(held_out.targets)):
        for side, batch in enumerate(both(held_out.inputs[row], held_out.targets[row], places)):
            loss = setting.data.loss(outputs(setting, variables, batch), batch)
            totals[side] += float(loss.total / loss.count)
    return tuple(totals / len(held_out.targets))


def both(inputs: np.ndarray, targets: np.ndarray, places: int) -> tuple[Batch, Batch]:
    """One row as many times as places, each scored at its place alone: whole, and blanked behind it.

    >>> whole, blanked = both(np.arange(4), np.arange(1, 5), 2)
    >>> whole.mask.tolist(), blanked.segments.tolist()
    ([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], [[1, 1, 0, 0], [1, 1, 1, 1]])
    """
    tokens = len(inputs)
    scored = (np.arange(1, places + 1) * tokens // places - 1)[:, None]
    at = np.arange(tokens)[None]
    same = lambda x: jnp.asarray(np.broadcast_to(x, (places, tokens)))
    whole = Batch(same(inputs), same(targets), jnp.asarray(at == scored, jnp.float32), segments=same(np.int32(1)))
    return whole, dataclasses.replace(whole, segments=jnp.asarray(at <= scored, jnp.int32))


def lines(found: Found, size: Size) -> list[Line]:
    """What routing gains, measured without the leak, and the leak."""
    where = f'novels, T = {size.tokens}, {size.steps} steps, nats a byte'
    note = ', '.join(f'{name} {run["loss"]:.4f}' for name, run in found.items())
    gain = found[LOCAL]['loss'] - found[ROUTING]['loss']
    rows, places = size.blanked
    leaky, strict = found[LEAKY], found[ROUTING]
    leaks = (
        f'{rows * places} places; {LEAKY}: {leaky["full"]:.4f} in whole rows, {leaky["blanked"]:.4f} blanked; '
        f'{ROUTING}: {strict["full"]:.4f}, blanked {strict["blanked"]:.4f}'
    )
    moved = abs(strict['full'] - strict['blanked'])
    return [
        Line.number(PAPER, f'{where}: {LOCAL} minus {ROUTING}', gain, above=0.01, note=note),
        Line.number(
            PAPER, f'{where}: leak of the published selection', leaky['blanked'] - leaky['full'], above=0.0, note=leaks
        ),
        Line.number(PAPER, f'{where}: leak of the prefix selection', moved, below=1e-4),
    ]


def missing() -> list[Line]:
    """The same lines without data."""
    claims = {f'{LOCAL} minus {ROUTING}': '> 0.01', 'leak of the published selection': '> 0'}
    return [Line.missing(PAPER, f'novels: {claim}', rule, needs('books')) for claim, rule in claims.items()]
