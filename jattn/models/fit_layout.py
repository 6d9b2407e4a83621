"""The sizes of FIT's blocks, and the paper's notation for how many layers there are of each kind."""

import dataclasses
import re

from jattn.contract import divide
from jattn.mixers.softmax import SoftmaxConfig
from jattn.nn.feed_forward import FeedForwardConfig


def parse_layers(text: str) -> tuple[tuple[int, int], ...]:
    """The numbers of local and global layers of every block: '(a)b(a)b', where a missing b is 0.

    >>> parse_layers('(2)1(3)')
    ((2, 1), (3, 0))
    """
    if not re.fullmatch(r'(\([1-9]\d*\)\d*)+', text):
        raise ValueError(f"layers={text!r} must read '(a)b(a)b...': a local layers, at least 1, then b global ones")
    return tuple((int(a), int(b or 0)) for a, b in re.findall(r'\((\d+)\)(\d*)', text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The sizes of a stack's blocks.

    Attributes:
        blocks: the numbers of local and global layers of each.
        width, latent_width: c and d.
        local, latent: attention inside the groups and over the latents, widths filled in.
        feed_forward, norm, remat: of every layer, as in a decoder.
        cross_feed_forward: of the exchanges between tokens and latents; None: none.
        shifted: whether tokens read the latents of the group before theirs.
        conditioned: whether the latents read a condition before their layers.
        chunk: groups at a time whose layers stand in memory; None: all.
    """

    blocks: tuple[tuple[int, int], ...]
    width: int
    latent_width: int
    local: SoftmaxConfig
    latent: SoftmaxConfig
    feed_forward: FeedForwardConfig | None
    norm: str
    remat: str
    cross_feed_forward: FeedForwardConfig | None = None
    shifted: bool = False
    conditioned: bool = False
    chunk: int | None = None

    @property
    def heads(self) -> tuple[int, int]:
        """(H, K) of the exchanges: the fewer heads and the narrower width of the two sides."""
        heads = min(self.local.heads, self.latent.heads)
        return heads, divide('min(width, latent_width)', min(self.width, self.latent_width), 'cross heads', heads)

    def is_last(self, block: int) -> bool:
        """Whether no block follows."""
        return block == len(self.blocks) - 1

    def exchange_flops(self, queries: int, keys: int, width: int, source: int) -> int:
        """Operations of one exchange: `queries` of width `width` read `keys` of width `source`."""
        total = self.heads[0] * self.heads[1]
        ff = 0 if self.cross_feed_forward is None else self.cross_feed_forward.flops(width, queries)
        return 4 * total * (queries * width + keys * source + queries * keys) + ff

    def flops(self, groups: int, tokens: int, latents: int) -> int:
        """Operations of all blocks, for groups of so many tokens and latents; a condition is not counted."""
        ff = 0 if self.feed_forward is None else self.feed_forward.flops(self.width, tokens)
        latent_ff = 0 if self.feed_forward is None else self.feed_forward.flops(self.latent_width, groups * latents)
        total = 0
        for block, (local, latent) in enumerate(self.blocks):
            total += local * groups * (self.local.flops(tokens) + ff)
            if latent:
                total += latent * (self.latent.flops(groups * latents) + latent_ff)
                total += groups * self.exchange_flops(latents, tokens, self.latent_width, self.width)
            if latent and not self.is_last(block):
                total += groups * self.exchange_flops(tokens, latents, self.width, self.latent_width)
        return total
