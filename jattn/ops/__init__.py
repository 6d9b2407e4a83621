from jattn.ops.delta_rule import diagonal_plus_low_rank, gated_delta_rule
from jattn.ops.linear_attention import gated_linear_attention
from jattn.ops.scan import linear_scan
from jattn.ops.softmax_attention import attention
