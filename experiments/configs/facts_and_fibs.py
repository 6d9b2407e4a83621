"""Can a decoder tell what a log of events entails from what it refutes?

    python -m experiments.run --config=facts_and_fibs --workdir=runs/facts_and_fibs
    python -m experiments.compare --tasks=facts_and_fibs --mixers=softmax,mamba --out=runs/compare

A claim alone says nothing about its truth: accuracy 1/2. `experiments.claims --only=57` judges facts and fibs in
pairs.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import FactsAndFibs
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: 4,096 events, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=FactsAndFibs(),
        training=TrainingConfig(
            steps=3000,
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
        model=DecoderConfig(width=512, layers=8, mixer=(SoftmaxConfig(heads=4),), dtype='bfloat16'),
        data=FactsAndFibs(events=4096),
        training=TrainingConfig(
            steps=50_000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=500),
            steps_per_call=100,
            log_every_steps=500,
            eval_every_steps=2500,
            checkpoint_every_steps=2500,
        ),
    )
