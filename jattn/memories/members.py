"""The named memories: one table, four choices and their numbers each, no code of their own.

| key | paper | architecture | bias | retention | learner |
| --- | --- | --- | --- | --- | --- |
| linear_attention | Katharopoulos et al. 2020 | matrix | dot | keep | gradient descent |
| retnet | Sun et al. 2023 | matrix | dot | decay, fixed a head | gradient descent |
| lightning | Qin et al. 2024, Lightning Attention | matrix | dot | decay, fixed a head | gradient descent |
| gla | Yang et al. 2024, Gated Linear Attention | matrix | dot | decay a channel | gradient descent |
| hgrn2 | Qin et al. 2024, HGRN2 | matrix | dot | decay a channel, keys its complement | gradient descent |
| mamba2 | Dao and Gu 2024, Mamba-2 | matrix | dot | decay from a time step | gradient descent |
| deltanet | Yang et al. 2024, DeltaNet | matrix | l2 | keep | gradient descent |
| gated_deltanet | Yang et al. 2025, Gated DeltaNet | matrix | l2 | decay | gradient descent |
| kimi_delta | Kimi Team 2025, Kimi Linear | matrix | l2 | decay a channel | gradient descent |
| comba | Hu et al. 2025, Comba | matrix | l2, erasing along a scaled key | decay | gradient descent |
| delta_product | Siems et al. 2025, DeltaProduct | matrix | l2 | decay | several steps a token |
| longhorn | Liu et al. 2024, Longhorn | matrix | l2 | keep | implicit (as published: `diagonal`, a step a channel) |
| rwkv7 | Peng et al. 2025, RWKV-7 | matrix | l2, erasing along a key of its own | decay a channel | gradient descent |
| mesa | von Oswald et al. 2025, MesaNet | matrix | l2 | decay | ridge |
| ttt_linear, ttt_mlp | Sun et al. 2024, TTT | 1 or 2 layers, residual, norm | l2 | keep | gradient descent, averaged |
| titans_linear, titans_lmm | Behrouz et al. 2025, Titans | matrix, or 2 layers | l2 | decay | momentum |
| moneta | Behrouz et al. 2025, Miras | 2 layers | l_3 | l_4 | gradient descent |
| yaad | the same | 2 layers | Huber | decay | gradient descent |
| memora | the same | 2 layers | l2 | KL | gradient descent |
| omega | Behrouz et al. 2025, Atlas | 2 layers | l2 | decay | a window |
| atlas | the same | 2 layers | l2 | decay | a window, momentum, Muon |
| lact | Zhang et al. 2025, LaCT | SwiGLU | dot | row norm | momentum once a chunk |

Chunks are 16, the size for small models; `jattn/models/sizes.py` has the papers' models, with chunks of 64.
"""

import dataclasses

from jattn.memories.architecture import MLP, Gated
from jattn.memories.bias import LP, Dot, Erasing, Huber
from jattn.memories.gates import GATES, Gate, Gates
from jattn.memories.learner import Learner
from jattn.memories.memory import MemoryConfig
from jattn.memories.recipe import Recipe
from jattn.memories.retention import KL, Decay, Lq, RowNorm
from jattn.memories.rwkv7 import RWKV7Recipe

