"""Can a decoder say what followed a marker that it saw once, anywhere before?

    python -m experiments.run --config=induction --workdir=runs/induction
    python -m experiments.compare --tasks=induction --mixers=softmax,mamba --out=runs/compare

Training counts the answer alone; `--set data.scored=all` counts every next token, which some recurrences need to
learn it. Guessing a token has accuracy 1/19.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Induction
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: Mamba's, V=16, T=256, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=Induction(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=Induction(vocabulary=16, tokens=256),
        training=schedules.paper(steps=100_000),
    )
