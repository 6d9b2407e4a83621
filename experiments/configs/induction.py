"""Can a decoder say what followed a marker that it saw once, anywhere before?

    python -m experiments.run --config=induction --workdir=runs/induction
    python -m experiments.compare --tasks=induction --mixers=softmax,mamba --out=runs/compare

Training counts the answer alone; `--set data.scored=all` counts every next token, which some recurrences need to
learn it. Guessing a token has accuracy 1/19.
"""

from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Induction
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: Mamba's, V=16, T=256, a GPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=Induction(),
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
        data=Induction(vocabulary=16, tokens=256),
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
