"""Memories whose weights are the state: coefficients of a chunk, the dual form, the exact rule with momentum."""

from jattn.ops.fast_weights.coefficients import Coefficients, coefficients
from jattn.ops.fast_weights.momentum import momentum_delta_rule

__all__ = ['Coefficients', 'coefficients', 'momentum_delta_rule']
