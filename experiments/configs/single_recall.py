"""Can a decoder say which value a key has, when keys come again and again before one is asked for?

    python -m experiments.run --config=single_recall --workdir=runs/single_recall
    python -m experiments.compare --tasks=single_recall --mixers=softmax,deltanet --out=runs/compare

The associative recall of H3. Guessing a value has accuracy 1/10.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import SingleRecall
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=SingleRecall(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=SingleRecall(vocabulary=41, pairs=256),
        training=schedules.paper(steps=100_000),
    )
