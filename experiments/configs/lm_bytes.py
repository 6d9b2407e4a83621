"""How well does a small decoder predict source code, byte by byte?

    python -m experiments.run --config=lm_bytes --workdir=runs/lm_bytes

The text is the Python standard library of the running interpreter; any other with --set data.path=FILE_OR_FOLDER.
"""

from jattn.data.text import TextConfig
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import MuonConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=128, layers=4, mixer=(SoftmaxConfig(heads=4),)),
        data=TextConfig(tokens=256),
        training=TrainingConfig(steps=800, batch=8, optimizer=MuonConfig()),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=768, layers=12, mixer=(SoftmaxConfig(heads=12),), dtype='bfloat16'),
        data=TextConfig(tokens=2048),
        training=TrainingConfig(
            steps=20_000,
            batch=64,
            optimizer=MuonConfig(peak_lr=0.01, adam_peak_lr=1e-3, warmup_steps=500),
            eval_every_steps=1000,
            checkpoint_every_steps=1000,
        ),
    )
