"""Can a decoder look up values whose key is two tokens, neither of which decides alone?

    python -m experiments.run --config=compositional_recall --workdir=runs/compositional_recall
    python -m experiments.compare --tasks=compositional_recall --mixers=softmax,deltanet --out=runs/compare

Looking at one part of the key alone has the accuracy that `fact` lines of a comparison give.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import CompositionalRecall
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=CompositionalRecall(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=128, layers=2, mixer=(SoftmaxConfig(heads=8),)),
        data=CompositionalRecall(),
        training=schedules.paper(steps=20_000, batch=128),
    )
