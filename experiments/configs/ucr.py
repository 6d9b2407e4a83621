"""How well does an encoder classify a series of the UCR and UEA archives?

    python -m experiments.run --config=ucr --set data.path=DIR --workdir=runs/ucr
    python -m experiments.run --config=ucr --set data.path=DIR --set data.name=GunPoint --set model.mixer=rg_lru \\
        --workdir=runs/gunpoint

The folder holds SET.npz (`UCRConfig` says how); without a path the series are synthetic. The score is the accuracy on
the archive's test split.
"""

from jattn.data import UCRConfig
from jattn.mixers import SoftmaxConfig
from jattn.models.encoder import EncoderConfig
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=EncoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(causal=False, heads=4),)),
        data=UCRConfig(),
        training=TrainingConfig(
            steps=300,
            batch=32,
            optimizer=AdamWConfig(peak_lr=2e-3, warmup_steps=30),
            log_every_steps=50,
            eval_every_steps=100,
            checkpoint_every_steps=100,
            eval_batches=12,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=EncoderConfig(width=128, layers=4, mixer=(SoftmaxConfig(causal=False, heads=8),)),
        data=UCRConfig(),
        training=TrainingConfig(
            steps=5000,
            batch=32,
            optimizer=AdamWConfig(peak_lr=5e-4, warmup_steps=500),
            eval_every_steps=500,
            checkpoint_every_steps=500,
            eval_batches=12,
        ),
    )
