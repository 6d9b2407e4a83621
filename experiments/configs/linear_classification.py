"""Can a decoder learn a plane from labelled points in its context, and say on which side the next one lies?

    python -m experiments.run --config=linear_classification --workdir=runs/linear_classification
    python -m experiments.compare --tasks=linear_classification --mixers=softmax,deltanet --out=runs/compare

The classification of Garg et al. (2022); least squares on the labels is the baseline to beat.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import LinearClassification
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=LinearClassification(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=LinearClassification(dim=20, points=41),
        training=schedules.paper(steps=100_000),
    )