ONE, STEP, KEEP = GATES['one'], GATES['step'], GATES['keep']
# Small channel-wise steps of Moneta, Yaad and Memora: .05 at the start, where the bound is 4 / 16.
SMALL_STEP = Gate(per='channel', rank=32, bias=-1.386, bound=None)
# The gradient of l_3 is 6 abs(e) <= 18 times as steep as l2's, and weights of norm_4 1 are small before a norm. At
# Yaad's bound the decoder's gradient was 10^14, at an 18th of it 4000, here 20 (40 steps on text, T = 512).
STEEP_STEP = dataclasses.replace(SMALL_STEP, bound=0.25 / 54)
TIME = Gate(kind='time_step', decay_range=(0.0, 16.0))
PLAIN = Recipe(convolution=0, convolution_activation=False, qk_norm=False, scaled=True)
UNGATED = Recipe(scaled=True, gate='none')
GATED = Recipe(scaled=True)
TTT = Recipe(
    convolution_activation=False,
    convolves_values=False,
    shared_qk=True,
    qk_norm=False,
    rotary='chunk',
    norm='width_layer',
    gate='gelu',
)
DEEP = dict(chunk=16, learned_start=True)
# Momentum multiplies a step by up to 1 / (1 - .95): at a bound of .2 the linear memory already diverges.
TITANS = Gates(step=Gate(bound=0.1), decay=KEEP, momentum=GATES['momentum'])
# Deep memories forget towards their start: at zero (of KL: at uniform rows) all units' gradients are zero or equal, and
# the norm makes small weights take huge steps. Towards zero, as printed (retention=decay), a decoder's gradient on text
# was 10^5 at T = 256 with titans_lmm, 10^16 at T = 512 with memora.
FORGET = Decay(towards='initial')

