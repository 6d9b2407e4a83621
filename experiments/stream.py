"""A stream of any length through a model, call after call, in the memory of one call: recall, bits per byte, speed.

    python -m experiments.stream --workdir=runs/passkey                                 a needle, by length and depth
    python -m experiments.stream --workdir=runs/passkey --lengths=2097152 --depths=0.5 --needles=1
    python -m experiments.stream --workdir=runs/lm_books --text=BOOK.txt.gz             bits per byte of a whole book
    python -m experiments.stream --config=passkey --set model.mixer=titans_lmm          untrained: memory and speed
    python -m experiments.stream --workdir=runs/lm_books --text=PART1 --save_state=FILE
    python -m experiments.stream --workdir=runs/lm_books --text=PART2 --load_state=FILE

Needles: --needles streams a depth, all depths side by side as rows; a cell reads `digits right / whole values right` of
the question at the stream's end. Memory is the process's resident size, sampled at every call. A saved state of a text
goes on with another text; one of needles (--until cuts the stream) goes on in the same stream.
"""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.table
from absl import flags
from flax import linen as nn

from experiments import cli, configs
from experiments.memory_watch import MemoryWatch, device_peak_bytes
from jattn.config import ConfigError
from jattn.data import TextConfig
from jattn.data.pieces import read_pieces
from jattn.models.stream import Stream, advance, open_stream
from jattn.testbeds import Passkey
from jattn.testbeds.passkey import draw_needles, stream_chunk
from jattn.training import checkpoint, stream_file
from jattn.training.experiment import Experiment
from jattn.training.writers import show
from jattn.typing import Array, PyTree

LENGTHS = ['1024', '4096', '16384', '65536', '262144']
_CHUNK = flags.DEFINE_integer('chunk', 1024, 'Tokens of a call.', lower_bound=1)
flags.declare_key_flag('lengths')
_DEPTHS = flags.DEFINE_list('depths', ['0', '0.5', '1'], 'Needles: where they lie, 0 (the start) to 1 (the end).')
_NEEDLES = flags.DEFINE_integer('needles', 4, 'Needles: streams a depth.', lower_bound=1)
_SEED = flags.DEFINE_integer('stream_seed', 0, 'Needles: the seed of the streams.')
_UNTIL = flags.DEFINE_integer('until', None, 'Needles: read no further than this token of the stream.', lower_bound=1)
_BLOCK = flags.DEFINE_integer('block', 16384, 'Text: bytes of a printed line.', lower_bound=1)
_CAPACITY = flags.DEFINE_integer(
    'capacity', None, 'Keys that attention without a window holds; default: the stream.', lower_bound=1
)
_SAVE = flags.DEFINE_string('save_state', None, 'A file for the state after the stream.')
_LOAD = flags.DEFINE_string('load_state', None, 'A file of --save_state to go on from.')
for _name in ('workdir', 'step', 'config', 'size', 'set', 'text', 'out'):
    flags.declare_key_flag(_name)

WARM_UP = 2**14  # tokens of a stream before its memory counts as grown


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model to stream through; `slow` is its slow state, empty for most."""

    model: nn.Module
    params: PyTree
    config: Experiment
    slow: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """Opens the model, streams, prints a table."""
    opened = _open()
    if cli.TEXT.value is not None:
        result = _text(opened, pathlib.Path(cli.TEXT.value))
    elif isinstance(opened.config.data, Passkey):
        result = _needles(opened)
    else:
        kind = type(opened.config.data).__name__
        raise ConfigError(f'--text is needed: a needle stream needs a model of Passkey, and this one reads {kind}')
    peak = device_peak_bytes()
    if peak is not None:
        print(f'device memory, at most: {_megabytes(peak)}')
    if cli.OUT.value is not None:
        out = pathlib.Path(cli.OUT.value)
        out.mkdir(parents=True, exist_ok=True)
        (out / 'stream.json').write_text(json.dumps(result, indent=2) + '\n')
        print(f'written: {out / "stream.json"}')
    return 0


def _open() -> Opened:
    """The trained model of --workdir, or a fresh one of --config."""
    if (cli.WORKDIR.value is None) == (cli.CONFIG.value is None):
        raise ConfigError('either --workdir (a trained model) or --config (a fresh one) is needed')
    if cli.WORKDIR.value is not None:
        slow = checkpoint.load_collections(cli.WORKDIR.value, cli.STEP.value)
        return Opened(*checkpoint.load(cli.WORKDIR.value, cli.STEP.value), slow)
    config = configs.load(cli.CONFIG.value, cli.SIZE.value, cli.SET.value)
    if config.trunk.read_in != 'tokens':
        raise ConfigError(f'--config={cli.CONFIG.value}: a stream is of tokens, and this model reads vectors')
    print('untrained parameters: only memory and speed mean something')
    model, variables = fresh(config)
    return Opened(model, variables.pop('params'), config, variables)


def fresh(config: Experiment) -> tuple[nn.Module, dict[str, PyTree]]:
    """The experiment's model before training, and its variables."""
    model = config.make_model()
    variables = jax.jit(model.init)(jax.random.key(config.training.seed), np.zeros((1, 8), np.int32))
    return model, nn.unbox(dict(variables))


