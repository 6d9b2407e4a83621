"""Can a decoder copy a string, or say what stands beside a part of it?

    python -m experiments.run --config=copying --workdir=runs/copying
    python -m experiments.compare --tasks=copying --mixers=softmax,deltanet --out=runs/compare

The tasks of "Repeat After Me"; the table look-up below a comparison is always right.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Copying
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=Copying(),
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
        model=DecoderConfig(width=512, layers=6, mixer=(SoftmaxConfig(heads=8),)),
        data=Copying(),
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
