"""Do the memories hold? Every member at its strongest writes, on hard keys, over thousands of tokens in bfloat16.

    python -m experiments.stability                                             all members, 8192 tokens
    python -m experiments.stability --members=moneta,yaad --tokens=32768 --out=runs/stability

The memory alone is driven, without the layer around it: queries, keys and values are bfloat16, every gate is forced.
The step stands at its bound, momentum and window weights at theirs; the decay forgets all (log a = -1e4, where exp
underflows to 0; RWKV-7, whose decay is bounded, forgets as much as it can) or keeps all (log a = 0). RWKV-7 erases at
its full rate, Comba at the half that it starts with: at the whole, which its sigmoid never reaches, forgetting all has
the eigenvalue -1, and flipping values grow without end.

| keys | | values |
| --- | --- | --- |
| random | all directions | normal |
| identical | one key | one value |
| flipping | one key | one value, its sign turned at every token |
| parallel | cosine .99 with one direction, a new one every token | normal |

Keys have length 1 where the member's layer makes it so, elsewhere sqrt(K); values have length about sqrt(V). Verdicts,
by the norm of what is remembered (weights and momentum), looked at 32 times; the reference is the largest norm of the
first eighth, the fresh memory among it:

    bounded      finite, nothing beyond 1e6, in the second half at most 4 times the reference: random additions that are
                 never forgotten grow as sqrt(T), which is 2.8 times
    grows        the same with 10 times, of a sum without forgetting (dot product or ridge sums, decay 1): linear, 8
                 times, is its nature
    spikes       finite, nothing beyond 1e6, outputs within 100; the median of the second half is within 4 times the
                 reference, but single looks are not. So are networks that end in a norm when all is forgotten at once:
                 at weights near 0 the gradient of the norm is as large as its epsilon lets it be
    UNSTABLE     everything else

A second table is about training: the outer gradient of a fresh layer with its own gates (`layer_gradients.py`).
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from absl import flags
from jax import lax

from experiments import cli, layer_gradients
from jattn.config import ConfigError, nearest
from jattn.contract import Context, Cursor, locate
from jattn.memories import MEMORIES, MemoryConfig
from jattn.memories.learner import RIDGE_INIT
from jattn.memories.paths import PATHS, matrix
from jattn.memories.paths.matrix import MatrixState
from jattn.memories.paths.ridge import RidgeState
from jattn.memories.paths.state import Fresh
from jattn.memories.retention import Lq
from jattn.memories.tokens import Tokens, place
from jattn.training.writers import show
from jattn.typing import Array, Float, Key, PyTree

_MEMBERS = flags.DEFINE_list('members', [], 'Members and extra rows, comma-separated; default: all.')
_LENGTH = flags.DEFINE_integer('tokens', 8192, 'T, a multiple of 256.', lower_bound=256)
flags.declare_key_flag('out')

HEADS, KEYS = 2, 16
KINDS = ('random', 'identical', 'flipping', 'parallel')
DECAYS = ('forget', 'keep')
FORGET = -1e4  # log a; -inf would be NaN in a difference of two
LOOKS = 32
BOUNDED, GROWS, HUGE, LOUD = 4.0, 10.0, 1e6, 100.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A memory and how hard it is driven.

    Attributes:
        memory: its config.
        step: theta of every token; None: the bound of the member's gate.
        fails: the decays at which it is known not to hold.
    """

    memory: MemoryConfig
    step: float | None = None
    fails: tuple[str, ...] = ()


def cases() -> dict[str, Case]:
    """The members as they ship, then literal options that do not hold.

    A network that ends in a norm turns weights of size w into steps of size 1 / w; where all is forgotten towards zero
    these are the next weights, whose logarithm walks at random: outputs stay small, weights do not.
    """
    moneta, delta = MEMORIES['moneta'], MEMORIES['deltanet']
    unclamped = dataclasses.replace(moneta, retention=Lq(low=1e-9, high=1e9))
    return {name: Case(memory) for name, memory in MEMORIES.items()} | {
        'moneta_norm_not_clamped': Case(unclamped, step=0.25, fails=('forget',)),
        'deltanet_chunk_64_step_1': Case(dataclasses.replace(delta, chunk=64), step=1.0, fails=('none',)),
    }


