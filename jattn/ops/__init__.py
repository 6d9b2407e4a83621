from jattn.ops.softmax_attention import attention
