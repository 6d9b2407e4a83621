"""all-MiniLM-L6-v2 from its package: ids, unit vectors, padding, likeness of sentences, parity with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.contract import Context
from jattn.interop import load
from jattn.interop.bert import BERT
from jattn.interop.pretrained import PRETRAINED
from jattn.interop.rules import save
from jattn.understanding import capture

try:
    PATH = PRETRAINED['minilm'].path()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

TEXTS = ('A cat sleeps on the mat.', 'A kitten is napping on a rug, quietly.', 'Shares fell on Monday.')


@pytest.fixture(scope='module')
def found():
    return load('minilm')


def rows_of(found):
    """(ids padded on the right, segments)."""
    rows = [found.tokenizer.encode(text) for text in TEXTS]
    longest = max(map(len, rows))
    ids = jnp.array([row + [0] * (longest - len(row)) for row in rows])
    return ids, jnp.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def test_a_text_stands_between_its_marks_without_padding(found):
    assert found.tokenizer.encode('Attention is all you need.') == [101, 3086, 2003, 2035, 2017, 2342, 1012, 102]
    assert len(found.tokenizer.encode('word ' * 300)) == 302  # its file says to cut at 128


def test_vectors_have_length_one_do_not_see_padding_and_are_near_where_sentences_are(found):
    apply = jax.jit(found.model.apply)
    ids, segments = rows_of(found)
    vectors = apply({'params': found.params}, ids, Context(segments=segments))[0]
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    alone = apply({'params': found.params}, jnp.array([found.tokenizer.encode(TEXTS[0])]))[0][0]
    np.testing.assert_allclose(vectors[0], alone, atol=1e-6)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]


def test_the_way_back_gives_every_tensor_but_the_types_that_were_added(found):
    tensors = save(BERT.rules(found.model.cfg), found.params, found.model.cfg)
    assert len(tensors) == 5 + 16 * 6
    assert not tensors['embeddings.token_type_embeddings.weight'].any()


@pytest.mark.slow
def test_every_layer_and_the_vectors_are_those_of_transformers(found):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    model = transformers.BertModel.from_pretrained(str(PATH)).eval()
    ids, segments = rows_of(found)
    real = np.asarray(segments) > 0
    with torch.no_grad():
        said = model(torch.tensor(np.asarray(ids)), torch.tensor(real).long(), output_hidden_states=True)
    context = Context(segments=segments)
    own = capture.run(found.model, found.params, ids, sites=['resid_post'], context=context)
    for layer, hidden in enumerate(said.hidden_states[1:]):
        np.testing.assert_allclose(own.at('resid_post', layer)[real], hidden.numpy()[real], atol=1e-5)
    mask = torch.tensor(real)[..., None].float()
    mean = (said.last_hidden_state * mask).sum(1) / mask.sum(1)
    theirs = torch.nn.functional.normalize(mean, dim=1).numpy()
    np.testing.assert_allclose(own.outputs, theirs, atol=1e-6)
