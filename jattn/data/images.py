"""Images with a class: handwritten digits (MNIST), clothes (a small Fashion-MNIST), characters of alphabets (Omniglot).

Inputs are [Y, X, 1], pixels between 0 and 1; `--set model=vision` reads them. Without a file the images are synthetic,
`make_images`, of as many classes.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from jattn.data.classes import ClassCorpus, ClassRows, cut, rank_in_class
from jattn.data.corpus import TEST, TRAIN, VALIDATION

SIDE = 28
MADE = {TRAIN: (0, 20), VALIDATION: (20, 25), TEST: (25, 30)}  # synthetic images of a class


def make_images(classes: int, per_class: int = 30, noise: float = 0.2) -> ClassRows:
    """Synthetic images, the classes in turn: a pattern of 7 x 7 random bits of 4 x 4 pixels each, the class's own.

    Each image is the pattern moved by up to 2 pixels, cyclically, with normal noise; all from a fixed seed.

    >>> make_images(3).inputs.shape
    (90, 28, 28, 1)
    """
    draws = np.random.default_rng(0)
    patterns = np.kron(draws.integers(0, 2, (classes, SIDE // 4, SIDE // 4)), np.ones((4, 4)))
    labels = np.tile(np.arange(classes, dtype=np.int32), per_class)
    moves = draws.integers(-2, 3, (len(labels), 2))
    images = np.stack([np.roll(patterns[label], move, axis=(0, 1)) for label, move in zip(labels, moves)])
    images = np.clip(images + noise * draws.normal(size=images.shape), 0, 1)
    return ClassRows(images[..., None].astype(np.float32), labels)


def to_rows(images: np.ndarray, labels: np.ndarray) -> ClassRows:
    """Rows of images of bytes.

    >>> to_rows(np.full((1, 2, 2), 255, np.uint8), np.array([7])).inputs.ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    return ClassRows((images[..., None] / 255).astype(np.float32), labels.astype(np.int32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(ClassCorpus):
    """The base of sets of grey images."""

    kind: ClassVar[str] = 'continuous'
    input_size: ClassVar[int] = 1
    classes: ClassVar[int] = 10

    def make(self) -> dict[str, ClassRows]:
        rows = make_images(self.classes)
        return cut(rows, rank_in_class(rows.labels), MADE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MNISTConfig(ImageConfig):
    """Handwritten digits (LeCun et al. 1998), from an .npz file with x_train, y_train, x_test, y_test, such as Keras'.

    Attributes:
        validation: how many training images, the last ones, are the validation split.

    >>> MNISTConfig().rows('test')[0].inputs.shape, MNISTConfig().output_size
    ((28, 28, 1), 10)
    """

    origin: ClassVar[str] = 'MNIST as an .npz file, such as mnist.npz of Keras'

    validation: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation < 1:
            raise ValueError(f'validation={self.validation} must be at least 1')

    def read(self) -> dict[str, ClassRows]:
        names = ('x_train', 'y_train', 'x_test', 'y_test')
        x_train, y_train, x_test, y_test = self.arrays(self.find(), *names)
        own = len(y_train) - self.validation
        if own < 1:
            raise ValueError(f'data.validation={self.validation} leaves none of the {len(y_train)} training images')
        borders = {TRAIN: (0, own), VALIDATION: (own, len(y_train))}
        return cut(to_rows(x_train, y_train), np.arange(len(y_train)), borders) | {TEST: to_rows(x_test, y_test)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionMiniConfig(ImageConfig):
    """90 images of each class of Fashion-MNIST (Xiao et al. 2017), from an .npz file with x and y.

    Of each class the first two thirds are the training split, then a ninth validation and two ninths test.
    """

    origin: ClassVar[str] = (
        'fashion_900.npz, cut from doc/img/fashion-mnist-sprite.png of the repository zalandoresearch/fashion-mnist'
    )

    def read(self) -> dict[str, ClassRows]:
        images, labels = self.arrays(self.find(), 'x', 'y')
        ninths = 9 * rank_in_class(labels) / np.bincount(labels)[labels]
        return cut(to_rows(images, labels), ninths, {TRAIN: (0, 6), VALIDATION: (6, 7), TEST: (7, 9)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class OmniglotConfig(ImageConfig):
    """Characters of many alphabets, each by 20 drawers (Lake et al. 2015), from an .npz file of packed bits.

    The file has bits_PART [N, 1379] (`np.packbits` of 105 x 105 images, ink is 1) and char_PART [N]; 14 drawers are the
    training split, then 3 validation and 3 test. Images are padded to 112 x 112 and shrunk.

    Attributes:
        part: small1 (136 characters) or small2 (156).
        shrink: pixels of a side that are averaged into one.

    >>> OmniglotConfig(part='small2').output_size
    156
    """

    origin: ClassVar[str] = (
        'omniglot_small.npz, from python/images_background_small1.zip and small2.zip of the repository '
        'brendenlake/omniglot'
    )
    characters: ClassVar[dict[str, int]] = {'small1': 136, 'small2': 156}
    sides: ClassVar[tuple[int, int]] = (105, 112)  # as drawn, and padded

    part: str = 'small1'
    shrink: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part not in self.characters:
            raise ValueError(f'part={self.part!r} must be one of {", ".join(self.characters)}')
        if self.shrink < 1 or self.sides[1] % self.shrink:
            raise ValueError(f'shrink={self.shrink} must divide {self.sides[1]}')

    @property
    def classes(self) -> int:
        return self.characters[self.part]

    def read(self) -> dict[str, ClassRows]:
        bits, labels = self.arrays(self.find(), f'bits_{self.part}', f'char_{self.part}')
        drawn, padded = self.sides
        if bits.shape[1:] != (-(-(drawn**2) // 8),):
            raise ValueError(f'data.path={self.path}: bits_{self.part} must hold images of {drawn} x {drawn}')
        images = np.unpackbits(bits, axis=1)[:, : drawn**2].reshape(-1, drawn, drawn)
        before, small = (padded - drawn) // 2, padded // self.shrink
        images = np.pad(images, ((0, 0), *[(before, padded - drawn - before)] * 2))
        images = images.reshape(-1, small, self.shrink, small, self.shrink).mean(axis=(2, 4), dtype=np.float32)
        rows = ClassRows(images[..., None], labels.astype(np.int32))
        return cut(rows, rank_in_class(labels), {TRAIN: (0, 14), VALIDATION: (14, 17), TEST: (17, 20)})
