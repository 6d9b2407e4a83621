"""Can a memory of one layer keep pairs that come as one token each?

    python -m experiments.run --config=stacked_recall --workdir=runs/stacked_recall
    python -m experiments.compare --tasks=stacked_recall --mixers=softmax,deltanet --out=runs/compare

Key and value stand in one vector, so that no layer need shift tokens. The delta rule and the sum of outer products
stand below a comparison.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import StackedRecall
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: more pairs, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=StackedRecall(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=128, layers=2, mixer=(SoftmaxConfig(heads=8),)),
        data=StackedRecall(),
        training=schedules.paper(steps=20_000, batch=128),
    )
