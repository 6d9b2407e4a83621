"""Does a decoder with a small state recall more when it reads the context twice?

    python -m experiments.run --config=rereading --set model.mixer=gla --workdir=runs/twice
    python -m experiments.run --config=rereading --set model.mixer=gla --set data.reads=1 --workdir=runs/once
    python -m experiments.run --config=rereading --set model.mixer=gla --set data.filler=true --workdir=runs/filler

The task is `data.task`, associative recall; the last line is the control of equal length.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import AssociativeRecall, ReReading
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: more pairs, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=ReReading(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=128, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=ReReading(task=AssociativeRecall(vocabulary=8192, tokens=512, pairs=64)),
        training=schedules.paper(steps=12_500),
    )
