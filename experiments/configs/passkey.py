"""Can a decoder find a value hidden anywhere in noise, and still find it when the noise is longer than in training?

    python -m experiments.run --config=passkey --workdir=runs/passkey

Trained at T=256; longer rows are `Passkey.rows_at(key, batch, depth, tokens)`, streams of any length
`jattn.testbeds.passkey.stream_chunk`. Guessing the digits gives loss ln 10 = 2.30 and accuracy 0.1; the line above
reaches accuracy 0.957 of the digits, 0.830 of whole values.
"""

from experiments import schedules
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import Passkey
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """tiny: seconds; small: minutes on two CPU cores; paper: a GPU or a TPU."""
    small = Experiment(
        model=DecoderConfig(width=64, layers=2, mixer=(SoftmaxConfig(heads=2),)),
        data=Passkey(),
        training=schedules.small(steps=1000, batch=32),
    )
    if size == 'tiny':
        return small.tiny()
    if size == 'small':
        return small
    return Experiment(
        model=DecoderConfig(width=256, layers=4, mixer=(SoftmaxConfig(heads=4),), dtype='bfloat16'),
        data=Passkey(tokens=4096, digits=7, needles=4),
        training=schedules.paper(steps=20_000),
    )
