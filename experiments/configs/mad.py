"""Which of the six abilities of MAD does a mixer have?

    python -m experiments.run --config=mad --workdir=runs/mad
    python -m experiments.run --config=mad --set data.task=noisy_recall --workdir=runs/noisy
    python -m experiments.compare --tasks=mad --mixers=softmax,deltanet --out=runs/compare

`data.task` is one of six; sizes that are not given are the published ones. Where our compression differs from MAD's
stands at the top of `jattn/testbeds/mad.py`.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import MAD
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: MAD's, width 128, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=MAD(),
        training=TrainingConfig(
            steps=2000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=100),
            steps_per_call=50,
            log_every_steps=100,
            eval_every_steps=500,
            checkpoint_every_steps=500,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=128, layers=2, mixer=(SoftmaxConfig(heads=8),)),
        data=MAD(),
        training=TrainingConfig(
            steps=20_000,
            batch=128,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=500),
            steps_per_call=100,
            log_every_steps=500,
            eval_every_steps=2500,
            checkpoint_every_steps=2500,
        ),
    )
