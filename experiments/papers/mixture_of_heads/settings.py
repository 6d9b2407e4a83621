"""The sizes of paper 54's rerun, and the attentions that it compares."""

import dataclasses

from jattn.contract import MixerConfig
from jattn.mixers import SoftmaxConfig
from jattn.mixers.mixture_of_heads import MixtureOfHeadsConfig

PAPER = '54'
BALANCE = 0.01  # weight of the balance loss, of its mean over layers
FULL, SIX, FOUR = 'softmax, 8 heads', 'softmax, 6 heads', 'softmax, 4 heads'
MOH_75, MOH_50 = 'MoH, 6 of 8', 'MoH, 4 of 8'
UNBALANCED, PRINTED = 'MoH, 6 of 8, no balance loss', 'MoH, 6 of 8, printed gates'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        width, layers: of decoders and vision encoders; eight heads.
        shared: Hs.
        titles: of the novels that are learned from; None: all nine.
        tokens, batch, steps, peak_lr: of the decoders.
        held_out_bytes: that are scored.
        tune_steps: of a trained softmax decoder that goes on as MoH.
        seeds: of the decoders.
        image_steps, image_batch: of the vision encoders, on digits.
        cost_lengths, cost_width: of the cost table.
        repeats: of every timing.
    """

    width: int
    layers: int
    shared: int
    titles: tuple[str, ...] | None
    tokens: int
    batch: int
    steps: int
    peak_lr: float
    held_out_bytes: int
    tune_steps: int
    seeds: int
    image_steps: int
    image_batch: int
    cost_lengths: tuple[int, ...]
    cost_width: int
    repeats: int


_SMALL = Size(
    width=64,
    layers=2,
    shared=2,
    titles=('emma', 'great_expectations', 'sherlock_holmes'),
    tokens=128,
    batch=8,
    steps=400,
    peak_lr=5e-3,
    held_out_bytes=2**16,
    tune_steps=100,
    seeds=2,
    image_steps=200,
    image_batch=32,
    cost_lengths=(512, 1024, 2048, 4096, 8192, 16384),
    cost_width=32,
    repeats=3,
)
_TINY = dataclasses.replace(
    _SMALL,
    width=16,
    tokens=16,
    batch=4,
    steps=20,
    held_out_bytes=2**10,
    tune_steps=10,
    seeds=1,
    image_steps=10,
    image_batch=4,
    cost_lengths=(32, 64),
    repeats=1,
)
_PAPER = dataclasses.replace(
    _SMALL,
    width=768,
    layers=12,
    titles=None,
    tokens=2048,
    batch=64,
    steps=20_000,
    peak_lr=1e-3,
    held_out_bytes=2**19,
    tune_steps=2_000,
    seeds=3,
    image_steps=20_000,
    image_batch=256,
    cost_width=768,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def attentions(size: Size, **fields: object) -> dict[str, MixerConfig]:
    """What is compared, by name; all heads have width / 8 channels. `fields` are those of softmax attention."""
    own = dict(head_dim=size.width // 8, **fields)
    moh = MixtureOfHeadsConfig(heads=8, shared=size.shared, active=6 - size.shared, **own)
    return {
        **{name: SoftmaxConfig(heads=heads, **own) for name, heads in ((FULL, 8), (SIX, 6), (FOUR, 4))},
        MOH_75: moh,
        MOH_50: dataclasses.replace(moh, active=4 - size.shared),
        PRINTED: dataclasses.replace(moh, gates='paper'),
    }
