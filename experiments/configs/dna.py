"""Does a decoder predict the bases of a genome better than a Markov model that counts?

    python -m experiments.run --config=dna --set data.path=DIR/lambda_phage.fa.gz --workdir=runs/dna
    python -m experiments.run --config=dna --set data.task=classify --set data.path=DIR/dna_binary_101bp.tsv.gz \\
        --set data.fold=0 --workdir=runs/dna_classify

The score is `bits_per_base` on the last 20% of the genome. On phage lambda (48,502 bases) a uniform guess has 2 bits,
Markov models of order 0, 3, 5 have 2.000, 1.981, 2.053 (`DnaConfig.facts()`); on the synthetic genome that stands in
without a path 2.000, 1.907, 1.812. With data.task=classify the score is the accuracy on the fold that is held out.
"""

from jattn.data import DnaConfig
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.training.experiment import Experiment, TrainingConfig
from jattn.training.optimizer import AdamWConfig


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU, and a longer genome than phage lambda."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=4),)),
        data=DnaConfig(),
        training=TrainingConfig(
            steps=400,
            batch=16,
            optimizer=AdamWConfig(peak_lr=2e-3, warmup_steps=40),
            log_every_steps=50,
            eval_every_steps=100,
            checkpoint_every_steps=100,
        ),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=256, layers=8, mixer=(SoftmaxConfig(heads=8),), dtype='bfloat16'),
        data=DnaConfig(tokens=1024),
        training=TrainingConfig(
            steps=10_000,
            batch=64,
            optimizer=AdamWConfig(peak_lr=6e-4, warmup_steps=500),
            eval_every_steps=500,
            checkpoint_every_steps=500,
        ),
    )
