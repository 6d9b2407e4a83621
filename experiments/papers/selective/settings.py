"""The sizes of paper 23's rerun, and the classifiers that it compares."""

import dataclasses

from jattn.mixers.s4d import S4DConfig
from jattn.models.selective_s4 import SelectiveS4Config
from jattn.nn.token_selection import MaskGeneratorConfig
from jattn.testbeds.moving_digits import MovingDigits

PLAIN, RANDOM, MOMENTUM, RAW, PRETRAINED = (
    'all tokens',
    'random tokens',
    'generator, momentum features',
    'generator, raw tokens',
    'generator, after LSMCL',
)
# How evaluation reads the tokens that are kept: multiplied by a mask as in training, or taken out of the sequence,
# where S4 knows the gaps between them, or takes them for neighbours.
MASKED, GAPS, PACKED = 'mask', 'gaps', 'packed'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        video: what is watched.
        width, layers, state: of the classifiers.
        keep: r.
        clips, few: labelled videos, many and few.
        scored: held-out videos.
        steps, batch: of every training on labels, many or few.
        pretrain_steps: of LSMCL.
        clip_frames, strides: frames of its clips, and between two of them in a long and a short one.
        embedding: numbers of a contrasted vector.
        peak_lr: of AdamW.
        seeds: of everything.
        follows: mu of the momentum copy.
        ratio_weight: of the generator's auxiliary loss.
        memory_frames: of the videos whose memory is measured, and `shares` the shares kept.
    """

    video: MovingDigits
    width: int
    layers: int
    state: int
    keep: float
    clips: int
    few: int
    scored: int
    steps: int
    batch: int
    pretrain_steps: int
    clip_frames: int
    strides: tuple[int, int]
    embedding: int
    peak_lr: float
    seeds: int
    follows: float
    ratio_weight: float
    memory_frames: int
    shares: tuple[float, ...]


_SMALL = Size(
    video=MovingDigits(canvas=8, patch=8, classes=3, noise=0.15),
    width=32,
    layers=2,
    state=16,
    keep=0.4,
    clips=4096,
    few=512,
    scored=1024,
    steps=2000,
    batch=32,
    pretrain_steps=1000,
    clip_frames=16,
    strides=(4, 1),
    embedding=32,
    peak_lr=5e-3,
    seeds=1,
    follows=0.01,
    ratio_weight=2.0,
    memory_frames=4096,
    shares=(1.0, 0.7, 0.4),
)
_TINY = dataclasses.replace(
    _SMALL,
    video=MovingDigits(frames=16, canvas=8, patch=4, events=(2, 3), event_frames=2, classes=2),
    width=8,
    state=4,
    clips=32,
    few=16,
    scored=16,
    steps=4,
    batch=8,
    pretrain_steps=4,
    clip_frames=4,
    embedding=8,
    memory_frames=64,
)
_PAPER = dataclasses.replace(
    _SMALL,
    video=MovingDigits(frames=60, canvas=224, patch=16, classes=10),
    width=1024,
    layers=3,
    state=64,
    steps=20_000,
    pretrain_steps=20_000,
    seeds=3,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def classifier(size: Size, selection: str, outputs: int, evaluation: str = GAPS) -> SelectiveS4Config:
    """A classifier of videos, or with other outputs an encoder for the contrast."""
    s4 = S4DConfig(state_size=size.state, implementation='fft')  # a scan where gaps are known: they are uneven
    return SelectiveS4Config(
        width=size.width,
        layers=size.layers,
        s4=dataclasses.replace(s4, use_gaps=True, implementation=None) if evaluation == GAPS else s4,
        grid=size.video.grid,
        selection=selection,
        keep=size.keep,
        generator=MaskGeneratorConfig(),
        evaluation='mask' if evaluation == MASKED else 'gather',
        max_positions=size.video.tokens,
        read_in='linear',
        input_size=size.video.patch**2,
        output_size=outputs,
    )
