"""Paper 40's documents: every kind is read as it should be, all of one length; heads to compare with are others."""

import gzip
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.attention_influence import documents
from experiments.papers.contract import ClaimContext
from experiments.papers.retrieval_heads import controls
from jattn.understanding.retrieval import RetrievalScores

FILES = {
    'babi/en10k_qa1_single-supporting-fact_train.txt.gz': (
        '1 Mary went home.\n2 Where is Mary? \thome\t1\n1 Dan left.\n2 Dan sat.\n'
    ),
    'gsm8k/test.jsonl.gz': json.dumps(dict(question='How many?', answer='2+3=<<2+3=5>>5 eggs\n#### 5')),
    'wikitext2/test.txt.gz': ' \n = A head = \n \n The first . \n The second . \n',
    'books/dracula.txt.gz': '\r\n\r\n'.join(f'line {n}\r\nof a paragraph' for n in range(40)),
    'books/great_expectations.txt.gz': '\n\n'.join(f'other {n}' for n in range(31)),
    'xquad/xquad.en.json.gz': json.dumps(
        dict(
            data=[
                dict(
                    paragraphs=[
                        dict(context='It is red.', qas=[dict(question='What is it?', answers=[dict(text='red')])]),
                        dict(context='long ' * 500, qas=[]),
                    ]
                )
            ]
        )
    ),
}
PIECES = {
    'stories': ['Mary went home.\nWhere is Mary? home', 'Dan left.\nDan sat.'],
    'maths': ['How many?\n2+3=5 eggs\n#### 5\n'],
    'encyclopaedia': ['The first .', 'The second .'],
    'novels': [f'line {n} of a paragraph' for n in range(30, 40)] + ['other 30'],
    'questions': ['It is red.\nQ: What is it?\nA: red'],
}


def encode(text):
    return list(text.encode())


@pytest.mark.parametrize('kind', documents.READERS)
def test_the_pieces_of_a_kind_are_its_texts(kind, tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert documents.READERS[kind](ClaimContext('small', tmp_path, tmp_path)) == PIECES[kind]


def test_documents_have_one_length_and_no_two_recall_documents_are_one(tmp_path):
    found = documents.draw(encode, ClaimContext('tiny', tmp_path), count=3, tokens=500)
    assert tuple(found) == documents.KINDS and {rows.shape for rows in found.values()} == {(3, 500)}
    assert len({tuple(row.tolist()) for row in found['recall']}) == 3


def test_recall_says_every_record_once_in_each_of_its_three_parts():
    lines = documents.recall(np.random.default_rng(1), 9).split('\n')
    assert len(lines) == 27
    parts = [lines[start : start + 9] for start in (0, 9, 18)]
    assert len({tuple(part) for part in parts}) == 3 and len({tuple(sorted(part)) for part in parts}) == 1
    assert len({line.split(':')[0] for line in parts[0]}) == 9


def test_a_document_longer_than_its_text_is_named(tmp_path):
    with pytest.raises(ValueError, match='tokens=5000 is more than a document of questions has'):
        documents.draw(encode, ClaimContext('tiny', tmp_path), count=1, tokens=5000)


def test_heads_to_compare_with_are_others_with_low_scores():
    values = jnp.array([[0.9, 0.0, 0.05], [0.8, 0.7, 0.02]])
    scores = RetrievalScores((2, 5), values, jnp.ones(1))
    top = scores.ranked()[:3]
    matched = controls.of_the_same_layers(np.random.default_rng(0), top, scores)
    assert top == [(2, 0), (5, 0), (5, 1)]
    assert matched[0] in {(2, 1), (2, 2)} and matched[1:] == [(5, 2)]  # layer 5 has no second
    drawn = controls.random_heads(np.random.default_rng(0), scores.ranked()[3:], 2)
    assert len(set(drawn)) == 2 and not set(drawn) & set(top)
