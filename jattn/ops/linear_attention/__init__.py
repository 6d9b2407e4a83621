"""Gated linear attention: linear attention, RetNet, Mamba-2 and GLA as one recurrence."""

from jattn.ops.linear_attention.api import gated_linear_attention

__all__ = ['gated_linear_attention']
