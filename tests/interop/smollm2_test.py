"""SmolLM2-135M-Instruct from its GGUF file: published logits, odd strings, parity with transformers, long prompts."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.interop import gguf, load
from jattn.interop.pretrained import PRETRAINED

try:
    PATH = PRETRAINED['smollm2'].path()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

TEXT = (
    'It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, '
    'it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of '
    'Darkness, it was the spring of hope, it was the winter of despair'
)


@pytest.fixture(scope='module')
def found():
    return load('smollm2')


@pytest.fixture(scope='module')
def logits_of(found):
    """text -> the logits behind every token [T, E]."""
    apply = jax.jit(found.model.apply)
    return lambda text: apply({'params': found.params}, jnp.array([found.tokenizer.encode(text)]))[0][0]


def test_it_is_the_model_that_its_package_says(found):
    assert sum(leaf.size for leaf in jax.tree.leaves(found.params)) == 134_515_008
    cfg = found.model.cfg
    assert (cfg.layers, cfg.width, cfg.mixers()[0].heads, cfg.mixers()[0].num_key_heads) == (30, 576, 9, 3)
    assert (cfg.mixers()[0].rotary_base, cfg.norm_epsilon, cfg.tied, found.longest) == (1e5, 1e-5, True, 8192)


def test_the_capital_of_france_has_the_published_logits(found, logits_of):
    assert found.tokenizer.encode('The capital of France is') == [504, 3575, 282, 4649, 314]
    last = logits_of('The capital of France is')[-1]
    values, ids = jax.lax.top_k(last, 3)
    assert found.tokenizer.pieces(ids) == [' Paris', ' the', ' London'] and ids.tolist() == [7042, 260, 4528]
    np.testing.assert_allclose(values, [17.371, 14.889, 13.245], atol=1e-3)
    np.testing.assert_allclose(jax.nn.logsumexp(last), 17.629, atol=1e-3)


def mean_loss(logits, ids):
    return -jnp.mean(jax.nn.log_softmax(logits[:-1])[jnp.arange(len(ids) - 1), jnp.array(ids[1:])])


def test_the_opening_of_a_novel_is_known_by_heart(found, logits_of):
    ids = found.tokenizer.encode(TEXT)
    np.testing.assert_allclose(mean_loss(logits_of(TEXT), ids), 1.620, atol=2e-3)  # nats a token; as a novel: 3.2


@pytest.mark.parametrize(
    ('text', 'ids'),
    [
        (' 47', [216, 36, 39]),  # the space is its own token, every digit too
        ('  12', [256, 33, 34]),
        ('0123456789', list(range(32, 42))),
        ('a\n\n', [81, 1116]),  # at the end one token, before a letter two
        ('a\n\nb', [81, 198, 198, 82]),
        ('<|endoftext|><|im_start|><|im_end|>', [0, 1, 2]),
        ('', []),
    ],
)
def test_odd_strings_have_the_ids_of_llama_cpp(found, text, ids):
    assert found.tokenizer.encode(text) == ids


def test_text_of_any_script_comes_back(found):
    for text in (
        ' lead',
        'tail ',
        "don't",
        'naïve café',
        '日本語',
        '🙂👍🏽',
        '\t\r\n x',
        'a\u200db',
        'x' * 300,
        '\x00\x7f',
    ):
        assert found.tokenizer.decode(found.tokenizer.encode(text)) == text
    assert found.tokenizer.id_of(' Paris') == 7042 and found.tokenizer.end == 2 and found.tokenizer.size == 49152


def test_a_chat_begins_with_the_system_message_that_it_was_trained_on(found):
    assert found.tokenizer.chat(('user', 'Hi')) == (
        '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n'
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    )


@pytest.mark.slow
def test_logits_are_those_of_transformers_on_the_same_weights(found, logits_of):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    config, tensors, _ = gguf.read(PATH)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, attn_implementation='eager')).eval()
    missing, unknown = model.load_state_dict(
        {n: torch.from_numpy(np.array(t)) for n, t in tensors.items()}, strict=False
    )
    assert missing == ['lm_head.weight'] and not unknown  # tied
    for text in (
        TEXT,
        'The capital of France is',
        found.tokenizer.chat(('user', 'What is 12 + 7?')),
        'def f(x):\n    ',
    ):
        with torch.no_grad():
            theirs = model(torch.tensor([found.tokenizer.encode(text)])).logits[0].numpy()
        own = np.asarray(logits_of(text))
        np.testing.assert_allclose(own, theirs, atol=2e-4)
        assert (own.argmax(-1) == theirs.argmax(-1)).all()


LONG = """
import resource
import jax, jax.numpy as jnp
from jattn.interop import load
from jattn.models.generate import generate
found = load('smollm2')
prompt = jax.random.randint(jax.random.key(0), (1, 4096), 100, 40_000)
generate(found.model, found.params, prompt, jnp.array([4096]), 2, chunk=512).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_prompt_of_4096_tokens_is_read_in_chunks_within_4_gib():
    done = subprocess.run([sys.executable, '-c', LONG], capture_output=True, text=True, timeout=900, check=True)
    assert int(done.stdout) < 4 * 2**20  # KiB
