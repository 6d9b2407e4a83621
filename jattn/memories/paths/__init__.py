"""How a memory is computed: the table of paths, in the order in which they are preferred.

| path | runs | how |
| --- | --- | --- |
| ridge | MesaNet | conjugate gradients, an iteration is linear attention |
| exact | a matrix, dot product or l2, scalar decay, momentum | a triangular solve a chunk |
| diagonal_plus_low_rank | a matrix, decay per channel, RWKV-7, Comba | the same with pairwise decays |
| diagonal | a matrix with decays per entry: Longhorn as published | a scan of all entries, tile by tile |
| chunk_blind | steps once a chunk: LaCT, Muon | the sum of a chunk's gradients |
| dual | any architecture and bias, gradients at the start of chunks | masked attention layer by layer |
| generic | everything but ridge | token by token, `jax.vjp` |

What a path remembers is the business of the module that owns its state: the cells of `generic`, the matrices of
`matrix`, the sums of `ridge`.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from jattn.memories.paths import (
    chunk_blind,
    diagonal,
    diagonal_plus_low_rank,
    dual,
    exact,
    generic,
    matrix,
    ridge,
)


class Path(NamedTuple):
    """One way of computing a memory.

    Attributes:
        refusal: (cfg) -> why it cannot run a memory, or None.
        run: (cfg, tokens, rows, places, fresh, memory) -> outputs, memory after the call.
        empty_state: (cfg, batch) -> a memory of zeros.
        fresh_state: (cfg, fresh) -> one row's memory before a document.
        readings: (cfg, tokens, rows, places, fresh, before, after) -> site -> what the tools read.
        weights: (cfg, fresh, memory) -> the inner network that a query after the call meets.
    """

    refusal: Callable
    run: Callable
    empty_state: Callable
    fresh_state: Callable
    readings: Callable
    weights: Callable


def _path(how: ModuleType, kept: ModuleType) -> Path:
    return Path(how.refusal, how.run, kept.empty_state, kept.fresh_state, kept.readings, kept.weights)


PATHS: dict[str, Path] = {
    'ridge': _path(ridge, ridge),
    'exact': _path(exact, matrix),
    'diagonal_plus_low_rank': _path(diagonal_plus_low_rank, matrix),
    'diagonal': _path(diagonal, matrix),
    'chunk_blind': _path(chunk_blind, generic),
    'dual': _path(dual, generic),
    'generic': _path(generic, generic),
}
