"""What a trained model's memories find new in a text: a picture, and the characters that surprised each layer most.

    python -m experiments.surprise --workdir=runs/lm_books --prompt='It was the best of times, it was the worst'
    python -m experiments.surprise --workdir=runs/lm_books --text=BOOK.txt.gz --skip=20000 --characters=160

Writes surprise.png into --out, or into the workdir.
"""

import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli
from jattn.config import ConfigError
from jattn.data import TextConfig
from jattn.data.pieces import read_pieces
from jattn.training import checkpoint
from jattn.training.writers import show
from jattn.understanding.pictures import draw_surprise
from jattn.understanding.surprise import surprise

_SKIP = flags.DEFINE_integer('skip', 0, '--text: bytes before the part that is shown.', lower_bound=0)
_CHARACTERS = flags.DEFINE_integer('characters', 160, '--text: bytes that are shown.', lower_bound=2, upper_bound=2000)
for _name in ('workdir', 'step', 'prompt', 'text', 'out'):
    flags.declare_key_flag(_name)

MOST = 5  # characters named a layer


def main(argv: Sequence[str]) -> int:
    """Opens the run, reads the text, draws."""
    if cli.WORKDIR.value is None:
        raise ConfigError('--workdir is needed: the folder of the run')
    text = _text()
    model, params, config = checkpoint.load(cli.WORKDIR.value, cli.STEP.value)
    if not isinstance(config.data, TextConfig):
        kind = type(config.data).__name__
        raise ConfigError(f'a model of bytes is needed, but {cli.WORKDIR.value} was trained on {kind}')
    slow = checkpoint.load_collections(cli.WORKDIR.value, cli.STEP.value)
    found = surprise(model, params, jnp.array([list(text)], jnp.int32), collections=slow)
    shown = ''.join(chr(byte) if byte < 128 else '\u25a1' for byte in text)  # one sign a byte
    out = pathlib.Path(cli.OUT.value or cli.WORKDIR.value)
    out.mkdir(parents=True, exist_ok=True)
    for layer, values in zip(found.layers, np.asarray(found.surprise[:, 0].mean(axis=-1), np.float32)):
        order = np.argsort(-values)[:MOST]
        most = ', '.join(f'{shown[max(0, t - 8) : t + 1]!r} {show(float(values[t] / values.mean()))}' for t in order)
        print(f'layer {layer}: most surprised at the end of {most} (times its mean)')
    draw_surprise(found, shown, out / 'surprise.png')
    print(f'written: {out / "surprise.png"}')
    return 0


def _text() -> bytes:
    """The bytes of --prompt, or a part of the file --text."""
    prompts, path = cli.PROMPT.value, cli.TEXT.value
    if (path is None) == (not prompts) or len(prompts) > 1:
        raise ConfigError('one --prompt or one --text is needed')
    if prompts:
        text = prompts[0].encode()
    else:
        text, at = b'', 0
        for piece in read_pieces(path, 2**16):
            begin = max(0, _SKIP.value - at)
            text, at = text + piece[begin : begin + _CHARACTERS.value - len(text)], at + len(piece)
            if len(text) == _CHARACTERS.value:
                break
    if len(text) < 2:
        raise ConfigError(
            'the text has fewer than two bytes' + ('' if path is None else f' after --skip={_SKIP.value}')
        )
    return text


if __name__ == '__main__':
    cli.run(main)
