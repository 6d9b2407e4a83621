"""A published model at work: SmolLM2-135M read and continued beside PyTorch, and its 270 heads opened.

    make models; .venv/bin/pip install torch transformers
    python -m experiments.benchmarks.smollm2 [--pairs=5] [--out=DIR]

One row, float32, greedy. Comparisons, each baseline first:

    the first token behind 512      transformers' LlamaForCausalLM with a cache, ours
    32 tokens behind 128            transformers, ours as it is opened (layers in a loop), ours unrolled
    attribution at all heads        one forward and backward pass to the embeddings, both runs and all heads
    12 heads zeroed in turn         the whole prompt of 256 tokens anew for each, the last 8 behind a cached prefix

The peer reads the same weights: what `interop.export` writes. The record says whether both wrote the same tokens.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli
from experiments.benchmarks import harness
from jattn.config import ConfigError
from jattn.interop import pretrained
from jattn.interop.export import export
from jattn.interop.pretrained import Pretrained
from jattn.models import DecoderConfig
from jattn.models.generate import generate
from jattn.typing import Array, Float, PyTree
from jattn.understanding import ablate, capture
from jattn.understanding.attribution_patching import attribute, gradients
from jattn.understanding.interventions import sweep

flags.adopt_module_key_flags(harness)

NAME = 'smollm2'
PROMPT, MORE = 512, 32
SWEPT, LAST = 256, 8  # tokens of the prompt whose heads are zeroed, and those that are read behind a cache
HEADS = [(layer, 3) for layer in range(6, 30, 2)]


def main(argv: Sequence[str]) -> None:
    """Times each comparison in turn."""
    del argv
    found = pretrained.load(NAME)
    tokens = jax.random.randint(jax.random.key(0), (1, PROMPT), 0, found.tokenizer.size)
    records = [*generation_records(found, tokens), attribution_record(found, tokens), sweep_record(found, tokens)]
    print(harness.table(records))
    print(f'written: {harness.save("smollm2", records, cli.OUT.value)}')


def generation_records(found: Pretrained, tokens: Array) -> list[harness.Record]:
    """The first token, and a number of tokens behind a quarter of the prompt."""
    cfg = found.model.cfg
    loose = dataclasses.replace(cfg, scan=False).make()
    ways = {
        'transformers': peer(found),
        'jattn': functools.partial(written, found.model, found.params),
        'jattn, unrolled': functools.partial(written, loose, unrolled(cfg, found.params)),
    }
    first = {name: functools.partial(way, tokens, 1) for name, way in ways.items()}
    short = tokens[:, : PROMPT // 4]
    more = {name: functools.partial(way, short, MORE) for name, way in ways.items()}
    records = []
    for name, contestants in (
        (f'the first token behind {PROMPT}', first),
        (f'{MORE} tokens behind {PROMPT // 4}', more),
    ):
        texts = {label: np.asarray(run()).tolist() for label, run in contestants.items()}
        facts = {'same tokens': all(text == texts['transformers'] for text in texts.values())}
        records.append(compare(name, contestants, 'transformers', facts))
    return records


def written(model: Any, params: PyTree, tokens: Array, count: int) -> Array:
    """The tokens that a model writes behind a prompt."""
    return generate(model, params, tokens, jnp.array([tokens.shape[1]]), count)[0]


def peer(found: Pretrained) -> Callable[[Array, int], Any]:
    """The same for the peer.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(f'the peer is not installed: pip install torch transformers ({error})') from error
    with tempfile.TemporaryDirectory() as folder:
        export(found.model.cfg, found.params, folder, longest=found.longest)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def write(tokens: Array, count: int) -> np.ndarray:
        ids = torch.from_numpy(np.array(tokens)).long()
        with torch.no_grad():
            options = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True, pad_token_id=0)
            return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].numpy()

    return write


def unrolled(cfg: DecoderConfig, params: PyTree) -> PyTree:
    """The parameters of a decoder of one kind of layer without its loop."""
    layers = {
        f'block_{n}': jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], params['body']['block_0'])
        for n in range(cfg.layers)
    }
    return {**params, 'body': layers}


def attribution_record(found: Pretrained, tokens: Array) -> harness.Record:
    """Every head's effect to first order against one backward pass."""
    clean, other = tokens[:, :SWEPT], tokens[:, SWEPT : 2 * SWEPT]
    contestants = {
        'forward and backward': lambda: gradients(found.model, found.params, clean, top, ('embed',))[2],
        'all heads': lambda: attribute(found.model, found.params, clean, other, top).values,
    }
    return compare('attribution at 270 heads', contestants, 'forward and backward', {'tokens': SWEPT})


def sweep_record(found: Pretrained, tokens: Array) -> harness.Record:
    """Heads zeroed in the last tokens alone, behind a cache, and in the whole prompt, one run a head."""
    model, params, prompt = found.model, found.params, tokens[:, :SWEPT]
    end = prompt[:, -LAST:]
    state = model.cfg.init_state(1, SWEPT)
    state = jax.jit(lambda state: model.apply({'params': params}, prompt[:, :-LAST], state=state)[1])(state)
    heads = ablate.prepare(model, params, prompt, kind='zero')
    behind = ablate.prepare(model, params, end, kind='zero', state=state)

    @jax.jit
    def without(params: PyTree, table: Array) -> Array:
        return top(capture.run(model, params, prompt, edits=heads.edits(table)).outputs)

    contestants = {
        'anew': lambda: [without(params, heads.table([head])) for head in HEADS],
        'behind a cache': lambda: sweep(model, params, end, top, behind, HEADS, state=state, batch_size=4).values,
    }
    return compare(f'{len(HEADS)} heads zeroed', contestants, 'anew', {'tokens': SWEPT, 'behind the cache': LAST})


def top(logits: Float[Array, 'B T E']) -> Float[Array, '']:
    """A metric: the mean of the last token's largest logits."""
    return jnp.mean(jnp.max(logits[:, -1], axis=-1))


def compare(
    name: str, contestants: dict[str, Callable[[], object]], baseline: str, facts: dict[str, object]
) -> harness.Record:
    """A record of few turns: each is seconds long."""
    return harness.compare(
        name, contestants, baseline=baseline, pairs=min(harness.PAIRS.value, 5), seconds=60, facts=facts
    )


if __name__ == '__main__':
    cli.run(main)
