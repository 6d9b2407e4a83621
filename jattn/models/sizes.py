"""The sizes at which Titans and Miras are published, as trunks: Llama's macro-architecture around any mixer.

    python -m experiments.run --config=lm_books --set model=340m --set data.path=DIR --workdir=runs/lmm
    ... --set model=340m --set model.mixer=yaad --set model.mixer.heads=16 --set model.mixer.chunk=64

| name | layers | width | heads | peak learning rate | tokens |
| --- | --- | --- | --- | --- | --- |
| 170m | 12 | 768 | 16 | 3e-3 | 15B |
| 340m | 24 | 1024 | 16 | 1.5e-3 | 15B |
| 780m | 24 | 1536 | 16 | 1.25e-3 | 30B |
| 1.3b | 24 | 2048 | 16 | | 100B |

RMSNorm, SwiGLU of 8/3, bfloat16; the mixer is Titans' memory with chunks of 64. The width of 1.3b is ours: the papers'
notes have its name and tokens alone.
"""

import dataclasses

from jattn.memories import MEMORIES
from jattn.models.decoder import DecoderConfig
from jattn.nn.feed_forward import FeedForwardConfig


def _size(layers: int, width: int) -> DecoderConfig:
    return DecoderConfig(
        width=width,
        layers=layers,
        mixer=(dataclasses.replace(MEMORIES['titans_lmm'], heads=16, chunk=64),),
        feed_forward=FeedForwardConfig(expansion=8 / 3, activation='silu', gated=True),
        dtype='bfloat16',
    )


SIZES: dict[str, DecoderConfig] = {
    '170m': _size(12, 768),
    '340m': _size(24, 1024),
    '780m': _size(24, 1536),
    '1.3b': _size(24, 2048),
}
