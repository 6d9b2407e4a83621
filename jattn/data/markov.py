"""Markov models by counting: what a sequence model of few letters must beat.

    p(x_t | x_(t-k) .. x_(t-1)) = (count(x_(t-k) .. x_t) + 1) / (count(x_(t-k) .. x_(t-1)) + letters)

Counts are those of the training documents, smoothed by adding one; the score is exact on the held-out documents: every
letter but a document's first, which no sequence model predicts either. A letter with fewer than k before it is
predicted from those there are.
"""

from collections.abc import Sequence

import numpy as np


def markov_bits(train: Sequence[bytes], held_out: Sequence[bytes], order: int, letters: int) -> float:
    """Bits a letter of the held-out documents under the Markov model of `order` letters of context.

    Args:
        train: documents of letters 0 .. letters - 1.
        held_out: the same.
        order: k.
        letters: how many there are.

    >>> markov_bits([bytes([0, 1] * 50)], [bytes([0, 1] * 50)], order=0, letters=2)
    1.0
    >>> round(markov_bits([bytes([0, 1] * 50)], [bytes([0, 1] * 50)], order=1, letters=2), 4)      # near log2(52 / 51)
    0.0283
    """
    total, count = 0.0, 0
    for k in range(order + 1):
        counts = sum(np.bincount(_codes(document, k, letters), minlength=letters ** (k + 1)) for document in train)
        table = counts.reshape(-1, letters) + 1.0
        bits = -np.log2(table / table.sum(axis=1, keepdims=True)).reshape(-1)
        for document in held_out:
            codes = _codes(document, k, letters)
            # Order k serves the letters with k before them; a lower one only the letter that has just so many.
            chosen = codes[1 if k == 0 else 0 :] if k == order else codes[:1] if k > 0 else codes[:0]
            total, count = total + bits[chosen].sum(), count + len(chosen)
    if not count:
        raise ValueError('markov_bits: held_out has no letter after a first one')
    return float(total / count)


def _codes(document: bytes, order: int, letters: int) -> np.ndarray:
    """Every run of order + 1 letters as one number, the last letter lowest."""
    values = np.frombuffer(document, np.uint8)
    if len(values) <= order:
        return np.zeros(0, np.int64)
    runs = np.lib.stride_tricks.sliding_window_view(values, order + 1)
    return runs @ (letters ** np.arange(order, -1, -1, dtype=np.int64))
