"""A first look into a model: what its heads do, what its layers already know, which heads a prediction needs.

    python -m experiments.inspect --pretrained=smollm2 --prompt='The Eiffel Tower is in the city of' --out=runs/look
    python -m experiments.inspect --workdir=runs/a --prompt='def main(' --tools=lens,attribution --out=runs/look

Prints a line a finding and writes OUT/inspect.html, one file that needs no network. The tools:

    heads        previous-token, duplicate-token and induction scores on random tokens; sinks on the prompt
    lens         what the stream behind every layer would say, and what each head writes towards the prediction
    attribution  what silencing each head would do to the prediction, to first order; the largest are silenced for real
    attention    the patterns of every head on the prompt

The prediction is the likeliest next token against the second. A tool that needs what a model does not have (patterns of
a recurrent mixer) says so and is left out.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn

from experiments import cli
from jattn.config import ConfigError, nearest
from jattn.data import TextConfig
from jattn.interop import pretrained
from jattn.models.decoder import DecoderConfig
from jattn.models.generate import from_bytes
from jattn.training import checkpoint
from jattn.typing import Array, PyTree
from jattn.understanding import ablate, capture, heads, lens, report
from jattn.understanding.attribution_patching import attribute_replacement

_TOOLS = flags.DEFINE_list('tools', None, 'Which; comma-separated; default: all.')
for _name in ('pretrained', 'workdir', 'step', 'prompt', 'out'):
    flags.declare_key_flag(_name)

CONFIRMED = 5  # heads that are silenced for real


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model on a prompt.

    Attributes:
        model, params, collections: a decoder.
        tokens: [1, T], the prompt.
        pieces: the text of every token.
        piece: id -> its text.
        best, second: the likeliest next tokens.
    """

    model: nn.Module
    params: PyTree
    collections: dict[str, PyTree]
    tokens: Array
    pieces: list[str]
    piece: Callable[[int], str]
    best: int
    second: int

    def metric(self, logits: Array) -> Array:
        """By how much the likeliest token leads."""
        return logits[0, -1, self.best] - logits[0, -1, self.second]

    @property
    def leads(self) -> str:
        """What the metric is, in words."""
        return f'logit of {self.piece(self.best)!r} minus {self.piece(self.second)!r}'


