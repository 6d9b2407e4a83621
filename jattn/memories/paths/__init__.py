"""How a memory is computed: the table of paths, in the order in which they are preferred.

| path | runs | how |
| --- | --- | --- |
| ridge | MesaNet | conjugate gradients, an iteration is linear attention |
| exact | a matrix, dot product or l2, scalar decay, momentum | a triangular solve a chunk |
| diagonal_plus_low_rank | a matrix, decay per channel, RWKV-7, Comba | the same with pairwise decays |
| chunk_blind | steps once a chunk: LaCT, Muon | the sum of a chunk's gradients |
| dual | any architecture and bias, gradients at the start of chunks | masked attention layer by layer |
| generic | everything but ridge | token by token, `jax.vjp` |

Every path is a module with `refusal(cfg)` (why it cannot run a memory, or None), `empty_state(cfg, batch)`,
`fresh_state(cfg, fresh)`, `run(cfg, tokens, rows, places, fresh, memory) -> y, memory` and `readings(...)`.
"""

from types import ModuleType

from jattn.memories.paths import chunk_blind, diagonal_plus_low_rank, dual, exact, generic, ridge

PATHS: dict[str, ModuleType] = {
    'ridge': ridge,
    'exact': exact,
    'diagonal_plus_low_rank': diagonal_plus_low_rank,
    'chunk_blind': chunk_blind,
    'dual': dual,
    'generic': generic,
}
