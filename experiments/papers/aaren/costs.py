"""What reading costs, beside softmax attention with its cache: whole sequences, tokens one by one, the state."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import cost, reading_cost
from experiments.papers.aaren.settings import Size
from experiments.papers.contract import ClaimContext, Line
from experiments.papers.cost import Cost, Make
from experiments.papers.forward import forward, parameters
from experiments.papers.reading_cost import HEADS, STEPS, WIDTH
from jattn.contract import Context, Cursor, MixerConfig
from jattn.mixers import AarenConfig, SoftmaxConfig

PAPER = '48'
AAREN, SOFTMAX = 'Aaren', 'softmax'  # as `reading_cost.py` names what it compares with
LAYERS = {
    AAREN: AarenConfig(width=WIDTH, heads=HEADS),
    SOFTMAX: SoftmaxConfig(width=WIDTH, heads=HEADS, rotary_base=None),
}


def steps(cfg: AarenConfig) -> Make:
    """T -> `STEPS` calls of one token behind T; the state knows no length."""

    def make(tokens: int) -> tuple[Any, tuple]:
        variables, x = forward(cfg, WIDTH)(1)[1]
        state = cfg.init_state(1, tokens)
        state = state.replace(cursor=Cursor(jnp.ones(1, jnp.int32), jnp.full(1, tokens - STEPS, jnp.int32)))

        def generate(variables: Any, x: jax.Array, state: Any) -> jax.Array:
            step = lambda _, carry: cfg.make().apply(variables, carry[0], Context(), carry[1])
            return jax.lax.fori_loop(0, STEPS, step, (x, state))[0]

        return generate, (variables, x, state)

    return make


def stream(cfg: MixerConfig) -> Make:
    """T -> a whole sequence, token by token."""

    def make(tokens: int) -> tuple[Any, tuple]:
        variables, x = forward(cfg, WIDTH)(tokens)[1]
        return functools.partial(one_by_one, cfg), (variables, x)

    return make


def one_by_one(cfg: MixerConfig, variables: Any, x: jax.Array) -> jax.Array:
    """The outputs of x [B, T, D] in T calls of one token."""

    def step(state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        y, state = cfg.make().apply(variables, token[:, None], Context(), state)
        return state, y[:, 0]

    _, y = jax.lax.scan(step, cfg.init_state(len(x), x.shape[1], x.dtype), jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(y, 0, 1)


def table(context: ClaimContext, size: Size) -> dict[str, Cost]:
    """Printed and drawn; 'name, prefill', 'name, steps' and 'name, stream'."""
    makes, longest = {}, {}
    for name, cfg in LAYERS.items():
        makes[f'{name}, prefill'] = forward(cfg, WIDTH)
        makes[f'{name}, steps'] = steps(cfg) if name == AAREN else reading_cost.steps(cfg)
        makes[f'{name}, stream'] = stream(cfg)
        longest[f'{name}, stream'] = size.longest_stream
    found = cost.measure(makes, size.cost_lengths, repeats=3, longest=longest, say=context.say)
    title = f'a layer of {HEADS} heads: T tokens at once, {STEPS} steps behind T, T tokens one by one'
    cost.print_table(title, found, cost.slopes_from(size.cost_lengths))
    cost.draw(found, context.out / 'cost.png', title, cost.slopes_from(size.cost_lengths))
    return found


def lines(found: Mapping[str, Cost], context: ClaimContext, size: Size) -> list[Line]:
    """Linear where attention is quadratic, constant where it is linear."""
    out = [exact_line(context), parameter_line(size), *state_lines(size)]
    out += reading_cost.linear_lines(PAPER, AAREN, found)
    mine, other = (found[f'{name}, stream'] for name in LAYERS)
    end = size.longest_stream
    ratios = {tokens: other.at(tokens) / mine.at(tokens) for tokens in size.cost_lengths if tokens <= end}
    faster = [tokens for tokens, ratio in ratios.items() if ratio > 1]
    note = f'faster from T = {faster[0]} on' if faster else 'never faster'
    note += '; ' + ', '.join(f'{ratio:.2f} at {tokens}' for tokens, ratio in ratios.items())
    claim = 'exponent of T in the time of T tokens one by one'
    return [
        *out,
        Line.number(PAPER, f'{claim}: Aaren', mine.slope(), below=1.2, note=f'T from {size.cost_lengths[0]} to {end}'),
        Line.number(PAPER, f'{claim}: softmax minus Aaren', other.slope() - mine.slope(), above=0.5),
        Line.number(PAPER, f'time of {end} tokens one by one: softmax over Aaren', ratios[end], above=1.0, note=note),
    ]


def exact_line(context: ClaimContext, tokens: int = 128) -> Line:
    """What is stepped is what is trained."""
    cfg = LAYERS[AAREN]
    whole, (variables, _) = forward(cfg, WIDTH)(tokens)
    x = 3 * jax.random.normal(context.key(10), (2, tokens, WIDTH))
    difference = jax.jit(functools.partial(one_by_one, cfg))(variables, x) - jax.jit(whole)(variables, x)
    claim = f'{tokens} tokens one by one against all at once: largest difference'
    return Line.number(PAPER, claim, float(jnp.max(jnp.abs(difference))), below=1e-4, note='float32')


def parameter_line(size: Size) -> Line:
    """The query alone is more."""
    own, other = (
        parameters(AarenConfig(heads=size.heads), size.width),
        parameters(SoftmaxConfig(heads=size.heads), size.width),
    )
    claim = f'parameters of a layer of Aaren minus softmax attention, D = {size.width}'
    return Line.number(PAPER, claim, own - other, near=(size.width, 0), note=f'{own} and {other}')


def state_lines(size: Size) -> list[Line]:
    """Bytes of a row's state."""
    lengths = np.array(size.cost_lengths)
    sizes = {name: np.array([cfg.state_bytes(int(tokens)) for tokens in lengths]) for name, cfg in LAYERS.items()}
    own, other = sizes.values()
    span = f'T = {lengths[-1]} over T = {lengths[0]}'
    return [
        Line.number(PAPER, f'bytes of the state, {span}: Aaren', own[-1] / own[0], near=(1, 0)),
        Line.number(
            PAPER,
            f'bytes of the state, {span}: softmax',
            other[-1] / other[0],
            near=(lengths[-1] / lengths[0], 0.1),
            note=f'{other[-1]} bytes at T = {lengths[-1]}, Aaren {own[-1]}',
        ),
    ]
