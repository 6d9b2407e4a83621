"""How configs of testbeds train, where nothing speaks for another way: one schedule a size.

    training=schedules.small(steps=2000)        minutes on two CPU cores
    training=schedules.paper(steps=20_000)      a GPU or a TPU

AdamW; testbeds draw their batches inside a compiled call of many steps, so that all cadences are its multiples.
"""

from jattn.training.experiment import TrainingConfig
from jattn.training.optimizer import AdamWConfig


def small(*, steps: int, batch: int = 64) -> TrainingConfig:
    """Steps of 64 rows at 3e-3, looked at every 500.

    >>> small(steps=2000).optimizer.peak_lr
    0.003
    """
    return TrainingConfig(
        steps=steps,
        batch=batch,
        optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=100),
        steps_per_call=50,
        log_every_steps=100,
        eval_every_steps=500,
        checkpoint_every_steps=500,
    )


def paper(*, steps: int, batch: int = 64) -> TrainingConfig:
    """Steps of 64 rows at 1e-3, looked at every 2500.

    >>> paper(steps=20_000, batch=256).batch
    256
    """
    return TrainingConfig(
        steps=steps,
        batch=batch,
        optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=500),
        steps_per_call=100,
        log_every_steps=500,
        eval_every_steps=2500,
        checkpoint_every_steps=2500,
    )