def main(argv: Sequence[str]) -> int:
    """Drives every case and prints the table; exit code 1 if one fails that is not known to."""
    known = cases()
    chosen = _MEMBERS.value or list(known)
    for name in chosen:
        if name not in known:
            raise ConfigError(f'--members: no member {name!r}; {nearest(name, known)}')
    if _LENGTH.value % 256:
        raise ConfigError(f'--tokens={_LENGTH.value} must be a multiple of 256')
    results, failed = [], {}
    for name in chosen:
        rows = drive(known[name], _LENGTH.value, jax.random.key(0))
        results += [{'name': name, **row} for row in rows]
        failed[name] = failures(rows)
        print(f'{name}: ' + (f'UNSTABLE at decay {", ".join(failed[name])}' if failed[name] else 'holds'))
    cli.show_table(make_table(results))
    members = {name: MEMORIES[name] for name in chosen if name in MEMORIES}
    printed = layer_gradients.literal() if not _MEMBERS.value else {}
    gradients = {name: layer_gradients.measure(cfg, jax.random.key(1)) for name, cfg in (members | printed).items()}
    cli.show_table(layer_gradients.make_table(gradients))
    if cli.OUT.value is not None:
        out = pathlib.Path(cli.OUT.value)
        out.mkdir(parents=True, exist_ok=True)
        written = {'states': results, 'gradients': gradients}
        (out / 'stability.json').write_text(json.dumps(written, indent=2) + '\n')
        print(f'written: {out / "stability.json"}')
    new = [name for name in chosen if set(failed[name]) - set(known[name].fails)]
    new += [name for name in members if gradients[name]['verdict'] != 'holds']
    if new:
        print(f'not known to fail: {", ".join(new)}')
    return 1 if new else 0


