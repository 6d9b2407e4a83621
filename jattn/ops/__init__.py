from jattn.ops.scan import linear_scan
from jattn.ops.softmax_attention import attention
