"""The table of token mixers: name -> default config. A line here is all of registration; the contract suite walks it.

| key | paper | state | file |
| --- | --- | --- | --- |
| softmax | Vaswani et al. 2017, Attention Is All You Need | keys and values (a ring with a window) | softmax.py |
| linear_attention | Katharopoulos et al. 2020, Transformers are RNNs | matrix a head | linear_attention.py |
| rg_lru | De et al. 2024, Griffin | vector | rg_lru.py |
"""

from jattn.contract import MixerConfig
from jattn.mixers.linear_attention import LinearAttentionConfig
from jattn.mixers.rg_lru import RGLRUConfig
from jattn.mixers.softmax import SoftmaxConfig

MIXERS: dict[str, MixerConfig] = {
    'softmax': SoftmaxConfig(),
    'linear_attention': LinearAttentionConfig(),
    'rg_lru': RGLRUConfig(),
}
