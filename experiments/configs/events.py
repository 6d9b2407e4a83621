"""Can a decoder tell when the next event comes, and of which kind, from events that excite each other?

    python -m experiments.run --config=events --workdir=runs/events
    python -m experiments.run --config=events --set model.mixer=aaren --workdir=runs/aaren

The loss is nats an event: of the logarithm of the wait, as a normal, and of the kind. `baselines/rates` knows the rates
that nobody sees, `baselines/no_history` forgets every event.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Events
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=Events(),
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
        data=Events(events=1024, kinds=20),
        training=schedules.paper(steps=20_000),
    )
