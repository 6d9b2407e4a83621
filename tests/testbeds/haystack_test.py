"""Haystacks: letters, files, cuts, hidden pieces and scores by depth, each against a loop or its law."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np

from jattn.testbeds.haystack import (
    LETTERS,
    LINE,
    MOST_BYTES,
    TENTHS,
    accuracy_by_depth,
    cut,
    hide,
    letter_law,
    letters,
    read,
)


def test_letters_follow_the_law_of_the_source():
    text = np.asarray(jax.jit(letters, static_argnums=(1, 2))(jax.random.key(5), 50, 40 * LINE - 7))
    assert text.shape == (50, 40 * LINE - 7)
    lines = bytes(text[:, -39 * LINE :].reshape(-1).tolist()).decode().split('\n')[:-1]
    assert {len(line) for line in lines} == {LINE - 1}
    pairs = np.array([[LETTERS.index(letter) for letter in ' ' + line] for line in lines])
    before, after = pairs[:, :-1].reshape(-1), pairs[:, 1:].reshape(-1)
    law = letter_law()
    assert law.shape == (27, 27) and np.allclose(law.sum(axis=1), 1)
    for letter in (LETTERS.index(letter) for letter in 'eut '):
        counts = np.bincount(after[before == letter], minlength=27)
        error = np.sqrt(counts.sum() * law[letter] * (1 - law[letter]))
        assert np.all(np.abs(counts - counts.sum() * law[letter]) <= 4.5 * error)


def test_a_file_is_read_once_unpacked_and_up_to_four_mebibytes(tmp_path):
    packed, long = tmp_path / 'a.txt.gz', tmp_path / 'b.txt'
    packed.write_bytes(gzip.compress(b'two words'))
    assert read(str(packed))[0].tobytes() == b'two words'
    packed.unlink()
    assert read(str(packed))[0].tobytes() == b'two words'
    long.write_bytes(b'a b ' * 2**20 + b'c')
    assert MOST_BYTES == 2**22 and len(read(str(long))[0]) == 2**22 and len(read(str(long))[1]) == 2**21


def test_cuts_and_pieces_are_what_a_loop_finds():
    rng = np.random.default_rng(0)
    text, breaks = rng.integers(0, 9, (6, 30)), rng.random((6, 30)) < 0.2
    depth = rng.random((6, 4)).astype(np.float32)
    before = np.sort(np.asarray(cut(jnp.asarray(breaks), jnp.asarray(depth))), axis=1)
    cuts = [[0, *np.flatnonzero(row) + 1] for row in breaks]
    best = [[min(abs(at - np.round(d * 30)) for at in row) for d in one] for row, one in zip(cuts, depth)]
    found = np.asarray(cut(jnp.asarray(breaks), jnp.asarray(depth)))
    np.testing.assert_array_equal(np.abs(found - np.round(depth * 30)), best)
    assert all(set(row) <= set(one) for row, one in zip(found.tolist(), cuts))
    pieces = rng.integers(10, 99, (6, 4, 3))
    hidden = hide(*(jnp.asarray(x, jnp.int32) for x in (text, pieces, before)), 42)
    for row in range(6):
        expected = []
        for at in range(31):
            expected += [t for piece, place in zip(pieces[row], before[row]) if place == at for t in piece]
            expected += text[row, at : at + 1].tolist()
        assert hidden[row].tolist() == expected


def test_accuracy_is_told_by_tenth_of_the_depth():
    rng = np.random.default_rng(1)
    depth, right = rng.random(300).astype(np.float32), rng.random(300) < 0.5
    curve = accuracy_by_depth(jnp.asarray(right), jnp.asarray(depth))
    for tenth in range(TENTHS):
        inside = (depth >= tenth / 10) & (depth < (tenth + 1) / 10)
        assert curve.count[tenth] == inside.sum()
        np.testing.assert_allclose(curve.value()[tenth], right[inside].mean(), rtol=1e-6)
