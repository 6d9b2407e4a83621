"""Can a decoder track a state over symbols, and on longer rows than those of its training?

    python -m experiments.run --config=state_tracking --workdir=runs/parity
    python -m experiments.run --config=state_tracking --set data.language=a5 --set data.tokens=16 --workdir=runs/a5
    python -m experiments.compare --tasks=parity --mixers=softmax,deltanet --out=runs/compare

A recurrence whose transitions have eigenvalues in [0, 1] cannot count parity on rows of any length; with eigenvalues
in [-1, 1] one layer can. Guessing gives accuracy 1/2 for parity, 1/60 for A5.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import StateTracking
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=StateTracking(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=128, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=StateTracking(tokens=40, scored='last', min_tokens=3),
        training=schedules.paper(steps=20_000, batch=256),
    )
