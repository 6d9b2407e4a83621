"""Which of the six abilities of MAD does a mixer have?

    python -m experiments.run --config=mad --workdir=runs/mad
    python -m experiments.run --config=mad --set data.task=noisy_recall --workdir=runs/noisy
    python -m experiments.compare --tasks=mad --mixers=softmax,deltanet --out=runs/compare

`data.task` is one of six; sizes that are not given are the published ones. Where our compression differs from MAD's
stands at the top of `jattn/testbeds/mad.py`.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import MAD
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: MAD's, width 128, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=MAD(),
        training=schedules.small(steps=2000),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=128, layers=2, mixer=(SoftmaxConfig(heads=8),)),
        data=MAD(),
        training=schedules.paper(steps=20_000, batch=128),
    )
