"""Pretrained weights and tokenizers, in and out: a table a family, applied both ways (`rules.py`)."""

from jattn.interop.pretrained import PRETRAINED, Pretrained, load

__all__ = ['PRETRAINED', 'Pretrained', 'load']
