"""The one program that trains, evaluates and generates.

python -m experiments.run --config=lm_bytes --workdir=runs/a                        train; the same line resumes
python -m experiments.run --config=lm_bytes --size=tiny --set model.mixer=rg_lru,softmax --workdir=runs/b
python -m experiments.run --config=lm_bytes --init_from=runs/a --set training.steps=100 --workdir=runs/c
python -m experiments.run --config=lm_bytes --init_from=smollm2 --set data.path=DIR --workdir=runs/d
python -m experiments.run --mode=eval --workdir=runs/a
python -m experiments.run --mode=eval --pretrained=smollm2 --config=lm_bytes --set data.path=DIR
python -m experiments.run --mode=generate --workdir=runs/a --prompt='def main('
python -m experiments.run --mode=generate --pretrained=smollm2 --chat --prompt='What is attention?'
python -m experiments.run --list
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli, configs
from jattn.config import ConfigError, override
from jattn.data import CORPORA, TextConfig
from jattn.interop import PRETRAINED, pretrained
from jattn.interop.tokenizer import Tokenizer
from jattn.mixers import MIXERS
from jattn.models import MODELS, DecoderConfig
from jattn.models.generate import Sampling, generate_text
from jattn.poolers import POOLERS
from jattn.testbeds import TESTBEDS
from jattn.training import checkpoint, devices
from jattn.training.evaluate import evaluate, mean_metrics
from jattn.training.experiment import Experiment
from jattn.training.feed import make_feed
from jattn.training.loop import TrainingFailed, make_partition, train
from jattn.training.optimizer import OPTIMIZERS
from jattn.training.step import TrainState, eval_step
from jattn.training.warm_start import published

_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval', 'generate'], 'What to do.')
_LIST = flags.DEFINE_bool('list', False, 'Prints what configs and parts there are by name, and ends.')
_INIT_FROM = flags.DEFINE_string(
    'init_from', None, 'Whose parameters a run starts from: a workdir, or a published model.'
)
_CHAT = flags.DEFINE_bool('chat', False, 'generate with --pretrained: the prompt is what a user says to it.')
_TOKENS = flags.DEFINE_integer('new_tokens', 200, 'generate: how many tokens to add (bytes, of a run).')
_TEMPERATURE = flags.DEFINE_float('temperature', 0.8, 'generate: 0 takes the likeliest token.')
_TOP_K = flags.DEFINE_integer('top_k', None, 'generate: draw from the k likeliest tokens.')
_TOP_P = flags.DEFINE_float('top_p', None, 'generate: draw from the likeliest tokens of this total probability.')
_SEED = flags.DEFINE_integer('sample_seed', 0, 'generate: the seed of the draws.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Several processes on TPU, SLURM or MPI, found by JAX.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'Several processes elsewhere: HOST:PORT of the first.')
_PROCESS = flags.DEFINE_integer('process', None, 'With --coordinator: which one this is, from 0.')
for _name in ('config', 'workdir', 'size', 'set', 'step', 'prompt', 'pretrained', 'processes'):
    flags.declare_key_flag(_name)

PREFILL = 512  # tokens of a call while a published model reads its prompt


def main(argv: Sequence[str]) -> int:
    """Parses, connects, calls the library."""
    if _LIST.value:
        return _list()
    if cli.OUT.value is not None:
        raise ConfigError(f'--out={cli.OUT.value}: a run writes into its --workdir')
    if cli.PRETRAINED.value is not None:
        if _MODE.value == 'train' or cli.WORKDIR.value is not None:
            raise ConfigError(
                f'--pretrained={cli.PRETRAINED.value}: goes with --mode=generate or eval, in place of --workdir; '
                'a run starts from it by --init_from'
            )
        return _generate_pretrained() if _MODE.value == 'generate' else _eval_pretrained()
    if _CHAT.value:
        raise ConfigError('--chat: goes with --pretrained')
    if cli.WORKDIR.value is None:
        raise ConfigError('--workdir is needed: the folder of the run')
    if _MODE.value == 'eval':
        return _eval()
    if _MODE.value == 'generate':
        return _generate()
    return _train(_config(_INIT_FROM.value))


def _config(start: str | None) -> Experiment:
    """The experiment of the flags, with `start` as where its parameters come from."""
    if cli.CONFIG.value is None:
        raise ConfigError(f'--config is needed; there are: {", ".join(configs.names())}')
    config = configs.load(cli.CONFIG.value, cli.SIZE.value)
    if start is not None and pretrained.exists(start):
        config = published(config, start)
    first = [] if start is None else [f'training.init_from={start}']
    return override(config, [*first, *cli.SET.value], configs.TABLES)


def _train(config: Experiment) -> int:
    if config.training.deterministic:
        os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
    devices.connect(_DISTRIBUTED.value, _COORDINATOR.value, cli.PROCESSES.value, _PROCESS.value)
    if jax.process_index() == 0:
        for line in devices.report(config.training.mesh):
            print(line)
    try:
        train(config, cli.WORKDIR.value)
    except TrainingFailed as error:
        print(f'error: {error}')
        return 1
    return 0


def _eval() -> int:
    config = checkpoint.read_config(cli.WORKDIR.value)
    feed = make_feed(config)
    partition = make_partition(config, feed)
    state = partition.replicated(checkpoint.restore(cli.WORKDIR.value, cli.STEP.value, partition.abstract))
    metrics = evaluate(partition, state, feed.eval_batches())
    print(
        f'step {int(partition.first(state.step))}  ' + '  '.join(f'{name} {value}' for name, value in metrics.items())
    )
    return 0


def _eval_pretrained() -> int:
    config = _config(cli.PRETRAINED.value)
    found = pretrained.load(cli.PRETRAINED.value)
    found.check_length(config.data.tokens)
    state = TrainState(jnp.int32(0), found.params, (), {}, jnp.int32(-1))
    score = jax.jit(lambda state, batch: eval_step(config.make_model(), config.data, None, state, batch))
    parts = [jax.device_get(score(state, batch)) for batch in make_feed(config).eval_batches()]
    print('  '.join(f'eval/{name} {value}' for name, value in mean_metrics(parts).items()))
    return 0


def _generate() -> int:
    model, params, config = checkpoint.load(cli.WORKDIR.value, cli.STEP.value)
    if not isinstance(config.data, TextConfig):
        kind = type(config.data).__name__
        raise ConfigError(f'--mode=generate needs a model of text, but {cli.WORKDIR.value} was trained on {kind}')
    prompts = cli.PROMPT.value or ['def ']
    slow = checkpoint.load_collections(cli.WORKDIR.value, cli.STEP.value)
    words = config.data.tokenizer and pretrained.load_tokenizer(config.data.tokenizer)
    texts = generate_text(model, params, prompts, _TOKENS.value, **_draws(), **_ways(words), collections=slow)
    for prompt, text in zip(prompts, texts):
        print(prompt + text)
    return 0


def _generate_pretrained() -> int:
    found = pretrained.load(cli.PRETRAINED.value)
    words, prompts = found.tokenizer, cli.PROMPT.value or ['The capital of France is']
    if words is None or type(found.model.cfg) is not DecoderConfig:
        lack = 'has no tokenizer' if words is None else f'is an {type(found.model.cfg).__name__}'
        raise ConfigError(f'--mode=generate needs a decoder of text, but {cli.PRETRAINED.value} {lack}')
    said = [words.chat(('user', prompt)) for prompt in prompts] if _CHAT.value else prompts
    found.check_length(max(len(words.encode(text)) for text in said) + _TOKENS.value)
    texts = generate_text(found.model, found.params, said, _TOKENS.value, **_draws(), **_ways(words), chunk=PREFILL)
    for prompt, text in zip(prompts, texts):
        print(f'{prompt}\n\n{text}' if _CHAT.value else prompt + text)
    return 0


def _ways(words: Tokenizer | None) -> dict[str, Any]:
    """How text becomes tokens and ends; of bytes where there is no tokenizer."""
    return {} if words is None else dict(encode=words.encode, decode=words.decode, end=words.end)


def _draws() -> dict[str, Any]:
    """How tokens are drawn, from the flags."""
    sampling = Sampling(temperature=_TEMPERATURE.value, top_k=_TOP_K.value, top_p=_TOP_P.value)
    return {'sampling': sampling, 'key': jax.random.key(_SEED.value)}


def _list() -> int:
    print('configs (--config):')
    for name in configs.names():
        print(f'  {name:<20} {configs.summary(name)}')
    for title, table in (
        ('trunks (--set model=NAME)', MODELS),
        ('mixers (--set model.mixer=NAME[,NAME...])', MIXERS),
        ('poolers (--set model.pooler=NAME, of an encoder)', POOLERS),
        ('testbeds (--set data=NAME)', TESTBEDS),
        ('corpora (--set data=NAME)', CORPORA),
        ('optimizers (--set training.optimizer=NAME)', OPTIMIZERS),
        ('published models (--pretrained=NAME, --init_from=NAME)', PRETRAINED),
    ):
        print(f'{title}:\n  ' + ', '.join(table))
    return 0


if __name__ == '__main__':
    cli.run(main)
