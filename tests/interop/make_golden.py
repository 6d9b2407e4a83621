"""Writes golden/NAME.npz: what transformers says of every tiny model. `python -m tests.interop.make_golden`

A file has the config that was saved, the names and shapes of the saved tensors (their values are those of
`tiny_models.values`), and the logits of `tiny_models.tokens(1)`.
"""

import json
import pathlib
import tempfile

import numpy as np

from jattn.interop import safetensors
from tests.interop.tiny_models import CONFIGS, GOLDEN, reference, tokens

LEFT_OUT = ('dtype', 'initializer', 'transformers_version', 'use_cache', 'dropout', 'pdrop', 'token_id', 'summary')


def main():
    import torch

    GOLDEN.mkdir(exist_ok=True)
    for name in CONFIGS:
        model = reference(name)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model.save_pretrained(folder)
            config = json.loads((pathlib.Path(folder) / 'config.json').read_text())
            shapes = {name: array.shape for name, array in sorted(safetensors.read(folder).items())}
            logits = model(torch.from_numpy(tokens(1)).long()).logits.numpy()
        config = {field: value for field, value in config.items() if not any(part in field for part in LEFT_OUT)}
        np.savez_compressed(GOLDEN / f'{name}.npz', config=json.dumps(config), shapes=json.dumps(shapes), logits=logits)


if __name__ == '__main__':
    main()
