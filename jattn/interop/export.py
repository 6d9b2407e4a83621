"""Our decoders for others: a Hugging Face folder of a Llama, which most programs that run language models can read.

    model, params, _ = checkpoint.load(workdir)
    export(model.cfg, params, folder)                       # config.json, model.safetensors
    found = pretrained.load(folder)                         # and back: the same logits

A Llama's embedding has no scale. Ours, s, is folded into the table; where the read-out is tied to that table, the gain
of the last norm is divided by s, so that the logits stay. Weights are float32. A tokenizer is not written: models of
bytes have none.
"""

import dataclasses
import json
import pathlib

from jattn.interop import safetensors
from jattn.interop.llama import LLAMA
from jattn.interop.rules import save
from jattn.models.decoder import DecoderConfig
from jattn.typing import PyTree


def export(cfg: DecoderConfig, params: PyTree, folder: str | pathlib.Path, *, longest: int | None = None) -> None:
    """Writes a decoder as a Llama.

    Args:
        cfg: of the decoder.
        params: its parameters.
        folder: is made if need be; files of the same names are replaced.
        longest: tokens of the longest rows that it was trained on; None: the folder does not say.

    Raises:
        ConfigError: a Llama cannot hold the decoder; names the field, its value and what it must be. Nothing is
            written.

    >>> from jattn.mixers.softmax import SoftmaxConfig
    >>> cfg = DecoderConfig(mixer=(SoftmaxConfig(window=8),), read_in='tokens', input_size=9, output_size=9)
    >>> export(cfg, {}, 'folder')
    Traceback (most recent call last):
    ...
    jattn.config.ConfigError: mixer.0.window=8 must be None in a Llama
    """
    said = LLAMA.describe(dataclasses.replace(cfg, embed_scale=1.0))
    if longest is not None:
        said['max_position_embeddings'] = longest
    tensors = save(LLAMA.rules(cfg), fold_embed_scale(cfg, params), cfg)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / 'model.safetensors', tensors)
    (folder / 'config.json').write_text(json.dumps(said, indent=2) + '\n')


def fold_embed_scale(cfg: DecoderConfig, params: PyTree) -> PyTree:
    """The parameters of the same decoder with embed_scale 1 (norms of kind 'rms')."""
    scale = cfg.width**0.5 if cfg.embed_scale is None else cfg.embed_scale
    params = {**params, 'embedding': params['embedding'] * scale}
    if cfg.tied:
        params['final_norm'] = {'scale': params['final_norm']['scale'] / scale}
    return params
