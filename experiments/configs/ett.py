"""How well does a decoder forecast electricity transformers from the last 96 rows, against repeating the last value?

    python -m experiments.run --config=ett --set data.path=DIR/ETTh1.csv.gz --workdir=runs/ett
    python -m experiments.run --config=ett --set data.path=DIR/ETTh1.csv.gz --set data.horizon=192 --workdir=runs/ett192

Another mixer: --set model.mixer=titans_lmm. The files are those of the repository zhouhaoyi/ETDataset; without a path
the series is synthetic. Scores are `mse` and `mae` on the standardised scale, over all windows of the test split of an
hourly set (ETTm1 needs --set training.eval_batches=1250). Repeating the last value gives, at horizon 96, mse 1.294 and
mae 0.713 on ETTh1, 0.432 and 0.422 on ETTh2, 1.214 and 0.665 on ETTm1 (`SeriesConfig.facts()`). The first line above
reaches mse 0.437 and mae 0.435.
"""

from jattn.data import SeriesConfig
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=32, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=SeriesConfig(),
        training=TrainingConfig(
            steps=1000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=100),
            log_every_steps=100,
            eval_every_steps=500,
            checkpoint_every_steps=500,
            eval_batches=305,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=128, layers=3, mixer=(SoftmaxConfig(heads=8),)),
        data=SeriesConfig(),
        training=TrainingConfig(
            steps=10_000,
            batch=128,
            optimizer=AdamWConfig(peak_lr=3e-4, warmup_steps=500),
            log_every_steps=100,
            eval_every_steps=1000,
            checkpoint_every_steps=1000,
            eval_batches=625,
        ),
    )
