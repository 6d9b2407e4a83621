"""Can a decoder with landmark attention find a value hidden in noise, and read two blocks of it in place of all?

    python -m experiments.run --config=landmarked --workdir=runs/landmarked
    python -m experiments.run --config=landmarked --workdir=runs/tuned --set training.init_from=runs/passkey

Every 16th token is a landmark. The second line goes on from the plain decoder of `--config=passkey`, trained with
`--set data.digits=2 --set data.keys=4 --set data.noise=16`. Guessing the digits gives loss ln 10 = 2.30.
"""

from jattn.mixers.landmark import LandmarkConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Landmarked, Passkey
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(LandmarkConfig(heads=2, block=16),)),
        data=Landmarked(task=Passkey(tokens=128, digits=2, keys=4, noise=16), block=16),
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
        model=DecoderConfig(width=256, layers=4, mixer=(LandmarkConfig(heads=4, block=51),), dtype='bfloat16'),
        data=Landmarked(task=Passkey(tokens=4096, digits=7, needles=4), block=51),
        training=TrainingConfig(
            steps=20_000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=500),
            log_every_steps=500,
            eval_every_steps=2500,
            checkpoint_every_steps=2500,
        ),
    )
