"""How well does an encoder of words, trained from nothing, tell praise from blame in film reviews?

    python -m experiments.run --config=sst2 --set data.path=DIR/sst2 --workdir=runs/sst2
    python -m experiments.run --config=sst2 --set data=ag_news --set data.path=DIR/test.csv.gz --set data.unit=words \\
        --set data.tokens=64 --workdir=runs/ag_news

The folder holds stsa.binary.train, .dev and .test; without a path the texts are synthetic. The score is the accuracy on
the test split, where a guess has 0.5. Another end: --set model.pooler=lama.
"""

from jattn.data import SST2Config
from jattn.mixers import SoftmaxConfig
from jattn.models.encoder import EncoderConfig
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=EncoderConfig(width=64, layers=1, mixer=(SoftmaxConfig(causal=False, heads=4),)),
        data=SST2Config(unit='words', tokens=48),
        training=TrainingConfig(
            steps=400,
            batch=64,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=40),
            log_every_steps=50,
            eval_every_steps=200,
            checkpoint_every_steps=200,
            eval_batches=29,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=EncoderConfig(width=256, layers=4, mixer=(SoftmaxConfig(causal=False, heads=8),)),
        data=SST2Config(unit='words', tokens=48),
        training=TrainingConfig(
            steps=3000,
            batch=128,
            optimizer=AdamWConfig(peak_lr=5e-4, warmup_steps=500),
            eval_every_steps=500,
            checkpoint_every_steps=500,
            eval_batches=15,
        ),
    )