def main(argv: Sequence[str]) -> int:
    """Opens the model, runs the tools, writes the page."""
    names = list(TOOLS) if _TOOLS.value is None else _TOOLS.value
    for name in names:
        if name not in TOOLS:
            raise ConfigError(f'--tools: no tool {name!r}; {nearest(name, TOOLS)}')
    if cli.OUT.value is None:
        raise ConfigError('--out is needed: the folder of the page')
    if len(cli.PROMPT.value) != 1:
        raise ConfigError(f'--prompt is needed once, not {len(cli.PROMPT.value)} times')
    opened = _open(cli.PROMPT.value[0])
    print(f'{opened.tokens.shape[1]} tokens; next: {opened.piece(opened.best)!r}, then {opened.piece(opened.second)!r}')
    parts = []
    for name in names:
        try:
            parts += TOOLS[name](opened)
        except ValueError as error:
            print(f'{name}: left out: {error}')
            parts.append(report.section(name, '', f'left out: {error}'))
    out = pathlib.Path(cli.OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    source = cli.PRETRAINED.value or cli.WORKDIR.value
    report.write(out / 'inspect.html', f'{source}: {cli.PROMPT.value[0]}', parts)
    print(f'written: {out / "inspect.html"}')
    return 0


def _open(prompt: str) -> Opened:
    """The model of the flags and its tokens of the prompt."""
    if (cli.PRETRAINED.value is None) == (cli.WORKDIR.value is None):
        raise ConfigError('one of --pretrained and --workdir is needed: the model')
    collections = {}
    if cli.PRETRAINED.value is not None:
        found = pretrained.load(cli.PRETRAINED.value)
        model, params, words = found.model, found.params, found.tokenizer
    else:
        model, params, config = checkpoint.load(cli.WORKDIR.value, cli.STEP.value)
        collections = checkpoint.load_collections(cli.WORKDIR.value, cli.STEP.value)
        if not isinstance(config.data, TextConfig):
            raise ConfigError(f'{cli.WORKDIR.value} was trained on {type(config.data).__name__}, not on text')
        words = config.data.tokenizer and pretrained.load_tokenizer(config.data.tokenizer)
    if type(model.cfg) is not DecoderConfig:
        raise ConfigError(f'a decoder of text is needed, not {type(model.cfg).__name__}')
    encode, piece = (
        (lambda text: list(text.encode()), lambda n: from_bytes([n]))
        if words is None
        else (words.encode, lambda n: words.pieces([n])[0])
    )
    ids = encode(prompt)
    if len(ids) < 2:
        raise ConfigError(f'--prompt={prompt!r} has {len(ids)} tokens: two are needed')
    tokens = jnp.array([ids], jnp.int32)
    logits = capture.run(model, params, tokens, collections=collections).outputs[0, -1]
    best, second = (int(n) for n in jax.lax.top_k(logits, 2)[1])
    return Opened(model, params, collections, tokens, [piece(n) for n in ids], piece, best, second)


def _heads(opened: Opened) -> list[str]:
    vocabulary = opened.model.cfg.input_size
    half = min(32, vocabulary - 1)
    found = heads.score_heads(
        opened.model, opened.params, jax.random.key(0), jnp.arange(1, vocabulary), batch=2, half=half
    )
    gathered = heads.score_gathering(opened.model, opened.params, opened.tokens, collections=opened.collections)
    parts = []
    for name in heads.SCORES:
        layer, head, score = found.best(name)
        print(f'heads: {name.replace("_", " ")}: layer {layer}, head {head}, {score:.2f} of its attention')
        parts.append(report.head_map(name.replace('_', ' '), getattr(found, name), found.layers))
    print(f'heads: {float(jnp.nanmean(gathered.sink)):.2f} of all attention goes to the first token')
    return [*parts, report.head_map('sink: attention to the first token', gathered.sink, gathered.layers)]


def _lens(opened: Opened) -> list[str]:
    logits = lens.logit_lens(opened.model, opened.params, opened.tokens)[:, 0]
    probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    first = next(n for n in range(len(logits)) if (jnp.argmax(logits[n:], axis=-1) == opened.best).all())
    print(f'lens: {opened.piece(opened.best)!r} is the likeliest from behind layer {first - 1} on')
    rows = []
    for n, row in enumerate(probability):
        shares, ids = jax.lax.top_k(row, 3)
        told = ', '.join(f'{opened.piece(int(i))!r} {float(share):.2f}' for i, share in zip(ids, shares))
        rows.append((str(n - 1) if n else 'read-in', told, float(row[opened.best])))
    columns = ('behind layer', 'would say', f'probability of {opened.piece(opened.best)!r}')
    direction = jnp.zeros((1, logits.shape[-1])).at[0, opened.best].set(1).at[0, opened.second].set(-1)
    curve = np.log10(np.maximum(np.asarray(probability[:, opened.best]), 1e-30))
    parts = [
        report.curves(
            'lens: the prediction behind every layer', {'log10 of its probability': curve}, 'layer', start=-1
        ),
        report.table('lens: what every layer would say', columns, rows),
    ]
    effects = lens.direct_effects(opened.model, opened.params, opened.tokens, direction)
    if effects.layers:
        parts.append(report.head_map(f'direct effects on the {opened.leads}', effects.heads[:, 0], effects.layers))
    return parts


def _attribution(opened: Opened) -> list[str]:
    run = dict(collections=opened.collections)
    silent = ablate.prepare(opened.model, opened.params, opened.tokens, kind='mean', **run)
    guess = attribute_replacement(opened.model, opened.params, opened.tokens, opened.metric, silent, **run)
    chosen = guess.ranked()[:CONFIRMED]
    true = ablate.sweep(opened.model, opened.params, opened.tokens, opened.metric, silent, chosen, **run)
    rows = [(f'layer {layer}, head {head}', guess.at(layer, head), true.at(layer, head)) for layer, head in chosen]
    print(f'attribution: the {opened.leads} is {float(guess.before):.2f}; without a head it changes by')
    for name, guessed, measured in rows:
        print(f'  {name}: {measured:+.2f} (first order {guessed:+.2f})')
    return [
        report.head_map(f'attribution: change of the {opened.leads} without a head', guess.values, guess.layers),
        report.table('the largest, silenced for real', ('head', 'to first order', 'measured'), rows),
    ]


def _attention(opened: Opened) -> list[str]:
    there = capture.index(opened.model, opened.params, opened.tokens, collections=opened.collections)
    if 'pattern' not in there:
        raise ValueError(f'no layer has attention patterns; there is {", ".join(sorted(there))}')
    run = functools.partial(capture.run, opened.model, opened.params, opened.tokens, collections=opened.collections)
    found = run(sites=['pattern'])
    layers = list(found.values['pattern'])
    return [report.attention('attention', opened.pieces, found.stack('pattern')[:, 0], layers)]


TOOLS: dict[str, Callable[[Opened], list[str]]] = {
    'heads': _heads,
    'lens': _lens,
    'attribution': _attribution,
    'attention': _attention,
}

if __name__ == '__main__':
    cli.run(main)
