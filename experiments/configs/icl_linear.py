"""Can a decoder learn linear regression in context, and how near does each mixer come to the Bayes predictor?

    python -m experiments.run --config=icl_linear --workdir=runs/icl_linear
    python -m experiments.compare --testbeds=icl_linear --mixers=softmax,linear_attention,rg_lru --out=runs/compare

The score is the squared error on the query's noisy label: 0.1 is the noise, 0.115 Bayes, 1.1 the zero predictor.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import ICLLinear
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=ICLLinear(),
        training=TrainingConfig(
            steps=4000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=2e-3, warmup_steps=200, weight_decay=0.0),
            steps_per_call=100,
            log_every_steps=200,
            eval_every_steps=1000,
            checkpoint_every_steps=1000,
            eval_batches=64,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=256, layers=12, mixer=(SoftmaxConfig(heads=8),), dtype='bfloat16'),
        data=ICLLinear(dim=20, context=160),
        training=TrainingConfig(
            steps=200_000,
            batch=256,
            optimizer=AdamWConfig(peak_lr=3e-4, warmup_steps=2000, weight_decay=0.0),
            steps_per_call=500,
            log_every_steps=1000,
            eval_every_steps=10_000,
            checkpoint_every_steps=10_000,
            eval_batches=64,
        ),
    )
