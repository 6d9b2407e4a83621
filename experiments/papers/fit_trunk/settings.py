"""The sizes of paper 30's rerun, and the models that it compares."""

import dataclasses

from jattn.mixers import SoftmaxConfig
from jattn.models import DecoderConfig
from jattn.models.fit import FITConfig
from jattn.models.fit_decoder import FITDecoderConfig
from jattn.models.trunk import TrunkConfig

FIT, LOCAL, FLAT = 'FIT', 'local layers only', 'flat Transformer'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        width, heads: of all decoders, tokens and latents alike.
        group, latents: n and m.
        layers: of FIT, in the paper's notation; the flat Transformer has as many layers in all.
        tokens: T of a row of text.
        letters: of a planted name.
        stages: of the training, (tokens, rows of a step, steps), short rows first; the last are of `tokens`.
        seeds: of every decoder.
        scored: held-out rows.
        lengths: of the cost tables, T.
        flat_longest: the longest T that the flat Transformer's training step is run at.
        cost_width: of the cost tables' models.
        repeats: of every timing.
        image, patch: pixels of the large image's side and of its patches'.
        large_width, large_latent_width, large_layers, large_group, large_latents, large_chunk: of the encoder that
            trains on it.
    """

    width: int
    heads: int
    group: int
    latents: int
    layers: str
    tokens: int
    letters: int
    stages: tuple[tuple[int, int, int], ...]
    seeds: int
    scored: int
    lengths: tuple[int, ...]
    flat_longest: int
    cost_width: int
    repeats: int
    image: int
    patch: int
    large_width: int
    large_latent_width: int
    large_layers: str
    large_group: int
    large_latents: int
    large_chunk: int


_SMALL = Size(
    width=64,
    heads=4,
    group=32,
    latents=8,
    layers='(1)1(1)',
    tokens=512,
    letters=8,
    stages=((256, 16, 800), (512, 8, 50)),
    seeds=1,
    scored=64,
    lengths=(512, 1024, 2048, 4096, 8192, 16384),
    flat_longest=4096,
    cost_width=32,
    repeats=2,
    image=6400,
    patch=16,
    large_width=512,
    large_latent_width=512,
    large_layers='(4)4(4)4(4)',
    large_group=256,
    large_latents=32,
    large_chunk=25,
)
_TINY = dataclasses.replace(
    _SMALL,
    width=16,
    heads=2,
    group=16,
    latents=2,
    layers='(1)1(1)',
    tokens=96,
    letters=2,
    stages=((48, 4, 4), (96, 4, 4)),
    scored=8,
    lengths=(64, 128),
    flat_longest=128,
    cost_width=16,
    repeats=1,
    image=64,
    patch=8,
    large_width=32,
    large_latent_width=32,
    large_layers='(1)1(1)',
    large_group=16,
    large_latents=4,
    large_chunk=2,
)
_PAPER = dataclasses.replace(
    _SMALL,
    width=512,
    heads=8,
    group=256,
    latents=32,
    layers='(4)4(4)4(4)4(4)',
    tokens=8192,
    stages=((1024, 64, 20_000), (8192, 16, 50_000)),
    seeds=3,
    scored=1024,
    large_latent_width=768,
    large_layers='(4)4(4)4(4)4(4)',
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def decoders(size: Size) -> dict[str, TrunkConfig]:
    """FIT, its local layers alone, and a flat Transformer of equal depth with rotary positions."""
    mixer = SoftmaxConfig(heads=size.heads, rotary_base=None)
    fit = FITDecoderConfig(
        width=size.width,
        group=size.group,
        latents=size.latents,
        groups=size.tokens // size.group,
        layers=size.layers,
        local=mixer,
        latent=mixer,
        remat='none',
    )
    local = ''.join(f'({count})' for count, _ in fit.blocks)
    flat = DecoderConfig(
        width=size.width,
        layers=len(fit.layer_sites()),
        mixer=(SoftmaxConfig(heads=size.heads),),
        norm='layer',
        tied=True,
        remat='none',
    )
    # The slowest first: the others are trained beside it.
    return {FLAT: flat, FIT: fit, LOCAL: dataclasses.replace(fit, layers=local)}


def best_group(tokens: int) -> int:
    """n, the power of two next to T^(1/3).

    >>> [best_group(tokens) for tokens in (512, 1024, 2048, 4096, 8192, 16384)]
    [8, 8, 16, 16, 16, 32]
    """
    return 2 ** round(tokens.bit_length() - 1 and (tokens.bit_length() - 1) / 3)


def scaled(size: Size, tokens: int) -> FITDecoderConfig:
    """FIT for rows of T tokens whose groups grow as T^(1/3), with two latents each."""
    mixer = SoftmaxConfig(heads=2, rotary_base=None)
    group = best_group(tokens)
    return FITDecoderConfig(
        width=size.cost_width,
        group=group,
        latents=2,
        groups=tokens // group,
        layers='(1)1(1)',
        local=mixer,
        latent=mixer,
        read_in='tokens',
        input_size=256,
        output_size=256,
    )


def flat(size: Size, implementation: str | None = None) -> DecoderConfig:
    """The flat Transformer beside it: as many layers."""
    mixer = SoftmaxConfig(heads=2, implementation=implementation)
    return DecoderConfig(
        width=size.cost_width, layers=3, mixer=(mixer,), norm='layer', tied=True, read_in='tokens', input_size=256,
        output_size=256,
    )  # fmt: skip


def large(size: Size) -> FITConfig:
    """The encoder of large images: a classifier of 1000 classes, in bfloat16."""
    mixer = SoftmaxConfig(heads=8, rotary_base=None, causal=False)
    return FITConfig(
        width=size.large_width,
        latent_width=size.large_latent_width,
        group=size.large_group,
        latents=size.large_latents,
        groups=(size.image // size.patch) ** 2 // size.large_group,
        layers=size.large_layers,
        local=mixer,
        latent=mixer,
        patch=size.patch,
        chunk=size.large_chunk,
        read_in='linear',
        input_size=3,
        output_size=1000,
        dtype='bfloat16',
    )
