"""The sizes of the reruns of papers 37 and 56."""

import dataclasses

from jattn.testbeds import Passkey

Stage = tuple[int, int, int]  # tokens, rows of a step, steps


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        width, heads, layers: of the decoders.
        passkey: the needle task, at the length of training.
        stages: of the softmax decoder's training, short rows first; the last is at the length of training.
        landmark_stages: of the tuning with landmarks that goes on from there.
        lengths: at which the needle decoders are tried, the first that of training.
        questions: at every length.
        block, retrieved: of landmark attention, l + 1 and k.
        chunk, chunks: of LongHeads, w and n.
        text_tokens, text_batch, text_steps: of the training on novels.
        text_lengths: at which the text decoders are tried; none: text is left out.
        text_bytes: of the held-out novel, the same at every length.
        cost_lengths: of the cost tables.
        repeats: of every timing.
    """

    width: int
    heads: int
    layers: int
    passkey: Passkey
    stages: tuple[Stage, ...]
    landmark_stages: tuple[Stage, ...]
    lengths: tuple[int, ...]
    questions: int
    block: int
    retrieved: int
    chunk: int
    chunks: int
    text_tokens: int
    text_batch: int
    text_steps: int
    text_lengths: tuple[int, ...]
    text_bytes: int
    cost_lengths: tuple[int, ...]
    repeats: int


_SMALL = Size(
    width=64,
    heads=4,
    layers=2,
    passkey=Passkey(tokens=256, digits=2, keys=4, noise=16),
    stages=((32, 64, 200), (256, 8, 100)),
    landmark_stages=((64, 32, 100), (256, 8, 100)),
    lengths=(256, 1024, 4096),
    questions=32,
    block=16,
    retrieved=2,
    chunk=16,
    chunks=8,
    text_tokens=256,
    text_batch=16,
    text_steps=250,
    text_lengths=(256, 512, 1024, 2048),
    text_bytes=2**14,
    cost_lengths=(512, 1024, 2048, 4096, 8192, 16384),
    repeats=2,
)
_TINY = dataclasses.replace(
    _SMALL,
    width=16,
    heads=2,
    passkey=Passkey(tokens=32, digits=1, keys=2, noise=4),
    stages=((32, 4, 5),),
    landmark_stages=((32, 4, 5),),
    lengths=(32, 64),
    questions=8,
    block=4,
    chunk=4,
    chunks=4,
    text_lengths=(),
    cost_lengths=(64, 128),
    repeats=1,
)
_PAPER = dataclasses.replace(
    _SMALL,
    width=1024,
    heads=8,
    layers=12,
    passkey=Passkey(tokens=512, digits=5),
    stages=((64, 128, 5000), (512, 64, 15_000)),
    landmark_stages=((512, 64, 15_000),),
    lengths=(512, 2048, 4096, 8192),
    questions=500,
    block=51,
    chunk=32,
    chunks=16,
    text_tokens=512,
    text_batch=128,
    text_steps=240_000,
    text_lengths=(512, 1024, 2048, 4096),
    text_bytes=2**19,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}
