"""The cost claim: with sqrt(T) clusters of sqrt(T) tokens T^1.5, where softmax attention has T^2."""

import math
from collections.abc import Mapping

import numpy as np

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.cost import Cost, Make, draw, measure, print_table, slopes_from
from experiments.papers.forward import forward
from experiments.papers.routing.settings import PAPER, Size
from jattn.mixers import SoftmaxConfig
from jattn.mixers.routing import RoutingConfig

SOFTMAX, SELECTIONS = 'softmax', {'prefix': 'routing, prefix', 'top': 'routing, published'}
HEADS = 2


def routing(size: Size, tokens: int, selection: str) -> RoutingConfig:
    """Routing heads alone, as many clusters as a cluster has tokens."""
    root = math.isqrt(tokens)
    return RoutingConfig(
        width=size.cost_width,
        heads=HEADS,
        local_heads=0,
        clusters=root,
        members=tokens // root,
        selection=selection,
    )


def operations(size: Size, tokens: int, selection: str) -> int:
    """Of routing and attention alone: the three projections, of queries, values and outputs, are left out."""
    return routing(size, tokens, selection).flops(tokens) - 3 * 2 * tokens * size.cost_width**2


def table(context: ClaimContext, size: Size) -> dict[str, Cost]:
    """Time and memory of a forward pass at every length, printed and drawn."""

    def of(selection: str) -> Make:
        return lambda tokens: forward(routing(size, tokens, selection), size.cost_width)(tokens)

    makes = {SOFTMAX: forward(SoftmaxConfig(heads=HEADS), size.cost_width)}
    makes |= {name: of(selection) for selection, name in SELECTIONS.items()}
    found = measure(makes, size.cost_lengths, size.repeats, say=context.say)
    title = f'a layer of width {size.cost_width}, {HEADS} heads, sqrt(T) clusters, one row of T tokens'
    print_table(title, found, slopes_from(size.cost_lengths))
    draw(found, context.out / 'cost.png', title, slopes_from(size.cost_lengths))
    return found


def lines(found: Mapping[str, Cost], size: Size) -> list[Line]:
    """Exponents of operations, time and memory, and from which length on routing is faster."""
    shortest, longest = slopes_from(size.cost_lengths), size.cost_lengths[-1]
    lengths = [tokens for tokens in size.cost_lengths if tokens >= shortest]
    span, softmax = f'T from {lengths[0]} to {longest}', found[SOFTMAX]
    beside = 'beside those of the projections, which are linear'
    out = [
        Line.number(PAPER, f'exponent of T in the time, {span}: {SOFTMAX}', softmax.slope(shortest=shortest), above=1.7)
    ]
    for selection, name in SELECTIONS.items():
        own = found[name]
        flops = [operations(size, tokens, selection) for tokens in lengths]
        exponent = float(np.polyfit(np.log(lengths), np.log(flops), 1)[0])
        faster = [tokens for tokens in own.lengths if own.at(tokens) < softmax.at(tokens)]
        note = f'faster than {SOFTMAX} at T = {", ".join(map(str, faster)) or "none"}'
        ratio = softmax.at(longest) / own.at(longest)
        memory = own.slope('bytes', shortest)
        out += [
            Line.number(
                PAPER, f'exponent of T in the operations, {span}: {name}', exponent, near=(1.5, 0.1), note=beside
            ),
            Line.number(
                PAPER, f'exponent of T in the time, {span}: {name}', own.slope(shortest=shortest), near=(1.5, 0.2)
            ),
            Line.number(PAPER, f'exponent of T in the memory, {span}: {name}', memory, below=1.7),
            Line.number(PAPER, f'time at T = {longest}: {SOFTMAX} over {name}', ratio, above=1.0, note=note),
        ]
    return out
