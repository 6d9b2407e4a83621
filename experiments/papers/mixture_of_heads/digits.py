"""Vision encoders on handwritten digits: the same attentions without a mask."""

from collections.abc import Mapping

from experiments.papers.contract import ClaimContext, Line, needs
from experiments.papers.mixture_of_heads.settings import BALANCE, FOUR, FULL, MOH_50, MOH_75, PAPER, Size, attentions
from experiments.papers.small_models import Setting, compare, score_rows
from jattn.data import MNISTConfig
from jattn.models.vision import VisionConfig
from jattn.training.experiment import LossWeights
from jattn.training.optimizer import AdamWConfig

NAMES = (FULL, FOUR, MOH_75, MOH_50)


def settings(context: ClaimContext, size: Size) -> dict[str, Setting]:
    """The trainings, by name."""
    data = MNISTConfig(path=context.data('mnist'))
    mixers = attentions(size, causal=False, rotary_base=None)
    return {
        name: Setting(
            model=VisionConfig(width=size.width, layers=size.layers, mixer=(mixers[name],), remat='none'),
            data=data,
            steps=size.image_steps,
            batch=size.image_batch,
            optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=size.image_steps // 10),
            losses=LossWeights(load_balance=BALANCE / size.layers),
        )
        for name in NAMES
    }


def measure(context: ClaimContext, size: Size) -> dict[str, float]:
    """name -> accuracy on the test images, of one seed."""
    trained = settings(context, size)
    found = compare(trained, 1, lambda *run: score_rows(*run)['accuracy'], context.say, context.key(100))
    return {name: runs[0] for name, runs in found.items()}


def lines(found: Mapping[str, float], size: Size) -> list[Line]:
    """The same comparisons as on text, in accuracy."""
    where = f'digits, {size.image_steps} steps, one seed: accuracy'
    note = ', '.join(f'{name} {value:.4f}' for name, value in found.items())
    return [
        Line.number(PAPER, f'{where} of {MOH_75} minus {FULL}', found[MOH_75] - found[FULL], above=-0.01, note=note),
        Line.number(PAPER, f'{where} of {MOH_50} minus {FOUR}', found[MOH_50] - found[FOUR], above=0.0),
    ]


def missing() -> list[Line]:
    """The same lines without data."""
    claims = {f'{MOH_75} minus {FULL}': '> -0.01', f'{MOH_50} minus {FOUR}': '> 0'}
    return [Line.missing(PAPER, f'digits: accuracy of {claim}', rule, needs('mnist')) for claim, rule in claims.items()]
