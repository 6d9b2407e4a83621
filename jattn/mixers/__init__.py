"""The table of token mixers: name -> default config. A line here is all of registration; the contract suite walks it.

| key | paper | state | file |
| --- | --- | --- | --- |
| softmax | Vaswani et al. 2017, Attention Is All You Need | keys and values (a ring with a window) | softmax.py |
| rg_lru | De et al. 2024, Griffin | vector | rg_lru.py |
| titans_mac | Behrouz et al. 2025, Titans | a memory, its weights at the segment's start, keys | titans.py |
| titans_mag, titans_mal | the same | a memory, a ring of keys | titans.py |
| aaren | Feng et al. 2024, Attention as an RNN | a maximum and two sums | aaren.py |
| mamba | Gu and Dao 2023, Mamba (S6) | N numbers a channel, a convolution's tail | mamba.py |
| qlstm | Sieber et al. 2024, Dynamical Systems Framework | a vector, a convolution's tail | qlstm.py |
| normalized_attention | the same | matrix a head | normalized_attention.py |
| mixture_of_heads | Jin et al. 2024, Mixture-of-Head Attention | keys and values | mixture_of_heads.py |
| routing | Roy et al. 2021, Routing Transformer | a ring of keys a cluster, a ring of local keys | routing.py |
| extractor_she, _he, _we, _me | Chen 2023, Attention Is Not All You Need Anymore | the last inputs | extractor.py |
| landmark | Mohtashami and Jaggi 2023, Landmark Attention | keys and values, or blocks of them | landmark.py |
| s4d | Gu et al. 2022, S4D; Wang et al. 2023, Selective S4 | N complex numbers a channel | s4d.py |
| density_adaptive | Ioannides et al. 2024, Density Adaptive Attention | none | density_adaptive.py |
| scattered_linear | He et al. 2024, ScatterFormer | none | scattered_linear.py |

and every memory, from linear attention to Titans and Miras: `jattn/memories/members.py` is their table.
"""

from jattn.contract import MixerConfig
from jattn.memories import MEMORIES
from jattn.mixers.aaren import AarenConfig
from jattn.mixers.density_adaptive import DensityAdaptiveConfig
from jattn.mixers.extractor import KINDS, ExtractorConfig
from jattn.mixers.landmark import LandmarkConfig
from jattn.mixers.mamba import MambaConfig
from jattn.mixers.mixture_of_heads import MixtureOfHeadsConfig
from jattn.mixers.normalized_attention import NormalizedAttentionConfig
from jattn.mixers.qlstm import QLSTMConfig
from jattn.mixers.rg_lru import RGLRUConfig
from jattn.mixers.routing import RoutingConfig
from jattn.mixers.s4d import S4DConfig
from jattn.mixers.scattered_linear import ScatteredLinearConfig
from jattn.mixers.softmax import SoftmaxConfig
from jattn.mixers.titans import ContextTitansConfig, WindowedTitansConfig

MIXERS: dict[str, MixerConfig] = {
    'softmax': SoftmaxConfig(),
    'rg_lru': RGLRUConfig(),
    **MEMORIES,
    'titans_mac': ContextTitansConfig(),
    'titans_mag': WindowedTitansConfig(arrangement='gate'),
    'titans_mal': WindowedTitansConfig(arrangement='layer'),
    'aaren': AarenConfig(),
    'mamba': MambaConfig(),
    'qlstm': QLSTMConfig(),
    'normalized_attention': NormalizedAttentionConfig(),
    'mixture_of_heads': MixtureOfHeadsConfig(),
    'routing': RoutingConfig(),
    **{f'extractor_{kind}': ExtractorConfig(kind=kind) for kind in KINDS},
    'landmark': LandmarkConfig(),
    's4d': S4DConfig(),
    'density_adaptive': DensityAdaptiveConfig(),
    'scattered_linear': ScatteredLinearConfig(),
}
