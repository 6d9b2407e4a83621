"""Novels, byte by byte: decoders trained on short rows and tried on the same held-out bytes in longer ones.

The rows are windows of one document; with a block, a landmark stands after every `block` - 1 bytes.
"""

import dataclasses
import math
from collections.abc import Mapping

from experiments.papers import novels
from experiments.papers.contract import ClaimContext
from experiments.papers.retrieval.settings import Size
from experiments.papers.small_models import Setting, Variables, score_rows, train
from jattn.contract import MixerConfig
from jattn.models.decoder import DecoderConfig
from jattn.training.optimizer import AdamWConfig


def setting(context: ClaimContext, size: Size, mixer: MixerConfig, block: int | None = None) -> Setting:
    """The training of a decoder on the novels of DATA_DIR/books."""
    data = novels.windows(context, size.text_tokens, size.text_bytes)
    return Setting(
        model=DecoderConfig(width=size.width, layers=size.layers, mixer=(mixer,), remat='none'),
        data=dataclasses.replace(data, block=block),
        steps=size.text_steps,
        batch=size.text_batch,
        optimizer=AdamWConfig(peak_lr=5e-3, warmup_steps=20),
    )


def fit(context: ClaimContext, trained: Setting, name: str) -> Variables:
    """The fitted variables."""
    variables, trace = train(trained, context.key(300))
    context.say(f'novels, {name}: {trace["loss"][-1] / math.log(2):.3f} bits per byte in the last steps')
    return variables


def perplexities(
    trained: Setting, variables: Variables, mixers: Mapping[str, MixerConfig], lengths: tuple[int, ...]
) -> dict[str, dict[int, float]]:
    """mixer or policy -> length of the rows -> perplexity of a byte; the bytes are the same at every length."""
    found: dict[str, dict[int, float]] = {name: {} for name in mixers}
    for name, mixer in mixers.items():
        for tokens in lengths:
            model = dataclasses.replace(trained.model, mixer=(mixer,))
            longer = dataclasses.replace(trained, model=model, data=dataclasses.replace(trained.data, tokens=tokens))
            rows = max(trained.data.held_out_bytes // tokens // 2, 1)
            found[name][tokens] = math.exp(score_rows(longer, variables, rows)['loss'])
    return found
