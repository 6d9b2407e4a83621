"""Can a decoder learn a Boolean function from examples in its context, and when is it taught?

    python -m experiments.run --config=boolean --workdir=runs/conjunction
    python -m experiments.run --config=boolean --set data.function=majority --workdir=runs/majority
    python -m experiments.run --config=boolean --set data.teaching=0.5 --workdir=runs/taught
    python -m experiments.compare --tasks=boolean --mixers=softmax,gated_deltanet --out=runs/compare

The score is the accuracy over all points; what elimination, nearest neighbours and the like reach on the same rows
stands below a comparison.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Boolean
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: n=28, 70 points, 12 layers, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=3, mixer=(SoftmaxConfig(heads=4),)),
        data=Boolean(),
        training=TrainingConfig(
            steps=3000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=100, weight_decay=0.0),
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
        model=DecoderConfig(width=256, layers=12, mixer=(SoftmaxConfig(heads=8),), dtype='bfloat16'),
        data=Boolean(inputs=28, points=70),
        training=TrainingConfig(
            steps=15_000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=1e-4, warmup_steps=500, weight_decay=0.0),
            steps_per_call=100,
            log_every_steps=500,
            eval_every_steps=2500,
            checkpoint_every_steps=2500,
            eval_batches=20,
        ),
    )
