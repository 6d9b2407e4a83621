"""Can a decoder find a number in a list of names, by the name?

    python -m experiments.run --config=phonebook --workdir=runs/phonebook
    python -m experiments.compare --tasks=phonebook --mixers=softmax,deltanet --out=runs/compare

The answer is ten digits: guessing all of them right has probability 1 / (4 10^9).
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Phonebook
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=Phonebook(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=512, layers=6, mixer=(SoftmaxConfig(heads=8),)),
        data=Phonebook(),
        training=schedules.paper(steps=20_000, batch=128),
    )
