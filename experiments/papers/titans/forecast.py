"""Long-horizon forecasts with Titans' memory in place of softmax attention.

With `--data_dir` on ETTh1 (DATA_DIR/ett), else on the built-in synthetic series, which is easier than any real one.
"""

from collections.abc import Mapping, Sequence

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.small_models import Setting, compare, mean, score_rows, values
from experiments.papers.titans.settings import HEADS, Size, lmm
from jattn.data import SeriesConfig
from jattn.mixers import SoftmaxConfig
from jattn.models.decoder import DecoderConfig
from jattn.training.optimizer import AdamWConfig

PAPER = '33'
CHUNK = 4  # 96 rows are twelve tokens
Found = Mapping[int, Mapping[str, Sequence[dict[str, float] | None]]]


def measure(context: ClaimContext, size: Size) -> Found:
    """horizon -> mixer -> metrics of every seed, over all windows of the test split."""
    mixers = {'LMM': lmm(CHUNK), 'softmax': SoftmaxConfig(heads=HEADS)}
    settings = {
        (horizon, name): Setting(
            model=DecoderConfig(width=size.series_width, layers=2, mixer=(mixer,), remat='none'),
            data=SeriesConfig(path=context.data('ett'), horizon=horizon),
            steps=size.series_steps,
            batch=size.series_batch,
            optimizer=AdamWConfig(peak_lr=2e-3, warmup_steps=50),
        )
        for name, mixer in mixers.items()
        for horizon in size.horizons
    }
    named = {f'{name}, horizon {horizon}': setting for (horizon, name), setting in settings.items()}
    found = dict(zip(settings, compare(named, size.seeds, score_rows, context.say, context.key(300)).values()))
    return {horizon: {name: found[horizon, name] for name in mixers} for horizon in size.horizons}


def lines(found: Found, context: ClaimContext) -> list[Line]:
    """The memory's error within 2% of softmax's, or below."""
    path = context.data('ett')
    series = 'ETTh1' if path else 'synthetic series'
    out = []
    for horizon, runs in found.items():
        facts = SeriesConfig(path=path, horizon=horizon).facts()
        note = (
            f'mse LMM {values(runs["LMM"], "mse")}, softmax {values(runs["softmax"], "mse")}; '
            f'repeating the last value {facts["last_value_mse"]:.3f}'
        )
        if path is None:
            note += '; ETTh1 with --data_dir'
        ratio = mean(runs['LMM'], 'mse') / mean(runs['softmax'], 'mse')
        claim = f'{series}, 96 -> {horizon}: mse of LMM over softmax'
        out.append(Line.number(PAPER, claim, ratio, below=1.02, note=note))
    return out
