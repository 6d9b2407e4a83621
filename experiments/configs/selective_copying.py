"""Can a decoder write down, in order, the few tokens that stood among noise?

    python -m experiments.run --config=selective_copying --workdir=runs/selective_copying
    python -m experiments.compare --tasks=selective_copying --mixers=softmax,mamba --out=runs/compare

Guessing a token has accuracy 1/14; the look-up is always right.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import SelectiveCopying
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: Mamba's, T=4096, 16 tokens, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=SelectiveCopying(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=SelectiveCopying(tokens=4096, copies=16),
        training=schedules.paper(steps=100_000),
    )
