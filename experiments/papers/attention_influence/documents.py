"""Documents of kinds that need their own context more and less, all of one length in tokens.

A kind is a list of pieces of text: stories, paragraphs with their questions, worked answers, paragraphs of a novel. A
document is what follows a piece drawn at random, cut to its length. Recall documents are made here: records of a random
key and a value, then the same records in another order, so that what is asked for stands in front.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from experiments.papers.contract import ClaimContext
from experiments.papers.retrieval_heads.needles import ADJECTIVES, NOUNS
from jattn.data.corpus import read_bytes
from jattn.typing import Array, Int32

Encode = Callable[[str], list[int]]
# From what needs its context most to what needs it least, as it was found before this was written.
KINDS = ('recall', 'questions', 'stories', 'maths', 'encyclopaedia', 'novels')
NOVELS = ('dracula', 'great_expectations')
FRONT = 30  # paragraphs of a novel that are left out: its title, its contents
PARAGRAPH = 600  # characters of a paragraph at most, so that its questions are in the document too


def draw(encode: Encode, context: ClaimContext, count: int, tokens: int) -> dict[str, Int32[Array, 'N T']]:
    """Documents of every kind.

    Args:
        encode: of the model.
        context: where the texts lie; of size tiny all but recall are of our own sentences.
        count: N, of a kind.
        tokens: T, of a document.
    """
    generator, found = np.random.default_rng(context.seed), {}
    for kind in KINDS:
        if kind == 'recall':
            rows = [encode(recall(generator, tokens // 16)) for _ in range(count)]  # a record has about 8 tokens
        else:
            pieces = _pieces(context, kind)
            starts = generator.integers(0, max(1, len(pieces) - 20), count)
            rows = [encode('\n'.join(pieces[start : start + 20])) for start in starts]
        for row in rows:
            if len(row) < tokens:
                raise ValueError(f'documents: tokens={tokens} is more than a document of {kind} has ({len(row)})')
        found[kind] = jnp.array([row[:tokens] for row in rows], jnp.int32)
    return found


def recall(generator: np.random.Generator, records: int) -> str:
    """Records of a key in hexadecimal and a value, three times, each in an order of its own.

    >>> text = recall(np.random.default_rng(0), 16).split()
    >>> len(text), len(set(text[0::3])), text[0] in text[3 * 16 :]
    (144, 16, True)
    """
    keys = [f'{key:04x}' for key in generator.permutation(1 << 16)[:records]]
    values = [f'{generator.choice(ADJECTIVES)} {generator.choice(NOUNS)}' for _ in keys]
    orders = [generator.permutation(records) for _ in range(3)]
    return '\n'.join(f'{keys[n]}: {values[n]}' for order in orders for n in order)


def _pieces(context: ClaimContext, kind: str) -> list[str]:
    """The texts of a kind, in their order."""
    if context.size == 'tiny':
        return [f'{kind} {n}: it rained all day, and nobody came to the door.' for n in range(40)]
    return READERS[kind](context)


def _questions(context: ClaimContext) -> list[str]:
    """XQuAD's shorter English paragraphs, each with its questions and answers."""
    found = json.loads(_read(context, 'xquad', 'xquad.en.json.gz'))
    paragraphs = [one for article in found['data'] for one in article['paragraphs']]
    asked = lambda qas: ''.join(f'\nQ: {one["question"]}\nA: {one["answers"][0]["text"]}' for one in qas)
    return [one['context'] + asked(one['qas']) for one in paragraphs if len(one['context']) <= PARAGRAPH]


def _stories(context: ClaimContext) -> list[str]:
    """bAbI's first task: who is where, the answers behind the questions."""
    lines = _read(context, 'babi', 'en10k_qa1_single-supporting-fact_train.txt.gz').splitlines()
    stories: list[list[str]] = []
    for line in lines:
        number, said = line.split(' ', 1)
        if number == '1':
            stories.append([])
        stories[-1].append(' '.join(part.strip() for part in said.split('\t')[:2]))
    return ['\n'.join(story) for story in stories]


def _maths(context: ClaimContext) -> list[str]:
    """GSM8K's questions with their worked answers, without the calculator's notes."""
    rows = [json.loads(line) for line in _read(context, 'gsm8k', 'test.jsonl.gz').splitlines()]
    return [re.sub('<<.*?>>', '', f'{row["question"]}\n{row["answer"]}\n') for row in rows]


def _encyclopaedia(context: ClaimContext) -> list[str]:
    """WikiText-2's paragraphs, without headings."""
    lines = [line.strip() for line in _read(context, 'wikitext2', 'test.txt.gz').splitlines()]
    return [line for line in lines if line and not line.startswith('=')]


def _novels(context: ClaimContext) -> list[str]:
    """Paragraphs of two novels, lines unwrapped, behind their first pages."""
    texts = [_read(context, 'books', f'{title}.txt.gz').replace('\r', '') for title in NOVELS]
    books = [[' '.join(one.split()) for one in text.split('\n\n') if one.strip()] for text in texts]
    return [one for book in books for one in book[FRONT:]]


READERS: Mapping[str, Callable[[ClaimContext], list[str]]] = {
    'questions': _questions,
    'stories': _stories,
    'maths': _maths,
    'encyclopaedia': _encyclopaedia,
    'novels': _novels,
}


def _read(context: ClaimContext, name: str, file: str) -> str:
    return read_bytes(pathlib.Path(context.data(name)) / file).decode(errors='replace')
