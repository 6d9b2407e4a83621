"""The one table of families, by the model_type of their configs."""

from jattn.interop.bert import BERT
from jattn.interop.gemma import GEMMA
from jattn.interop.gpt2 import GPT2
from jattn.interop.gpt_neox import GPT_NEOX
from jattn.interop.llama import LLAMA
from jattn.interop.vit import DINOV2, VIT
from jattn.interop.whisper import WHISPER

FAMILIES = {
    'llama': LLAMA,
    'mistral': LLAMA,
    'qwen2': LLAMA,
    'qwen3': LLAMA,
    'gpt2': GPT2,
    'gpt_neox': GPT_NEOX,
    'gemma': GEMMA,
    'gemma2': GEMMA,
    'gemma3_text': GEMMA,
    'bert': BERT,
    'vit': VIT,
    'dinov2': DINOV2,
    'whisper': WHISPER,
}
