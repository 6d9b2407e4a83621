"""The sizes of paper 48's rerun, and what is trained in each of its settings."""

import dataclasses

from experiments.papers.contract import ClaimContext
from experiments.papers.small_models import Data, Setting
from jattn.contract import MixerConfig
from jattn.data import SeriesConfig, UCRConfig
from jattn.mixers import AarenConfig, SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.models.encoder import EncoderConfig
from jattn.testbeds import AssociativeRecall, Control, Events
from jattn.training.optimizer import AdamWConfig

AAREN, SOFTMAX = 'Aaren', 'Transformer'
FORECASTS, CLASSES, EVENTS, CONTROL, RECALL = 'forecasts', 'classification', 'events', 'control', 'recall'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        width, heads, layers: of every model; the feed-forward layers are the library's.
        seeds: of every training.
        steps, batch: by setting.
        classes: the set of the UCR and UEA archives.
        events, control, recall: the testbeds.
        flights: of every policy.
        cost_lengths: of the cost tables; a stream ends at `longest_stream`.
        longest_stream: the longest row that attention reads token by token.
    """

    width: int
    heads: int
    layers: int
    seeds: int
    steps: dict[str, int]
    batch: int
    classes: str
    events: Events
    control: Control
    recall: AssociativeRecall
    flights: int
    cost_lengths: tuple[int, ...]
    longest_stream: int

    def data(self, context: ClaimContext) -> dict[str, Data]:
        """The data of every setting, without those whose data set is not there."""
        found: dict[str, Data] = {}
        if not context.lacks('ett'):
            found[FORECASTS] = SeriesConfig(path=context.data('ett'), horizon=24)
        if not context.lacks('ucr'):
            found[CLASSES] = UCRConfig(path=context.data('ucr'), name=self.classes)
        return found | {EVENTS: self.events, CONTROL: self.control, RECALL: self.recall}


_SMALL = Size(
    width=64,
    heads=4,
    layers=2,
    seeds=2,
    steps={FORECASTS: 200, CLASSES: 200, EVENTS: 300, CONTROL: 300, RECALL: 400},
    batch=32,
    classes='JapaneseVowels',
    events=Events(events=32),
    control=Control(tokens=32),
    recall=AssociativeRecall(vocabulary=32, tokens=32, pairs=8),
    flights=256,
    cost_lengths=(512, 1024, 2048, 4096, 8192, 16384),
    longest_stream=4096,
)
_TINY = dataclasses.replace(
    _SMALL,
    width=16,
    heads=2,
    layers=1,
    seeds=1,
    steps=dict.fromkeys(_SMALL.steps, 5),
    batch=8,
    classes='ItalyPowerDemand',
    events=Events().tiny(),
    control=Control().tiny(),
    recall=AssociativeRecall().tiny(),
    flights=8,
    cost_lengths=(64, 128),
    longest_stream=128,
)
_PAPER = dataclasses.replace(
    _SMALL,
    width=512,
    heads=8,
    layers=4,
    seeds=5,
    steps=dict.fromkeys(_SMALL.steps, 10_000),
    batch=64,
    events=Events(events=256),
    control=Control(tokens=256),
    recall=AssociativeRecall(vocabulary=128, tokens=64, pairs=8),
    flights=1024,
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def mixers(size: Size) -> dict[str, MixerConfig]:
    """The two that are compared; positions are added to what goes into the layers."""
    return {AAREN: AarenConfig(heads=size.heads), SOFTMAX: SoftmaxConfig(heads=size.heads, rotary_base=None)}


def settings(size: Size, context: ClaimContext) -> dict[tuple[str, str], Setting]:
    """(setting, model) -> its training."""
    return {
        (where, name): Setting(
            model=_model(size, where, mixer, _tokens(data)),
            data=data,
            steps=size.steps[where],
            batch=size.batch,
            optimizer=AdamWConfig(peak_lr=3e-3, warmup_steps=min(size.steps[where] // 10, 500)),
        )
        for where, data in size.data(context).items()
        for name, mixer in mixers(size).items()
    }


def _model(size: Size, where: str, mixer: MixerConfig, tokens: int) -> DecoderConfig:
    """A decoder; where a row has one class, an encoder of causal layers that ends in the mean of its tokens."""
    kind = EncoderConfig if where == CLASSES else DecoderConfig
    return kind(width=size.width, layers=size.layers, mixer=(mixer,), max_positions=tokens, remat='none')


def _tokens(data: Data) -> int:
    """T of its rows."""
    if isinstance(data, Events):
        return data.events
    return data.tokens if hasattr(data, 'tokens') else data.rows('train').tokens
