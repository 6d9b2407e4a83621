"""The one table of families, by the model_type of their configs."""

from jattn.interop.llama import LLAMA

FAMILIES = {
    'llama': LLAMA,
    'mistral': LLAMA,
    'qwen2': LLAMA,
    'qwen3': LLAMA,
}