@dataclasses.dataclass
class Pass:
    """A stream on its way through a model: reads pieces, watches memory and time, stops where outputs end."""

    opened: Opened
    stream: Stream
    chunk: int

    def __post_init__(self) -> None:
        self.rows = len(self.stream.tokens)
        self.at = self.begun = int(self.stream.tokens[0])
        self.watch = MemoryWatch(WARM_UP)
        self.seconds, self.timed, self.read = 0.0, 0, 0

    def advance(self, tokens: Array) -> tuple[np.ndarray, np.ndarray]:
        """Reads [B, T <= chunk] tokens; their nats and hits."""
        limit = self.opened.model.cfg.max_positions
        if limit is not None and self.at + tokens.shape[1] > limit:
            raise ConfigError(f'the stream goes past max_positions={limit} of the model')
        started = time.perf_counter()
        opened = self.opened
        scores, self.stream = advance(opened.model, opened.params, self.stream, tokens, self.chunk, opened.slow)
        nats, hits = np.asarray(scores.nats), np.asarray(scores.hits)
        if self.read:  # the first call compiles
            self.seconds += time.perf_counter() - started
            self.timed += tokens.size
        self.at, self.read = self.at + tokens.shape[1], self.read + tokens.size
        if not np.all(np.isfinite(nats)):
            raise ConfigError(f'the outputs are not finite after {self.at} tokens (attention: is --capacity enough?)')
        self.watch.look(self.at - self.begun)
        return nats, hits

    @property
    def tokens_per_second(self) -> float | None:
        """Of all rows, after the first call."""
        return self.timed / self.seconds if self.seconds else None

    def figures(self) -> dict[str, Any]:
        """Memory and speed."""
        return {
            'peak_bytes': self.watch.peak,
            'growth_bytes': self.watch.growth,
            'tokens_per_second': self.tokens_per_second,
        }


def _begin(opened: Opened, rows: int, capacity: int) -> Pass:
    """A fresh stream, or the one of --load_state."""
    stream = open_stream(opened.model, rows, _CAPACITY.value or capacity)
    if _LOAD.value is not None:
        stream = stream_file.load(_LOAD.value, stream, opened.model, opened.params)
        print(f'goes on from {_LOAD.value}, after {int(stream.tokens[0])} tokens')
    return Pass(opened, stream, _CHUNK.value)


def _end(run: Pass) -> None:
    """Saves where --save_state says so."""
    if _SAVE.value is not None:
        stream_file.save(_SAVE.value, run.stream, run.opened.model, run.opened.params)
        print(f'written: {_SAVE.value}, the state after {run.at} tokens')


def _needles(opened: Opened) -> list[dict[str, Any]]:
    """The table of lengths and depths."""
    lengths = [_number(int, 'lengths', text) for text in cli.LENGTHS.value or LENGTHS]
    depths = [_number(float, 'depths', text) for text in _DEPTHS.value]
    for depth in depths:
        if not 0 <= depth <= 1:
            raise ConfigError(f'--depths={depth} must be in 0..1')
    for length in lengths:
        opened.config.data.check_length('--lengths', length)
    if len(lengths) > 1 and (_SAVE.value or _LOAD.value or _UNTIL.value):
        raise ConfigError('--save_state, --load_state and --until go with one stream: give one of --lengths')
    table = rich.table.Table(title=f'{_NEEDLES.value} needles a depth: digits right / whole values right')
    for name in ('tokens', *(f'depth {depth:g}' for depth in depths), 'memory', 'growth', 'tokens/s'):
        table.add_column(name, justify='right', no_wrap=True)
    results = []
    for length in lengths:
        run = _begin(opened, _NEEDLES.value * len(depths), length)
        row = read_needles(run, length, depths, _NEEDLES.value, _SEED.value, _UNTIL.value)
        _end(run)
        results.append(row)
        cells = ['-'] * len(depths) if row['digits'] is None else map(_cell, row['digits'], row['values'])
        growth, speed = row['growth_bytes'], row['tokens_per_second']
        table.add_row(
            str(length),
            *cells,
            _megabytes(row['peak_bytes']),
            '-' if growth is None else _megabytes(growth),
            '-' if speed is None else show(speed),
        )
    cli.show_table(table)
    print(f'memory: resident, at most; growth: after the first {WARM_UP} tokens')
    return results


