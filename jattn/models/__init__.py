"""Trunks and heads built from mixers: the decoder, and generation from it."""

from jattn.models.decoder import Decoder, DecoderConfig
from jattn.models.generate import Sampling, generate, generate_text
