"""Can a decoder tell what a log of events entails from what it refutes?

    python -m experiments.run --config=facts_and_fibs --workdir=runs/facts_and_fibs
    python -m experiments.compare --tasks=facts_and_fibs --mixers=softmax,mamba --out=runs/compare

A claim alone says nothing about its truth: accuracy 1/2. `experiments.claims --only=57` judges facts and fibs in
pairs.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import FactsAndFibs
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: 4,096 events, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=FactsAndFibs(),
        training=schedules.small(steps=3000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=512, layers=8, mixer=(SoftmaxConfig(heads=4),), dtype='bfloat16'),
        data=FactsAndFibs(events=4096),
        training=schedules.paper(steps=50_000),
    )
