"""The sizes of paper 58's rerun, and the mixers that it compares."""

import dataclasses

from experiments.papers.small_models import Setting
from jattn.contract import MixerConfig
from jattn.memories import MEMORIES
from jattn.mixers import ExtractorConfig, MambaConfig, NormalizedAttentionConfig, QLSTMConfig, SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.testbeds import AssociativeRecall
from jattn.training.optimizer import AdamWConfig

SOFTMAX, LINEAR, S6, SSD = 'softmax', 'linear attention', 'S6', 'SSD'
NORMALISERS = ('exp', 'softplus', 'sigmoid')
SIGMOID, REVERSED = 'qLSTM', 'reversed qLSTM'
CONVOLUTION = ExtractorConfig(kind='he', window=4, use_bias=True)  # gated, a filter a channel


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        task: the recall task.
        width: D of the decoders, which have two layers without feed-forward.
        steps, batch: of every training.
        rates: peak learning rates; the best one counts.
        seeds: of every training.
        expansions: n of linear attention.
        expansion: n of normalised attention, S6 and SSD; one of `expansions`.
        normalisers: of normalised attention.
        widths: D of the qLSTMs.
        longer: the task that the qLSTMs are compared on too; None: none.
    """

    task: AssociativeRecall
    width: int
    steps: int
    batch: int
    rates: tuple[float, ...]
    seeds: int
    expansions: tuple[int, ...]
    expansion: int
    normalisers: tuple[str, ...]
    widths: tuple[int, ...]
    longer: AssociativeRecall | None

    @property
    def tasks(self) -> dict[int, AssociativeRecall]:
        """T -> the task of the qLSTMs."""
        return {task.tokens: task for task in (self.task, self.longer) if task is not None}


_SMALL = Size(
    task=AssociativeRecall(vocabulary=64, tokens=32, pairs=4),
    width=32,
    steps=1000,
    batch=32,
    rates=(1e-2,),
    seeds=1,
    expansions=(4, 8, 16, 32),
    expansion=16,
    normalisers=NORMALISERS,
    widths=(16, 32),
    longer=AssociativeRecall(vocabulary=64, tokens=64, pairs=8),
)
_TINY = dataclasses.replace(
    _SMALL,
    task=AssociativeRecall(vocabulary=16, tokens=16, pairs=2),
    width=16,
    steps=10,
    batch=8,
    rates=(5e-3,),
    expansions=(4, 8),
    expansion=8,
    normalisers=('exp',),
    widths=(16,),
    longer=None,
)
_PAPER = dataclasses.replace(
    _SMALL,
    task=AssociativeRecall(vocabulary=8192, tokens=256, pairs=16),
    width=128,
    steps=50_000,
    batch=128,
    rates=(1e-4, 4.6e-4, 2.2e-3, 1e-2),
    seeds=3,
    expansions=(32, 64, 128, 256),
    expansion=128,
    widths=(64, 128, 256, 512),
    longer=AssociativeRecall(vocabulary=8192, tokens=512, pairs=64),
)
SIZES = {'tiny': _TINY, 'small': _SMALL, 'paper': _PAPER}


def linear(expansion: int) -> str:
    """The name of linear attention at a state expansion."""
    return f'{LINEAR}, n = {expansion}'


def attentions(size: Size) -> dict[str, MixerConfig]:
    """With one head, as the authors have them."""
    base = dataclasses.replace(MEMORIES['linear_attention'], heads=1, tile=32)
    return {
        SOFTMAX: SoftmaxConfig(heads=1, rotary_base=None),
        **{linear(n): dataclasses.replace(base, key_dim=n) for n in size.expansions},
        **{
            normaliser: NormalizedAttentionConfig(heads=1, key_dim=size.expansion, normaliser=normaliser, chunk=32)
            for normaliser in size.normalisers
        },
    }


def state_spaces(size: Size) -> dict[str, MixerConfig]:
    """Without the blocks that surround them in their own papers: no convolution, no gate, no norm."""
    mamba2 = dataclasses.replace(MEMORIES['mamba2'], heads=1, key_dim=size.expansion, value_width=1.0, tile=32)
    bare = dataclasses.replace(mamba2.recipe, convolution=0, convolution_activation=False, norm='none', gate='none')
    return {
        S6: MambaConfig(alone=True, state_size=size.expansion, chunk=32),
        SSD: dataclasses.replace(mamba2, recipe=bare),
    }


def members(size: Size) -> dict[tuple[str, float], Setting]:
    """(name, learning rate) -> the training of everything but the qLSTMs."""
    return {
        (name, rate): setting(size, (CONVOLUTION, mixer), size.task, size.width, rate)
        for name, mixer in (attentions(size) | state_spaces(size)).items()
        for rate in size.rates
    }


def lstms(size: Size) -> dict[tuple[str, int, int, float], Setting]:
    """(name, width, T, learning rate) -> the training of a qLSTM; its block has a convolution of four tokens."""
    return {
        (name, width, tokens, rate): setting(size, (QLSTMConfig(expansion=1.0, forget=forget),), task, width, rate)
        for name, forget in ((SIGMOID, 'sigmoid'), (REVERSED, 'reversed'))
        for tokens, task in size.tasks.items()
        for width in size.widths
        for rate in size.rates
    }


def setting(size: Size, mixers: tuple[MixerConfig, ...], task: AssociativeRecall, width: int, rate: float) -> Setting:
    """Two layers."""
    return Setting(
        model=DecoderConfig(width=width, layers=2, mixer=mixers, feed_forward=None, remat='none'),
        data=task,
        steps=size.steps,
        batch=size.batch,
        optimizer=AdamWConfig(peak_lr=rate, warmup_steps=min(size.steps // 10, 500)),
        steps_per_call=100,
    )