def failures(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The decays at which some keys are too much."""
    return tuple(dict.fromkeys(row['decay'] for row in rows if row['verdict'] == 'UNSTABLE'))


def drive(case: Case, tokens: int, key: Key) -> list[dict[str, Any]]:
    """Runs one memory on all keys at both decays, side by side as rows.

    Args:
        case: the memory.
        tokens: T, in `LOOKS` calls of at least 64 tokens.
        key: of keys and values.

    Returns:
        a row for each kind of keys and each decay: largest output, largest entry of the memory, growth, verdict.
    """
    cfg = shrink(case.memory)
    decays = DECAYS if cfg.gates.decay is not None else ('keep',)
    names = [(kind, decay) for decay in decays for kind in KINDS]
    call = max(64, tokens // LOOKS)
    state, fresh = first_state(cfg, len(names))
    draw = jax.jit(functools.partial(draw_tokens, cfg, case.step, tuple(names), call))
    fresh_norm = jax.device_get(measure(cfg, jnp.zeros((len(names), 1, 1, 1)), fresh, enter(cfg, fresh, state)))[1]
    outputs, norms, largest, finite = [], [], [], []
    for at in range(0, tokens, call):
        y, state = step(cfg, draw(key, np.int32(at)), fresh, state)
        found = jax.device_get(measure(cfg, y, fresh, state))
        for series, value in zip((outputs, norms, largest, finite), found):
            series.append(value)
    early = max(1, len(norms) // 8)
    rows = []
    for n, (kind, decay) in enumerate(names):
        norm = np.array([value[n] for value in norms])
        # Flipping values cancel to exactly 0 after an even number of tokens.
        reference, late = max(fresh_norm[n], *norm[:early], 1e-6), norm[len(norm) // 2 :]
        row = {
            'keys': kind,
            'decay': decay if cfg.gates.decay is not None else 'none',
            'output': float(max(value[n] for value in outputs)),
            'state': float(max(value[n] for value in largest)),
            'growth': float(late.max() / reference),
            'median_growth': float(np.median(late) / reference),
            'finite': all(bool(value[n]) for value in finite),
        }
        rows.append(row | {'verdict': verdict(row, is_sum(cfg) and decay == 'keep')})
    return rows


def verdict(row: dict[str, Any], is_additive: bool) -> str:
    """The rule at the top of the file.

    >>> row = {'output': 1.0, 'state': 2.0, 'growth': 8.0, 'median_growth': 6.0, 'finite': True}
    >>> verdict(row, is_additive=False), verdict(row, is_additive=True)
    ('UNSTABLE', 'grows')
    """
    if not row['finite'] or not max(row['output'], row['state']) < HUGE:
        return 'UNSTABLE'
    if row['growth'] <= BOUNDED:
        return 'bounded'
    if is_additive and row['growth'] <= GROWS:
        return 'grows'
    return 'spikes' if row['median_growth'] <= BOUNDED and row['output'] <= LOUD else 'UNSTABLE'


def is_sum(cfg: MemoryConfig) -> bool:
    """Whether the memory is a plain sum of what it was told."""
    constant = cfg.architecture.is_linear and cfg.bias.is_constant and not cfg.bias.erases
    return constant or cfg.learner.solver == 'ridge'


def shrink(cfg: MemoryConfig) -> MemoryConfig:
    """The member at two heads of 16 channels; its choices and its chunk stay."""
    return dataclasses.replace(cfg, width=HEADS * KEYS, heads=HEADS, key_dim=KEYS, value_dim=KEYS, persistent=0)


def draw_tokens(
    cfg: MemoryConfig, step: float | None, names: tuple[tuple[str, str], ...], count: int, key: Key, at: Array
) -> Tokens:
    """Tokens at .. at + count - 1 of every row: its kind of keys, its decay, all other gates at their bounds."""
    once, often = jax.random.split(key)
    often = jax.random.fold_in(often, at)
    steps = (cfg.learner.steps,) if cfg.learner.steps > 1 else ()
    shape = (count, HEADS, *steps)

    def row(kind: str) -> tuple[Array, Array, Array]:
        fixed = jax.random.normal(once, (2, 1, HEADS, *[1] * len(steps), KEYS))
        q, k, v = jax.random.normal(often, (3, *shape, KEYS))
        q = q.reshape(count, -1, KEYS)[:, :HEADS]
        same_key, same_value = (jnp.broadcast_to(x, k.shape) for x in fixed)
        if kind in ('identical', 'flipping'):
            k, v = same_key, same_value
        if kind == 'flipping':
            turn = 1 - 2 * ((at + jnp.arange(count)) % 2)
            v = v * turn.reshape(-1, *[1] * (v.ndim - 1))
        if kind == 'parallel':
            towards = _unit(same_key)
            across = _unit(k - jnp.sum(k * towards, axis=-1, keepdims=True) * towards)
            k = 0.99 * towards + math.sqrt(1 - 0.99**2) * across
        length = 1.0 if getattr(cfg.recipe, 'qk_norm', False) else math.sqrt(KEYS)
        return length * _unit(q), length * _unit(k), v

    q, k, v = (jnp.stack(parts) for parts in zip(*(row(kind) for kind, _ in names)))
    return _with_gates(cfg, step, names, q, k, v)


def _with_gates(
    cfg: MemoryConfig, step: float | None, names: tuple[tuple[str, str], ...], q: Array, k: Array, v: Array
) -> Tokens:
    gates, narrow, lead = cfg.gates, jnp.bfloat16, q.shape[:3]
    log_decay = None
    if gates.decay is not None:
        least = -gates.decay.bound if gates.decay.kind == 'bounded' else FORGET
        values = jnp.array([least if decay == 'forget' else 0.0 for _, decay in names])
        channels = (KEYS,) if gates.decay.per == 'channel' else ()
        log_decay = jnp.broadcast_to(values.reshape(-1, *[1] * (2 + len(channels))), (*lead, *channels))
    if cfg.recipe.complement_keys:
        k = -jnp.expm1(log_decay)
    size = strongest_step(cfg) if step is None else step
    of_step = (cfg.learner.steps,) if cfg.learner.steps > 1 else (cfg.values,) if gates.step.per == 'channel' else ()
    if cfg.recipe.normaliser:
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    rate = 0.5 if getattr(cfg.recipe, 'erase_scale', False) else 1.0
    along = _unit(k)
    return Tokens(
        q=q.astype(narrow),
        k=k.astype(narrow),
        v=v.astype(narrow),
        step=jnp.full((*lead, *of_step), size),
        log_decay=log_decay,
        log_momentum=None if gates.momentum is None else jnp.full(lead, math.log(gates.momentum.bound)),
        threshold=None if gates.threshold is None else jnp.full(lead, gates.threshold.bound),
        weight=None if gates.window is None else jnp.ones(lead),
        erase=((rate * along).astype(narrow), along.astype(narrow)) if cfg.bias.erases else None,
    )


def strongest_step(cfg: MemoryConfig) -> float:
    """The bound of the step's gate; 1 where it has none (the time step of Mamba-2)."""
    gate = cfg.gates.step
    if gate.kind == 'time_step':
        return 1.0
    bound = cfg.step_bound if gate.bound is None else gate.bound
    return bound / cfg.keys if gate.over_keys else bound


def first_state(cfg: MemoryConfig, rows: int) -> tuple[tuple, Fresh]:
    """(cursor, place, memory) before the first token, and what the memory starts with."""
    shapes = cfg.architecture.shapes(cfg.keys, cfg.values)
    if cfg.learned_start:
        initial = cfg.architecture.init(jax.random.key(1), shapes, HEADS)
    else:
        initial = tuple(jnp.zeros((HEADS, *shape)) for shape in shapes)
    wanted = cfg.architecture.slow(cfg.values) | cfg.retention.slow(shapes)
    wanted |= {'ridge': ((cfg.keys,), RIDGE_INIT)} if cfg.learner.solver == 'ridge' else {}
    slow = {name: jnp.full((HEADS, *shape), value, jnp.float32) for name, (shape, value) in wanted.items()}
    if cfg.learner.averaged:
        slow['offsets'] = jnp.zeros((HEADS, cfg.chunk))
    fresh = Fresh.of(cfg, initial, slow)
    memory = PATHS[cfg.running_path].empty_state(cfg, rows)
    return (Cursor.fresh(rows), jnp.zeros(rows, jnp.int32), memory), fresh


def enter(cfg: MemoryConfig, fresh: Fresh, state: tuple) -> tuple:
    """The state with every row's memory at its start."""
    cursor, at, memory = state
    start = PATHS[cfg.running_path].fresh_state(cfg, fresh)
    return cursor, at, jax.tree.map(lambda leaf, new: jnp.broadcast_to(new[None], leaf.shape), memory, start)


@functools.partial(jax.jit, static_argnums=0)
def step(cfg: MemoryConfig, tokens: Tokens, fresh: Fresh, state: tuple) -> tuple[Array, tuple]:
    """The outputs of one call, and the state after it."""
    cursor, at, memory = state
    path, shape = PATHS[cfg.running_path], tokens.q.shape[:2]
    rows = locate(Context(), shape, cursor)
    places = place(rows, shape, cfg.chunk, at)
    entered = rows.enter(memory, path.fresh_state(cfg, fresh))
    y, memory = path.run(cfg, tokens, rows, places, fresh, entered)
    return y, (rows.cursor, places.after, memory)


@functools.partial(jax.jit, static_argnums=0)
def measure(cfg: MemoryConfig, y: Array, fresh: Fresh, state: tuple) -> tuple[Float[Array, 'B'], ...]:
    """Of every row: the largest output, the memory's norm and largest entry, and whether all is finite."""
    parts = remembered(cfg, fresh, state[2])
    flat = jnp.concatenate([part.reshape(len(y), -1).astype(jnp.float32) for part in parts], axis=1)
    every = [leaf.reshape(len(y), -1) for leaf in jax.tree.leaves(state[2])] + [y.reshape(len(y), -1)]
    finite = functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf), axis=1) for leaf in every])
    largest = jnp.max(jnp.abs(flat), axis=1)
    # The norm of what is scaled to 1 does not overflow.
    scale = jnp.where(largest > 0, largest, 1)
    norm = scale * jnp.sqrt(jnp.sum(jnp.square(flat / scale[:, None]), axis=1))
    return jnp.max(jnp.abs(y), axis=(1, 2, 3)).astype(jnp.float32), norm, largest, finite