MEMORIES: dict[str, MemoryConfig] = {
    'linear_attention': MemoryConfig(
        bias=Dot(),
        gates=Gates(step=ONE),
        recipe=Recipe(
            convolution=0,
            convolution_activation=False,
            features='elu',
            qk_norm=False,
            normaliser=True,
            norm='none',
            gate='none',
        ),
    ),
    'retnet': MemoryConfig(
        value_width=2.0,
        bias=Dot(),
        retention=Decay(),
        gates=Gates(step=ONE, decay=GATES['retnet']),
        recipe=Recipe(convolution=0, convolution_activation=False, qk_norm=False, scaled=True, rotary='position'),
    ),
    'lightning': MemoryConfig(
        bias=Dot(),
        retention=Decay(),
        gates=Gates(step=ONE, decay=GATES['lightning']),
        recipe=Recipe(convolution=0, qk_norm=False, scaled=True, gate='sigmoid'),
    ),
    'gla': MemoryConfig(
        key_width=0.5, bias=Dot(), retention=Decay(), gates=Gates(step=ONE, decay=GATES['gla']), recipe=PLAIN
    ),
    'hgrn2': MemoryConfig(
        bias=Dot(),
        retention=Decay(),
        gates=Gates(step=ONE, decay=GATES['hgrn2']),
        recipe=Recipe(convolution=0, qk_norm=False, complement_keys=True, gate='none'),
    ),
    'mamba2': MemoryConfig(
        key_dim=64,
        value_width=2.0,
        bias=Dot(),
        retention=Decay(),
        gates=Gates(step=GATES['time_step'], decay=GATES['time_step']),
        recipe=Recipe(key_groups=1, qk_norm=False, skip=True, norm='width_rms', gate_first=True),
    ),
    'deltanet': MemoryConfig(recipe=UNGATED),
    'gated_deltanet': MemoryConfig(
        key_width=0.75,
        value_width=1.5,
        retention=Decay(),
        learner=Learner(error='decayed'),
        gates=Gates(decay=TIME),
        recipe=GATED,
    ),
    'kimi_delta': MemoryConfig(
        retention=Decay(),
        learner=Learner(error='decayed'),
        gates=Gates(decay=GATES['kimi']),
        recipe=Recipe(scaled=True, gate='sigmoid', gate_rank=32),
    ),
    'comba': MemoryConfig(
        value_width=2.0,
        bias=Erasing(),
        retention=Decay(),
        gates=Gates(decay=TIME),
        recipe=Recipe(scaled=True, erase_scale=True, query_correction=0.02),
    ),
    'delta_product': MemoryConfig(
        retention=Decay(),
        learner=Learner(steps=2, error='decayed'),
        gates=Gates(decay=TIME),
        recipe=GATED,
    ),
    'longhorn': MemoryConfig(learner=Learner(solver='implicit'), recipe=GATED),
    'rwkv7': MemoryConfig(
        bias=Erasing(),
        retention=Decay(),
        gates=Gates(step=ONE, decay=GATES['rwkv7']),
        recipe=RWKV7Recipe(),
        shares_first_value=True,
    ),
    'mesa': MemoryConfig(
        retention=Decay(),
        learner=Learner(solver='ridge'),
        gates=Gates(decay=KEEP),
        recipe=Recipe(convolves_values=False, gate='none'),
    ),
    'ttt_linear': MemoryConfig(
        architecture=MLP(depth=1, use_bias=True, init_std=0.02, epsilon=1e-6),
        learner=Learner(averaged=True),
        gates=Gates(step=Gate(over_keys=True)),
        recipe=TTT,
        **DEEP,
    ),
    'ttt_mlp': MemoryConfig(
        architecture=MLP(depth=2, use_bias=True, init_std=0.02, epsilon=1e-6),
        learner=Learner(averaged=True),
        gates=Gates(step=Gate(bound=0.1, over_keys=True)),
        recipe=TTT,
        **DEEP,
    ),
    'titans_linear': MemoryConfig(
        retention=Decay(),
        learner=Learner(momentum=True),
        gates=TITANS,
        recipe=Recipe(),
        learned_start=True,
        persistent=4,
    ),
    'titans_lmm': MemoryConfig(
        architecture=MLP(activation='silu'),
        retention=FORGET,
        learner=Learner(momentum=True),
        gates=TITANS,
        persistent=4,
        **DEEP,
    ),
    'moneta': MemoryConfig(
        architecture=MLP(),
        bias=LP(),
        retention=Lq(towards='initial'),
        gates=Gates(step=STEEP_STEP, decay=KEEP),
        **DEEP,
    ),
    'yaad': MemoryConfig(
        architecture=MLP(),
        bias=Huber(),
        retention=FORGET,
        gates=Gates(step=SMALL_STEP, decay=KEEP, threshold=GATES['threshold']),
        **DEEP,
    ),
    'memora': MemoryConfig(
        architecture=MLP(init_std=1.0),
        retention=KL(towards='initial'),
        gates=Gates(step=SMALL_STEP, decay=KEEP),
        **DEEP,
    ),
    'omega': MemoryConfig(
        architecture=MLP(),
        retention=FORGET,
        learner=Learner(window=4),
        gates=Gates(step=STEP, decay=KEEP, window=GATES['sigmoid']),
        recipe=Recipe(features='polynomial'),
        **DEEP,
    ),
    'atlas': MemoryConfig(
        architecture=MLP(),
        retention=FORGET,
        learner=Learner(window=4, momentum=True, per_chunk=True, orthogonal=True),
        gates=Gates(step=STEP, decay=KEEP, momentum=GATES['momentum'], window=GATES['sigmoid']),
        recipe=Recipe(features='polynomial'),
        **DEEP,
    ),
    'lact': MemoryConfig(
        architecture=Gated(),
        bias=Dot(),
        retention=RowNorm(),
        learner=Learner(momentum=True, per_chunk=True),
        gates=Gates(step=Gate(kind='softplus', bias=-4.6), momentum=GATES['momentum']),
        recipe=Recipe(convolution=0),
        **DEEP,
    ),
}


def with_lower_bounds(cfg: MemoryConfig, layers: int) -> tuple[MemoryConfig, ...]:
    """A mixer for every layer whose decays are at least 0, 1/L, ..., (L-1)/L: HGRN2's bounds as they start.

    HGRN2 learns them, as running sums over the layers of a softmax over the layers, one a channel; here they stay.

    >>> [cfg.gates.decay.lower for cfg in with_lower_bounds(MEMORIES['hgrn2'], 4)]
    [0.0, 0.25, 0.5, 0.75]
    """
    return tuple(
        dataclasses.replace(
            cfg,
            gates=dataclasses.replace(cfg.gates, decay=dataclasses.replace(cfg.gates.decay, lower=layer / layers)),
        )
        for layer in range(layers)
    )
