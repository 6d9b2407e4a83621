"""Can a decoder say which value a key has, when keys come again and again before one is asked for?

    python -m experiments.run --config=single_recall --workdir=runs/single_recall
    python -m experiments.compare --tasks=single_recall --mixers=softmax,deltanet --out=runs/compare

The associative recall of H3. Guessing a value has accuracy 1/10.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import SingleRecall
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=SingleRecall(),
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
        data=SingleRecall(vocabulary=41, pairs=256),
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
