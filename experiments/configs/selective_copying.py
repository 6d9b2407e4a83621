"""Can a decoder write down, in order, the few tokens that stood among noise?

    python -m experiments.run --config=selective_copying --workdir=runs/selective_copying
    python -m experiments.compare --tasks=selective_copying --mixers=softmax,mamba --out=runs/compare

Guessing a token has accuracy 1/14; the look-up is always right.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import SelectiveCopying
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: Mamba's, T=4096, 16 tokens, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=SelectiveCopying(),
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
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=SelectiveCopying(tokens=4096, copies=16),
        training=TrainingConfig(
            steps=100_000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=500),
            steps_per_call=100,
            log_every_steps=500,
            eval_every_steps=2500,
            checkpoint_every_steps=2500,
        ),
    )
