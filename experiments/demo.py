"""A first look in five minutes on two CPU cores: train on real text, continue a prompt, open the model, rerun a claim.

    python -m experiments.demo --out=demo

Everything is left in --out; the same command goes on where it stopped.
"""

import pathlib
import string
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

from experiments import claims, cli, configs
from jattn.models.generate import Sampling, generate_text
from jattn.training import checkpoint, devices
from jattn.training.loop import train
from jattn.understanding import heads
from jattn.understanding.pictures import draw_head_scores

for _name in ('size', 'set', 'out'):
    flags.declare_key_flag(_name)

PROMPTS = ('def read_file(path):\n', 'import os\n', 'class Error(')


def main(argv: Sequence[str]) -> int:
    """Runs the four parts and prints where everything lies."""
    out, started = pathlib.Path(cli.OUT.value or 'demo'), time.monotonic()
    run = out / 'lm_bytes'
    config = configs.load('lm_bytes', cli.SIZE.value, cli.SET.value)

    _title("1. Train a decoder on the bytes of Python's standard library")
    print('\n'.join(devices.report(config.training.mesh)))
    last = train(config, run)
    print(f'validation: {last["eval/bits_per_byte"]:.3f} bits per byte (a uniform guess: 8)')

    _title('2. Continue a prompt')
    model, params, _ = checkpoint.load(run)
    sampling, key = Sampling(temperature=0.6, top_p=0.95), jax.random.key(0)
    for prompt, text in zip(PROMPTS, generate_text(model, params, PROMPTS, 120, key=key, sampling=sampling)):
        print(f'{prompt}{text}\n{"." * 60}')

    _title('3. Open it: what do the heads do on a repeated random block?')
    letters = jnp.array(list(string.ascii_letters.encode()))
    half = 32
    scores = heads.score_heads(model, params, jax.random.key(1), letters, half=half)
    for name in heads.SCORES:
        layer, head, value = scores.best(name)
        print(f'{name.replace("_", " "):<16} best: layer {layer}, head {head}, {value:.2f} of its attention')
    uniform = sum(1 / (t + 1) for t in range(half, 2 * half)) / half
    draw_head_scores(scores, out / 'heads.png', uniform)

    _title('4. Rerun a claim: in-context linear regression (paper 41, tiny)')
    claims.rerun(['41'], out / 'claims', size='tiny')

    _title(f'Done in {time.monotonic() - started:.0f} s; what there is to see')
    for path, what in (
        (run / 'loss.png', 'the loss as it fell'),
        (run / 'metrics.jsonl', 'the numbers'),
        (out / 'heads.png', 'what each head attends to'),
        (out / 'claims', "the claim's lines and pictures"),
        (run / 'checkpoints', 'the model: checkpoint.load(...) opens it in a notebook'),
    ):
        print(f'{path!s:<28} {what}')
    return 0


def _title(text: str) -> None:
    print(f'\n== {text}')


if __name__ == '__main__':
    cli.run(main)
