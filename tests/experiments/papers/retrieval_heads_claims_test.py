"""Paper 34's needles: what is marked is what is asked for, rows and answers have one length, short rows are named."""

import numpy as np
import pytest

from experiments.papers.retrieval_heads import needles


def encode(text):
    return list(text.encode())


def test_the_marked_tokens_are_the_answer_and_stand_behind_the_question():
    book = needles.read_book(encode, None)
    rows = needles.draw(encode, book, rows=6, tokens=400, seed=0)
    tokens, marks = np.asarray(rows.tokens), np.asarray(rows.needle)
    assert tokens.shape == (6, 400) and marks.sum(axis=1).tolist() == [rows.answer] * 6
    places = []
    for row, mark in zip(tokens, marks):
        text = bytes(row.tolist()).decode()
        answer = bytes(row[mark].tolist()).decode()
        assert text.endswith(answer) and text.count(answer) == 2 and answer.startswith(' ')
        first = int(np.argmax(mark))
        assert text[:first].endswith(' is to') and text[first + rows.answer] == '.'
        places.append(first)
    assert places == sorted(places) and len(set(places)) == 6  # evenly spread depths
    assert np.asarray(rows.answers).sum(axis=1).tolist() == [rows.answer] * 6


def test_a_row_too_short_for_a_needle_is_named():
    with pytest.raises(ValueError, match='tokens=60 leaves no room'):
        needles.draw(encode, needles.read_book(encode, None), rows=2, tokens=60, seed=0)
