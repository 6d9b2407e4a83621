"""What a layer with half of its heads active costs, beside softmax attention with all and with half of them."""

import dataclasses
from collections.abc import Mapping

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.cost import Cost, draw, measure, print_table, slopes_from
from experiments.papers.forward import forward, parameters
from experiments.papers.mixture_of_heads.settings import FOUR, FULL, MOH_50, PAPER, Size, attentions


def table(context: ClaimContext, size: Size) -> dict[str, Cost]:
    """Time and memory of a forward pass at every length, printed and drawn."""
    mixers = attentions(dataclasses.replace(size, width=size.cost_width))
    makes = {name: forward(mixers[name], size.cost_width) for name in (FULL, MOH_50, FOUR)}
    found = measure(makes, size.cost_lengths, size.repeats, say=context.say)
    title = f'a layer of width {size.cost_width}, one row of T tokens'
    print_table(title, found, slopes_from(size.cost_lengths))
    draw(found, context.out / 'cost.png', title, slopes_from(size.cost_lengths))
    return found


def lines(found: Mapping[str, Cost], size: Size) -> list[Line]:
    """Operations, parameters and time: as published, heads that are not taken are computed all the same."""
    mixers = attentions(size)
    full, moh = (dataclasses.replace(mixers[name], width=size.width) for name in (FULL, MOH_50))
    longest, shortest = size.cost_lengths[-1], slopes_from(size.cost_lengths)
    extra = parameters(moh, size.width) - parameters(full, size.width)
    time = found[MOH_50].at(longest) / found[FULL].at(longest)
    halved = found[FOUR].at(longest) / found[FULL].at(longest)
    slopes = {name: found[name].slope(shortest=shortest) for name in found}
    span = f'T from {max(shortest, size.cost_lengths[0])} to {longest}'
    return [
        Line.number(
            PAPER, 'parameters that MoH adds to a layer, over D (H + 2)', extra / (size.width * 10), near=(1.0, 0.0)
        ),
        Line.number(
            PAPER,
            f'operations of {MOH_50} over {FULL} at T = 2048',
            moh.flops(2048) / full.flops(2048),
            near=(1.0, 0.05),
            note='all heads are computed, then weighed, as in the public code; skipping could save half of them',
        ),
        Line.number(
            PAPER,
            f'time of {MOH_50} over {FULL} at T = {longest}',
            time,
            near=(1.0, 0.2),
            note=f'half of the heads that are skipped for good, {FOUR}: {halved:.2f}',
        ),
        Line.number(
            PAPER,
            f'exponent of T in the time, {span}: {MOH_50} minus {FULL}',
            slopes[MOH_50] - slopes[FULL],
            near=(0.0, 0.15),
            note=', '.join(f'{name} {slope:.2f}' for name, slope in slopes.items()),
        ),
    ]