def read_needles(
    run: Pass, length: int, depths: Sequence[float], needles: int, seed: int = 0, until: int | None = None
) -> dict[str, Any]:
    """Reads needle streams from where the pass stands, `needles` a depth side by side.

    Args:
        run: of needles x depths rows, needle by needle.
        length: tokens of a stream.
        depths: of the needles.
        needles: streams a depth; the same haystack and value at every depth.
        seed: of the streams.
        until: where to stop; None: at the end.

    Returns:
        length; digits and values, the shares right by depth (None where the end was not reached); memory and speed.
    """
    task, stop = run.opened.config.data, length if until is None else min(until, length)
    question = length - task.digits + 1  # where the digits stand that are part of the stream
    if run.at >= stop or (stop != length and stop > question) or (stop == length and run.at > question):
        raise ConfigError(
            f'a stream of {length} tokens cannot be read from token {run.at} to {stop} (the question whole)'
        )
    keys = np.repeat(np.arange(needles), len(depths))
    keys = jax.random.split(jax.random.key(seed), needles)[keys]
    rows = np.tile(np.asarray(depths, np.float32), needles)
    draw = jax.jit(
        lambda start, count: jax.vmap(lambda key, depth: stream_chunk(task, key, start, count, depth, length))(
            keys, rows
        ),
        static_argnums=1,
    )
    right = []
    while run.at < stop:
        start, count = run.at, min(run.chunk, stop - run.at)
        _, hits = run.advance(draw(np.int32(start), run.chunk)[:, :count])
        right.append(hits[:, max(0, question - start) :])
    result = {'length': length, 'depths': list(depths), 'digits': None, 'values': None, **run.figures()}
    if stop == length:
        last = jax.vmap(lambda key: draw_needles(task, key).values[0, -1])(keys)
        right.append(np.asarray(run.stream.logits.argmax(axis=-1) == last)[:, None])
        right = np.concatenate(right, axis=1).reshape(needles, len(depths), task.digits)
        result['digits'] = right.mean(axis=(0, 2)).tolist()
        result['values'] = right.all(axis=2).mean(axis=0).tolist()
    return result


def _text(opened: Opened, path: pathlib.Path) -> dict[str, Any]:
    """Bits per byte along a text."""
    if not isinstance(opened.config.data, TextConfig):
        kind = type(opened.config.data).__name__
        raise ConfigError(f'--text needs a model of bytes, and this one reads {kind}')
    size = sum(map(len, read_pieces(path, 2**20)))
    run = _begin(opened, 1, size)
    result = read_text(run, path, _BLOCK.value, print)
    _end(run)
    speed = result['tokens_per_second']
    print(
        f'{path}: {result["bytes"]} bytes, {result["bits_per_byte"]:.4f} bits per byte, '
        f'memory {_megabytes(result["peak_bytes"])}'
        + ('' if result['growth_bytes'] is None else f' (grown by {_megabytes(result["growth_bytes"])})')
        + ('' if speed is None else f', {show(speed)} bytes/s')
    )
    return result


def read_text(run: Pass, path: pathlib.Path, block: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Reads a text to its end, one document, and says its bits per byte block by block.

    Returns:
        bytes, scored (all but the first of a fresh stream), bits_per_byte, blocks; memory and speed.
    """
    blocks, bits, scored, begun = [], 0.0, 0, run.at
    own, own_scored, since = 0.0, 0, run.at

    def close_block() -> None:
        blocks.append({'from': since, 'to': run.at, 'bits_per_byte': own / max(own_scored, 1)})
        say(f'bytes {since:>9} to {run.at:>9}: {own / max(own_scored, 1):.4f} bits per byte')

    for piece in read_pieces(path, run.chunk):
        fresh_stream = run.at == 0
        nats, _ = run.advance(np.frombuffer(piece, np.uint8).astype(np.int32)[None])
        own += float(nats.sum(dtype=np.float64)) / math.log(2)
        own_scored += len(piece) - fresh_stream
        if run.at - since >= block:
            close_block()
            bits, scored = bits + own, scored + own_scored
            own, own_scored, since = 0.0, 0, run.at
    if run.at > since:
        close_block()
        bits, scored = bits + own, scored + own_scored
    if not scored:
        raise ConfigError(f'{path}: no text to score')
    return {
        'bytes': run.at - begun,
        'scored': scored,
        'bits_per_byte': bits / scored,
        'blocks': blocks,
        **run.figures(),
    }


def _cell(digits: float, values: float) -> str:
    return f'{digits:.2f} / {values:.2f}'


def _megabytes(size: int) -> str:
    return f'{size / 2**20:.1f} MB'


def _number(kind: type, name: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f'--{name}={text}: must be {kind.__name__}') from None


if __name__ == '__main__':
    cli.run(main)
