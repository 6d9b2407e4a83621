"""Can a decoder learn regression of a simple function in context, and is it least squares that it does?

    python -m experiments.run --config=regression --workdir=runs/regression
    python -m experiments.run --config=regression --set data.function=decision_tree --workdir=runs/trees
    python -m experiments.run --config=regression --size=paper --set data.curriculum=linear --workdir=runs/garg
    python -m experiments.compare --tasks=regression --mixers=softmax,gated_deltanet --out=runs/compare

Errors by the number of examples are divided by the variance of the function: a predictor of 0 scores 1.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Regression
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: Garg's, 20 coordinates, 12 layers, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=3, mixer=(SoftmaxConfig(heads=4),)),
        data=Regression(),
        training=TrainingConfig(
            steps=5000,
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
        data=Regression(dim=20, points=41),
        training=TrainingConfig(
            steps=500_000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=1e-4, warmup_steps=500, weight_decay=0.0),
            steps_per_call=100,
            log_every_steps=2000,
            eval_every_steps=20_000,
            checkpoint_every_steps=20_000,
            eval_batches=20,
        ),
    )
