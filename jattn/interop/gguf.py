"""GGUF files (llama.cpp), read with the published package: quantised tensors become float32, names Hugging Face's.

    config, tensors, tokens = read('model.gguf')

Architecture `llama` only. Its query and key rows stand so that neighbours (2i, 2i+1) rotate together; they are put back
into halves (i, i + K/2), bit for bit what Hugging Face's file has. Forgetting that is hard to see in text (a loss of 5
in place of 3.3) and plain in the logits.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import numpy as np

from jattn.config import ConfigError

MAGIC = b'GGUF'
# llama.cpp's names of a block's tensors -> Hugging Face's.
BLOCK = {
    'attn_norm': 'input_layernorm',
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj',
    'ffn_norm': 'post_attention_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
}
WHOLE = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}


def read(path: str | pathlib.Path) -> tuple[dict[str, Any], Mapping[str, np.ndarray], dict[str, Any]]:
    """A file's config and tensors, as Hugging Face names them, and what it says of its tokenizer (`tokenizer.*`).

    Raises:
        ConfigError: the file is none, is cut short, or has an architecture that is not read.
    """
    path = pathlib.Path(path)
    with path.open('rb') as file:
        if (magic := file.read(4)) != MAGIC:
            raise ConfigError(f'{path}: not a GGUF file (it begins with {magic!r}, not {MAGIC!r})')
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith('GGUF.')}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ConfigError(f'{path}: damaged or cut short ({error})') from error
    if (architecture := fields.get('general.architecture')) != 'llama':
        raise ConfigError(f"{path}: architecture {architecture!r} is not read from GGUF; there is 'llama'")
    config = _config(fields, {tensor.name for tensor in reader.tensors}, path)
    tokens = {name.removeprefix('tokenizer.'): value for name, value in fields.items() if name.startswith('tokenizer.')}
    return config, GGUFTensors(reader, config), tokens


def _config(fields: Mapping[str, Any], names: set[str], path: pathlib.Path) -> dict[str, Any]:
    def need(name: str) -> Any:
        if f'llama.{name}' not in fields:
            raise ConfigError(f'{path}: its metadata lacks llama.{name}')
        return fields[f'llama.{name}']

    heads, width = need('attention.head_count'), need('embedding_length')
    if 'rope_freqs.weight' in names or fields.get('llama.rope.scaling.type', 'none') != 'none':
        raise ConfigError(f'{path}: scaled rotary positions are not read from GGUF')
    if need('rope.dimension_count') != width // heads:
        raise ConfigError(f'{path}: rope.dimension_count={need("rope.dimension_count")} is not the whole head')
    return {
        'model_type': 'llama',
        'hidden_size': width,
        'num_hidden_layers': need('block_count'),
        'num_attention_heads': heads,
        'num_key_value_heads': fields.get('llama.attention.head_count_kv', heads),
        'intermediate_size': need('feed_forward_length'),
        'rms_norm_eps': round(need('attention.layer_norm_rms_epsilon'), 12),  # a float32 there
        'rope_theta': fields.get('llama.rope.freq_base', 10_000.0),
        'max_position_embeddings': need('context_length'),
        'vocab_size': fields.get('llama.vocab_size') or len(fields['tokenizer.ggml.tokens']),
        'tie_word_embeddings': 'output.weight' not in names,
    }


class GGUFTensors(Mapping[str, np.ndarray]):
    """The tensors by Hugging Face's names, (out, in), float32; one is unpacked when it is asked for."""

    def __init__(self, reader: gguf.GGUFReader, config: Mapping[str, Any]) -> None:
        self._tensors = {_their_name(tensor.name): tensor for tensor in reader.tensors}
        self._heads = {
            'self_attn.q_proj.weight': config['num_attention_heads'],
            'self_attn.k_proj.weight': config['num_key_value_heads'],
        }

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        heads = next((heads for end, heads in self._heads.items() if name.endswith(end)), None)
        return array if heads is None else to_halves(array, heads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key projection, each head's planes from neighbours to halves.

    >>> to_halves(np.arange(4.0).reshape(4, 1), 1).ravel().tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _their_name(name: str) -> str:
    """Hugging Face's name of a tensor; one that has none keeps its own, and the table will not know it.

    >>> _their_name('blk.3.attn_q.weight'), _their_name('output_norm.weight')
    ('model.layers.3.self_attn.q_proj.weight', 'model.norm.weight')
    """
    parts = name.split('.')
    if parts[0] == 'blk' and len(parts) == 4 and parts[2] in BLOCK:
        return f'model.layers.{parts[1]}.{BLOCK[parts[2]]}.{parts[3]}'
    return f'{WHOLE[parts[0]]}.{parts[1]}' if parts[0] in WHOLE else name
