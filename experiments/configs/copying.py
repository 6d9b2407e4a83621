"""Can a decoder copy a string, or say what stands beside a part of it?

    python -m experiments.run --config=copying --workdir=runs/copying
    python -m experiments.compare --tasks=copying --mixers=softmax,deltanet --out=runs/compare

The tasks of "Repeat After Me"; the table look-up below a comparison is always right.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Copying
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=Copying(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=512, layers=6, mixer=(SoftmaxConfig(heads=8),)),
        data=Copying(),
        training=schedules.paper(steps=20_000, batch=128),
    )
