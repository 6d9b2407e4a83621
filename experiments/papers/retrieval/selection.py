"""Which blocks of the past the heads read: of single queries, of a whole row, and the picture of it."""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.papers.contract import ClaimContext
from experiments.papers.retrieval.needles import Trained
from jattn.contract import MixerConfig
from jattn.testbeds import Landmarked, Task
from jattn.typing import Float, Int32
from jattn.understanding import capture


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What was read of some rows.

    Attributes:
        blocks: [L, B, T, H, N], the numbers of the blocks; -1: none.
        needle: [B], the block of the needle's first digit.
        size: tokens of a block.
    """

    blocks: Int32[np.ndarray, 'L B T H N']
    needle: Int32[np.ndarray, 'B']
    size: int

    @property
    def count(self) -> int:
        """Blocks of a row, the last maybe unfinished."""
        return -(-self.blocks.shape[2] // self.size)

    def at_end(self) -> Float[np.ndarray, 'L B H M']:
        """Whether the last query of each layer, row and head reads each block."""
        return np.any(self.blocks[:, :, -1, :, :, None] == np.arange(self.count), axis=3)

    def shares(self, row: int) -> Float[np.ndarray, 'M T']:
        """The share of heads and layers that read a block, by the query's place."""
        reads = np.any(self.blocks[:, row, :, :, :, None] == np.arange(self.count), axis=3)
        return np.mean(reads, axis=(0, 2)).T


def chosen(trained: Trained, mixer: MixerConfig, task: Task, rows: int, context: ClaimContext) -> Chosen:
    """What the mixer's cache policy reads of `rows` rows."""
    batch = task.sample(context.key(901), rows)
    module, rows_alone = (
        trained.setting(mixer, task).module,
        batch.inputs[:, None],
    )  # one by one: taps hold all keys at once
    blocks = [capture.run(module, trained.params, tokens, sites=('chosen',)).stack('chosen') for tokens in rows_alone]
    size, plain = mixer.cache.size, task.task if isinstance(task, Landmarked) else task
    place = np.round(np.asarray(batch.meta['depth']) * (plain.tokens - plain.room)).astype(int) + 2
    if isinstance(task, Landmarked):
        place += place // (task.block - 1)
    return Chosen(np.concatenate(jax.device_get(blocks), axis=1), place // size, size)


def draw(shown: Mapping[str, Chosen], path: pathlib.Path, name: str) -> None:
    """One row of each: block by query, the darker the more heads and layers read it; a line marks the needle's block.

    Args:
        shown: title -> what was read.
        path: of the picture.
        name: of a block.
    """
    figure = Figure(figsize=(6.2 * len(shown), 5), layout='constrained')
    for axis, (title, read) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items()):
        tokens = read.blocks.shape[2]
        shares = read.shares(0)
        image = axis.imshow(
            shares,
            origin='lower',
            aspect='auto',
            cmap='Blues',
            vmin=0,
            vmax=1,
            interpolation='nearest',
            extent=(0, tokens, 0, read.count),
        )
        needle = read.needle[0]
        axis.annotate(
            'needle',
            xy=(tokens, needle + 0.5),
            xytext=(1.02, (needle + 0.5) / read.count),
            textcoords='axes fraction',
            color='tab:red',
            va='center',
        )
        axis.axhline(needle, color='tab:red', linewidth=0.8)
        axis.axhline(needle + 1, color='tab:red', linewidth=0.8)
        axis.set(xlabel='query', ylabel=f'{name} ({read.size} tokens)', title=title)
    figure.colorbar(
        image, ax=figure.axes, label='share of heads and layers that read it', location='bottom', shrink=0.4
    )
    figure.savefig(path, dpi=110)
