"""Can a decoder learn from flights of good and bad pilots to act as one who reaches the return that it is told?

    python -m experiments.run --config=control --workdir=runs/control
    python -m experiments.run --config=control --set model.mixer=aaren --workdir=runs/aaren

The loss is the squared error of the action; `baselines/skill` is that of who knows the pilot. Flights of the fitted
model are `jattn.testbeds.control.Control.fly`, as in paper 48's claim.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Control
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=Control(),
        training=TrainingConfig(
            steps=500,
            batch=32,
            optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=50),
            steps_per_call=50,
            log_every_steps=50,
            eval_every_steps=250,
            checkpoint_every_steps=250,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=256, layers=4, mixer=(SoftmaxConfig(heads=8),), dtype='bfloat16'),
        data=Control(tokens=256),
        training=schedules.paper(steps=20_000),
    )
