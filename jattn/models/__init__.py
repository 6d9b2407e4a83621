"""Trunks built from mixers, and generation from them. `MODELS` is the one table: name -> default config."""

from jattn.models.decoder import Decoder, DecoderConfig
from jattn.models.encoder import Encoder, EncoderConfig
from jattn.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from jattn.models.fit import FITConfig
from jattn.models.fit_decoder import FITDecoderConfig
from jattn.models.fit_denoiser import FITDenoiserConfig
from jattn.models.generate import Sampling, generate, generate_text
from jattn.models.selective_s4 import SelectiveS4Config
from jattn.models.sizes import SIZES
from jattn.models.trunk import TrunkConfig
from jattn.models.vision import Vision, VisionConfig

MODELS: dict[str, TrunkConfig] = {
    'decoder': DecoderConfig(),
    'encoder': EncoderConfig(),
    'encoder_decoder': EncoderDecoderConfig(),
    'vision': VisionConfig(),
    'fit': FITConfig(),
    'fit_decoder': FITDecoderConfig(),
    'fit_denoiser': FITDenoiserConfig(),
    'selective_s4': SelectiveS4Config(),
    **SIZES,
}
