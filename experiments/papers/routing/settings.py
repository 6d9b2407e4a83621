"""The sizes of paper 55's rerun, and the attentions that it compares."""

import dataclasses

from jattn.contract import MixerConfig
from jattn.mixers import SoftmaxConfig
from jattn.mixers.routing import RoutingConfig
from jattn.testbeds import AssociativeRecall

PAPER = '55'
FULL, LOCAL, ROUTING = 'all tokens', 'local', 'local and routing'
FROZEN, LEAKY = 'local and routing, frozen centroids', 'local and routing, published selection'
HEADS = 4


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        width, layers: of the decoders, which have four heads, two of them local where two route.
        recall: key-value recall, its pairs far outside of the window.
        recall_window, recall_clusters, recall_members: of the local heads, and of the routing ones.
        recall_steps, recall_batch, recall_lr, seeds: of these trainings.
        tokens, batch, steps, window, clusters, members: of the decoders on novels.
        titles: of the novels that are learned from; None: all nine.
        held_out_bytes: that are scored.
        blanked: rows and places of each where the future is blanked.
        cost_lengths, cost_width: of the cost table; sqrt(T) clusters of sqrt(T) tokens.
        repeats: of every timing.
    """

    width: int
    layers: int
    recall: AssociativeRecall
    recall_window: int
    recall_clusters: int
    recall_members: int
    recall_steps: int
    recall_batch: int
    recall_lr: float
    seeds: int
    tokens: int
    batch: int
    steps: int
    window: int
    clusters: int
    members: int
    titles: tuple[str, ...] | None
    held_out_bytes: int
    blanked: tuple[int, int]
    cost_lengths: tuple[int, ...]
    cost_width: int
    repeats: int


_SMALL = Size(
    width=64,
    layers=2,
    recall=AssociativeRecall(vocabulary=16, tokens=128, pairs=4, power=1.0),
    recall_window=8,
    recall_clusters=8,
    recall_members=16,
    recall_steps=400,
    recall_batch=32,
    recall_lr=5e-3,
    seeds=1,
    tokens=512,
    batch=4,
    steps=400,
    window=16,
    clusters=16,
    members=32,
    titles=('emma', 'great_expectations', 'sherlock_holmes'),
    held_out_bytes=2**16,
    blanked=(16, 16),
    cost_lengths=(512, 1024, 2048, 4096, 8192, 16384),
    cost_width=32,
    repeats=3,
)
_TINY = dataclasses.replace(
    _SMALL,
    width=16,
    recall=AssociativeRecall(vocabulary=16, tokens=32, pairs=2, power=1.0),
    recall_window=4,
    recall_clusters=4,
    recall_members=8,
    recall_steps=10,
    recall_batch=4,
    tokens=32,
    steps=10,
    window=4,
    clusters=4,
    members=4,
    held_out_bytes=2**10,
    blanked=(2, 4),
    cost_lengths=(64, 128),
    repeats=1,
)
_PAPER = dataclasses.replace(
    _SMALL,
    width=1024,
    layers=14,
    recall=AssociativeRecall(vocabulary=64, tokens=1024, pairs=16, power=1.0),
    recall_window=32,
    recall_clusters=32,
    recall_members=32,
    recall_steps=20_000,
    recall_batch=128,
    recall_lr=1e-3,
    seeds=3,
    tokens=4096,
    batch=32,
    steps=50_000,
    window=256,
    clusters=8,
    members=512,
    titles=None,
    held_out_bytes=2**19,
    blanked=(32, 32),
    cost_width=256,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def attentions(window: int, clusters: int, members: int) -> dict[str, MixerConfig]:
    """What is compared, by name. A token that routes does not see itself: its own logit, K, would drown the others."""
    routing = RoutingConfig(
        heads=HEADS,
        local_heads=HEADS // 2,
        window=window,
        clusters=clusters,
        members=members,
        mask_self=True,
        decay=0.99,
    )
    return {
        FULL: SoftmaxConfig(heads=HEADS),
        LOCAL: SoftmaxConfig(heads=HEADS, window=window),
        ROUTING: routing,
        FROZEN: dataclasses.replace(routing, decay=1.0),
        LEAKY: dataclasses.replace(routing, selection='top'),
    }
