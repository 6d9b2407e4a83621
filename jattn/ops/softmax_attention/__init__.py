"""Softmax attention: `attention` (api), its three steps (reference), and the forms that serve it (xla, cudnn)."""

from jattn.ops.softmax_attention.api import attention
