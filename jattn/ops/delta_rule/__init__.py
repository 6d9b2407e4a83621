"""Memories that correct themselves: the delta rules and RWKV-7 as one recurrence."""

from jattn.ops.delta_rule.api import diagonal_plus_low_rank, gated_delta_rule

__all__ = ['diagonal_plus_low_rank', 'gated_delta_rule']
