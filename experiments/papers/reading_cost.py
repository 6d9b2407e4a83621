"""What reading costs at every length: a prefill of a whole sequence, and single tokens behind a long one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.cost import Cost, Make, draw, measure, print_table, slopes_from
from jattn.contract import Context, Cursor
from jattn.mixers import SoftmaxConfig

WIDTH, HEADS = 32, 2  # small: lengths are what matters
STEPS = 64  # of a timed generation: its one copy of the cache, before it begins, is then little of it


def prefill(cfg: SoftmaxConfig) -> Make:
    """T -> a call of T tokens without a state."""
    return lambda tokens: (lambda variables, x: cfg.make().apply(variables, x)[0], _arguments(cfg, tokens))


def steps(cfg: SoftmaxConfig) -> Make:
    """T -> `STEPS` calls of one token, the last of T."""

    def make(tokens: int) -> tuple[Any, tuple]:
        variables, x = _arguments(cfg, 1)
        state = cfg.init_state(1, tokens, jnp.float32)
        cursor = Cursor(segment=jnp.ones(1, jnp.int32), position=jnp.full(1, tokens - STEPS, jnp.int32))
        keys = jax.random.normal(jax.random.key(1), state.k.shape)
        state = state.replace(cursor=cursor, length=cursor.position, k=keys, v=keys)

        def generate(variables: Any, x: jax.Array, state: Any) -> jax.Array:
            def step(_: jax.Array, carry: tuple) -> tuple:
                x, state = carry
                return cfg.make().apply(variables, x, Context(), state)

            return jax.lax.fori_loop(0, STEPS, step, (x, state))[0]

        return generate, (variables, x, state)

    return make


def table(
    context: ClaimContext, lengths: Sequence[int], repeats: int, policies: Mapping[str, SoftmaxConfig]
) -> dict[str, Cost]:
    """The policies' cost beside softmax attention, printed and drawn; 'name, prefill' and 'name, steps'."""
    configs = {'softmax': SoftmaxConfig(), **policies}
    makes = {}
    for name, cfg in configs.items():
        makes[f'{name}, prefill'], makes[f'{name}, steps'] = prefill(_sized(cfg)), steps(_sized(cfg))
    found = measure(makes, lengths, repeats, say=context.say)
    title = f'a layer of {HEADS} heads: a sequence of T tokens, and {STEPS} steps behind T'
    print_table(title, found, slopes_from(lengths))
    draw(found, context.out / 'cost.png', title, slopes_from(lengths))
    return found


def linear_lines(paper: str, name: str, found: Mapping[str, Cost]) -> list[Line]:
    """Sequences: near linear, where softmax is near quadratic; a token: near constant, where softmax is linear."""
    lengths, out = _lengths(found), []
    shortest, longest = slopes_from(lengths), lengths[-1]
    for what, own, other in (('prefill', 1.3, 1.7), ('steps', 0.3, 0.5)):
        mine, softmax = found[f'{name}, {what}'], found[f'softmax, {what}']
        claim = f'exponent of T in the time of {what}, {_span(lengths)}'
        note = f'at {longest} softmax takes {softmax.at(longest) / mine.at(longest):.2f} times as long'
        out += [
            Line.number(paper, f'{claim}: {name}', mine.slope(shortest=shortest), below=own, note=note),
            Line.number(paper, f'{claim}: softmax', softmax.slope(shortest=shortest), above=other),
        ]
    return [*out, _memory_line(paper, name, found)]


def cheaper_lines(paper: str, name: str, found: Mapping[str, Cost]) -> list[Line]:
    """Fewer keys by a factor: faster at the longest length, and its exponent is no larger."""
    lengths, out = _lengths(found), []
    shortest, longest = slopes_from(lengths), lengths[-1]
    for what in ('prefill', 'steps'):
        mine, softmax = found[f'{name}, {what}'], found[f'softmax, {what}']
        slopes = mine.slope(shortest=shortest), softmax.slope(shortest=shortest)
        at = f'time of {what}'
        note = f'{name} {slopes[0]:.2f}, softmax {slopes[1]:.2f}'
        ratio = softmax.at(longest) / mine.at(longest)
        claim = f'exponent of T in the {at}, {_span(lengths)}: {name} minus softmax'
        out += [
            Line.number(paper, claim, slopes[0] - slopes[1], below=0.0, note=note),
            Line.number(paper, f'{at} at T = {longest}: softmax over {name}', ratio, above=1.0),
        ]
    return [*out, _memory_line(paper, name, found)]


def _memory_line(paper: str, name: str, found: Mapping[str, Cost]) -> Line:
    lengths = _lengths(found)
    memory = found[f'{name}, prefill'].slope('bytes', slopes_from(lengths))
    claim = f'exponent of T in the memory of prefill, {_span(lengths)}: {name}'
    return Line.number(paper, claim, memory, below=1.2, note='temporaries and outputs, as compiled')


def _lengths(found: Mapping[str, Cost]) -> tuple[int, ...]:
    return next(iter(found.values())).lengths


def _span(lengths: Sequence[int]) -> str:
    return f'T from {max(slopes_from(lengths), lengths[0])} to {lengths[-1]}'


def _sized(cfg: SoftmaxConfig) -> SoftmaxConfig:
    return dataclasses.replace(cfg, width=WIDTH, heads=HEADS)


def _arguments(cfg: SoftmaxConfig, tokens: int) -> tuple:
    x = jax.random.normal(jax.random.key(0), (1, tokens, WIDTH))
    return nn.unbox(jax.jit(cfg.make().init)(jax.random.key(1), x[:, :1])), x
