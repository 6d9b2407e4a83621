"""The table of token mixers: name -> default config. A line here is all of registration; the contract suite walks it.

| key | paper | state | file |
| --- | --- | --- | --- |
| softmax | Vaswani et al. 2017, Attention Is All You Need | keys and values (a ring with a window) | softmax.py |
| rg_lru | De et al. 2024, Griffin | vector | rg_lru.py |
| titans_mac | Behrouz et al. 2025, Titans | a memory, its weights at the segment's start, keys | titans.py |
| titans_mag, titans_mal | the same | a memory, a ring of keys | titans.py |

and every memory, from linear attention to Titans and Miras: `jattn/memories/members.py` is their table.
"""

from jattn.contract import MixerConfig
from jattn.memories import MEMORIES
from jattn.mixers.rg_lru import RGLRUConfig
from jattn.mixers.softmax import SoftmaxConfig
from jattn.mixers.titans import ContextTitansConfig, WindowedTitansConfig

MIXERS: dict[str, MixerConfig] = {
    'softmax': SoftmaxConfig(),
    'rg_lru': RGLRUConfig(),
    **MEMORIES,
    'titans_mac': ContextTitansConfig(),
    'titans_mag': WindowedTitansConfig(arrangement='gate'),
    'titans_mal': WindowedTitansConfig(arrangement='layer'),
}
