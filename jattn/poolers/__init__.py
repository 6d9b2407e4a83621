"""The table of poolers: name -> default config. A line here is all of registration; the contract suite walks it.

| key | paper | query | keys/values | file |
| --- | --- | --- | --- | --- |
| mean, max, last, cls | - | none: the mean, the largest, the last, the first | tokens | simple.py |
| additive | Bahdanau et al. 2015, Align and Translate | a vector after a tanh layer | tokens | attentive.py |
| structured | Lin et al. 2017, Structured Self-attentive Embedding | H such vectors | tokens | attentive.py |
| abmilp | Ilse et al. 2018, Deep Multiple Instance Learning | one, and biases | tokens | attentive.py |
| aim | El-Nouby et al. 2024, Autoregressive Image Models | u | W_k n(x), W_v n(x) | attentive.py |
| simpool | Psomas et al. 2023, Keep It SimPool | W_q mean(x) | W_k n(x), n(x) | attentive.py |
| cae | Chen et al. 2022, Context Autoencoder | W_q n(u) | W_k n(x), W_v n(x) | attentive.py |
| v_jepa | Bardes et al. 2024, Revisiting Feature Prediction | W_q u, in a block | W_k n(x), W_v n(x) | blocks.py |
| siglip | Zhai et al. 2023, Sigmoid Loss | W_q u, then a feed-forward block | W_k x, W_v x | blocks.py |
| clip | Radford et al. 2021, Natural Language Supervision | W_q mean n(x) | W_k n(x), W_v n(x) | blocks.py |
| coca | Yu et al. 2022, Contrastive Captioners | W_q n(u) | W_k x, W_v x of one head | blocks.py |
| cait | Touvron et al. 2021, Going Deeper | W_q n(u), in a block | also those of u | blocks.py |
| dino_block | Caron et al. 2021, Emerging Properties | every token, in a block | W_k n(x), W_v n(x) | blocks.py |
| cbam | Woo et al. 2018, Convolutional Block Attention | none: gates | tokens | convolutional.py |
| dolg | Yang et al. 2021, Deep Orthogonal Fusion | none: gates | n(W x) of length 1 | convolutional.py |
| efficient_probing | Psomas et al. 2025, Attention, Please! | Q of u | x, a slice of V x | efficient_probing.py |
| lama | Mehta et al. 2019, Low Rank Factorization | mean(x) or u, of low rank | x | lama.py |

u is learned, n a normalisation, W_k, W_v, V maps of a token x. Other forms of an entry are fields of its config.
`probe.py` is the head of every probe: a pooler, BatchNorm, a linear classifier. The contract stands in `pooler.py`.
"""

from jattn.poolers.attentive import AdditiveConfig, AIMConfig, CAEConfig, SimPoolConfig
from jattn.poolers.blocks import CaiTConfig, CLIPConfig, CoCaConfig, DINOBlockConfig, SigLIPConfig, VJEPAConfig
from jattn.poolers.convolutional import CBAMConfig, DOLGConfig
from jattn.poolers.efficient_probing import EfficientProbingConfig
from jattn.poolers.lama import LAMAConfig
from jattn.poolers.pooler import PoolerConfig
from jattn.poolers.simple import FirstConfig, LastConfig, MaxConfig, MeanConfig

POOLERS: dict[str, PoolerConfig] = {
    'mean': MeanConfig(),
    'max': MaxConfig(),
    'last': LastConfig(),
    'cls': FirstConfig(),
    'additive': AdditiveConfig(),
    'structured': AdditiveConfig(heads=8),
    'abmilp': AdditiveConfig(use_bias=True),
    'aim': AIMConfig(),
    'simpool': SimPoolConfig(),
    'cae': CAEConfig(),
    'v_jepa': VJEPAConfig(),
    'siglip': SigLIPConfig(),
    'clip': CLIPConfig(),
    'coca': CoCaConfig(),
    'cait': CaiTConfig(),
    'dino_block': DINOBlockConfig(),
    'cbam': CBAMConfig(),
    'dolg': DOLGConfig(),
    'efficient_probing': EfficientProbingConfig(),
    'lama': LAMAConfig(),
}
