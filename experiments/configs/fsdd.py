"""How well does an encoder of log-mel frames tell spoken digits apart?

    python -m experiments.run --config=fsdd --set data.path=DIR/fsdd_1500.npz --workdir=runs/fsdd
    python -m experiments.run --config=fsdd --set data.path=DIR/fsdd_1500.npz --set data.target=speaker \\
        --set model.mixer=s4d --set model.pooler=last --workdir=runs/fsdd_speaker

The file holds the recordings of the Free Spoken Digit Dataset (`FSDDConfig` says how); without a path they are
synthetic. The score is the accuracy on the recordings with an index below 5.
"""

from jattn.data import FSDDConfig
from jattn.mixers import SoftmaxConfig
from jattn.models.encoder import EncoderConfig
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=EncoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(causal=False, heads=4),)),
        data=FSDDConfig(),
        training=TrainingConfig(
            steps=400,
            batch=32,
            optimizer=AdamWConfig(peak_lr=2e-3, warmup_steps=40),
            log_every_steps=50,
            eval_every_steps=200,
            checkpoint_every_steps=200,
            eval_batches=10,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=EncoderConfig(width=256, layers=6, mixer=(SoftmaxConfig(causal=False, heads=8),)),
        data=FSDDConfig(),
        training=TrainingConfig(
            steps=5000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=5e-4, warmup_steps=500),
            eval_every_steps=500,
            checkpoint_every_steps=500,
            eval_batches=5,
        ),
    )
