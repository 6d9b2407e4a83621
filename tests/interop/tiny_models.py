"""Tiny configs of every family, in the form of Hugging Face's config.json, values for their tensors, and inputs."""

import json
import pathlib
import tempfile
import zlib

import numpy as np

from jattn.contract import Context
from jattn.interop import safetensors

GOLDEN = pathlib.Path(__file__).parent / 'golden'
VOCABULARY, TOKENS, WINDOW = 97, 11, 5
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
)
LLAMA3 = dict(rope_type='llama3', factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
NEOX = {name: SIZES[name] for name in SIZES if name not in ('num_key_value_heads', 'rms_norm_eps')}
GEMMA = dict(SIZES, head_dim=16)
CONFIGS = {
    'llama': dict(SIZES, model_type='llama', rms_norm_eps=1e-5),
    'llama3': dict(
        SIZES,
        model_type='llama',
        tie_word_embeddings=True,
        attention_bias=True,
        rope_parameters=dict(LLAMA3, rope_theta=500.0, original_max_position_embeddings=32),
    ),
    'mistral': dict(SIZES, model_type='mistral', sliding_window=WINDOW, head_dim=16),
    'qwen2': dict(SIZES, model_type='qwen2', tie_word_embeddings=True),
    'qwen3': dict(SIZES, model_type='qwen3', head_dim=16),
    'gpt2': dict(model_type='gpt2', vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    'gpt_neox': dict(NEOX, model_type='gpt_neox'),
    'gpt_neox_serial': dict(
        NEOX, model_type='gpt_neox', use_parallel_residual=False, rope_parameters=dict(partial_rotary_factor=0.5)
    ),
    'gemma': dict(GEMMA, model_type='gemma'),
    'gemma2': dict(
        GEMMA,
        model_type='gemma2',
        num_hidden_layers=3,
        sliding_window=WINDOW,
        query_pre_attn_scalar=9,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    'gemma3': dict(
        GEMMA,
        model_type='gemma3_text',
        num_hidden_layers=7,
        sliding_window=WINDOW,
        query_pre_attn_scalar=9,
        rope_parameters=dict(
            sliding_attention=dict(rope_type='default', rope_theta=100.0),
            full_attention=dict(rope_type='linear', rope_theta=10_000.0, factor=2.0),
        ),
    ),
}
PIXELS = {name: SIZES[name] for name in ('hidden_size', 'num_hidden_layers', 'num_attention_heads')}
PIXELS |= dict(image_size=20, patch_size=4)
VISION = {
    'vit': dict(PIXELS, model_type='vit', intermediate_size=48),
    'dinov2': dict(PIXELS, model_type='dinov2', mlp_ratio=2),
}
WHISPER = dict(model_type='whisper', d_model=32, encoder_layers=2, decoder_layers=3, vocab_size=VOCABULARY)
WHISPER |= dict(max_source_positions=20, max_target_positions=16, num_mel_bins=8, pad_token_id=0)
WHISPER |= {
    f'{side}_{name}': n for side in ('encoder', 'decoder') for name, n in (('attention_heads', 4), ('ffn_dim', 48))
}
SPEECH = {'whisper': WHISPER}
ALL = CONFIGS | VISION | SPEECH


def tokens(batch=2):
    return np.random.RandomState(0).randint(0, VOCABULARY, (batch, TOKENS)).astype(np.int32)


def images(batch=2):
    """3 x 4 patches, where the tables of positions have 5 x 5."""
    return (np.random.RandomState(1).randint(-64, 65, (batch, 12, 16, 3)) / 64).astype(np.float32)


def frames(batch=2):
    """As many as the encoder of speech has positions for, twice."""
    return (np.random.RandomState(1).randint(-64, 65, (batch, 40, 8)) / 64).astype(np.float32)


def reads(name, batch=2):
    """What the trunk of a model reads."""
    context = Context(source=frames(batch)) if name in SPEECH else Context()
    return images(batch) if name in VISION else tokens(batch), context


def values(model, name, shape):
    """The values of a tensor of a model: multiples of 1/64 that its name decides, about 0, gains of norms about 1.

    They are exact in float32, float16 and bfloat16. Gemma stores gains as their difference to 1.
    """
    draw = np.random.RandomState(zlib.crc32(name.encode())).randint(-16, 17, shape) / 64
    gain = name.endswith('weight') and any(part in name for part in ('norm', 'ln_')) and not model.startswith('gemma')
    return (draw + gain).astype(np.float32)


def golden(name):
    """What transformers saved and said (`make_golden.py`): config, tensors, the outputs for `reads(name, 1)`."""
    found = np.load(GOLDEN / f'{name}.npz')
    shapes = json.loads(str(found['shapes']))
    tensors = {path: values(name, path, shape) for path, shape in shapes.items()}
    return json.loads(str(found['config'])), tensors, found['logits']


def answer(name, model, batch=2):
    """The outputs of a model of transformers for `reads(name, batch)`, and the stream behind every layer."""
    import torch

    if name in VISION:
        pixels = torch.from_numpy(images(batch)).permute(0, 3, 1, 2)
        resized = dict(interpolate_pos_encoding=True) if name == 'vit' else {}  # the other always does
        said = model(pixels, output_hidden_states=True, **resized)
        return said.last_hidden_state.numpy(), [stream.numpy() for stream in said.hidden_states[1:]]
    words = torch.from_numpy(tokens(batch)).long()
    if name in SPEECH:
        heard = torch.from_numpy(frames(batch)).permute(0, 2, 1)
        said = model(heard, decoder_input_ids=words, output_hidden_states=True)
        streams = [*said.encoder_hidden_states[1:], *said.decoder_hidden_states[1:]]
        return said.logits.numpy(), [stream.numpy() for stream in streams]
    return model(words).logits.numpy(), None


def reference(name):
    """The model of transformers with these values, by the names that its files have."""
    import transformers

    fields = dict(ALL[name])
    config = transformers.AutoConfig.for_model(fields.pop('model_type'), **fields)
    cls = transformers.AutoModel if name in VISION else transformers.AutoModelForCausalLM
    cls = transformers.AutoModelForSpeechSeq2Seq if name in SPEECH else cls
    with tempfile.TemporaryDirectory() as folder:
        cls.from_config(config).save_pretrained(folder)
        tensors = {path: values(name, path, array.shape) for path, array in safetensors.read(folder).items()}
        safetensors.write(f'{folder}/model.safetensors', tensors)
        return cls.from_pretrained(folder, attn_implementation='eager').eval()