def remembered(cfg: MemoryConfig, fresh: Fresh, memory: PyTree) -> list[Array]:
    """The arrays [B, ...] that hold what was read: weights and momentum, or the ridge sums."""
    if isinstance(memory, RidgeState):
        return [memory.gram, memory.memory]
    cell = matrix.cell(cfg, fresh, memory) if isinstance(memory, MatrixState) else memory
    weigh = jax.vmap(jax.vmap(cfg.retention.weights), in_axes=(0, None, None))
    weights = weigh(cell.anchor, fresh.initial, fresh.slow)
    return [*weights, *(cell.momentum or ())]


def make_table(results: list[dict[str, Any]]) -> rich.table.Table:
    """A row a member and decay: the worst over its keys, which are named where it matters."""
    table = rich.table.Table(title='the largest over random, identical, flipping and parallel keys')
    for name in ('name', 'decay', 'max |y|', 'max |state|', 'growth', 'of keys', 'finite', 'verdict'):
        table.add_column(name, justify='left' if name in ('name', 'decay', 'verdict') else 'right')
    rank = ['bounded', 'grows', 'spikes', 'UNSTABLE']
    for name, decay in dict.fromkeys((row['name'], row['decay']) for row in results):
        rows = [row for row in results if (row['name'], row['decay']) == (name, decay)]
        worst = max(rows, key=lambda row: (rank.index(row['verdict']), np.nan_to_num(row['growth'], nan=np.inf)))
        table.add_row(
            name,
            decay,
            *(show(float(np.max([row[part] for row in rows]))) for part in ('output', 'state')),
            show(worst['growth']),
            worst['keys'],
            'yes' if all(row['finite'] for row in rows) else 'NO',
            worst['verdict'],
        )
    return table


def _unit(x: Array) -> Array:
    """Length 1 over the channels; zero stays zero."""
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))


if __name__ == '__main__':
    cli.run(main)
