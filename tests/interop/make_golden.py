"""Writes golden/NAME.npz: what transformers says of tiny models. `python -m tests.interop.make_golden [NAME ...]`

A file has the config that was saved, the names and shapes of the saved tensors (their values are those of
`tiny_models.values`), and the outputs for `tiny_models.reads(NAME, 1)`. Without names: all.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np

from jattn.interop import safetensors
from tests.interop.tiny_models import ALL, GOLDEN, answer, reference

LEFT_OUT = ('dtype', 'initializer', 'transformers_version', 'use_cache', 'dropout', 'pdrop', 'token_id', 'summary')


def main(names):
    import torch

    GOLDEN.mkdir(exist_ok=True)
    for name in names:
        model = reference(name)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model.save_pretrained(folder)
            config = json.loads((pathlib.Path(folder) / 'config.json').read_text())
            shapes = {name: array.shape for name, array in sorted(safetensors.read(folder).items())}
            logits, _ = answer(name, model, 1)
        config = {field: value for field, value in config.items() if not any(part in field for part in LEFT_OUT)}
        np.savez_compressed(GOLDEN / f'{name}.npz', config=json.dumps(config), shapes=json.dumps(shapes), logits=logits)


if __name__ == '__main__':
    main(sys.argv[1:] or list(ALL))
