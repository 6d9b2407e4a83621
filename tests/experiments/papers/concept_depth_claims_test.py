"""Paper 49's reviews and features: labels fit the texts, noise is in front, padding and batches change no feature."""

import jax.numpy as jnp
import numpy as np

from experiments.papers import real_model
from experiments.papers.concept_depth import reading, reviews
from experiments.papers.contract import ClaimContext
from jattn.understanding import capture


def test_lexical_labels_are_facts_of_the_texts(tmp_path):
    folder = tmp_path / 'sst2'
    folder.mkdir()
    lines = ['0 a dull , long film .', '1 the best of the year', '1 other']
    for name in ('train', 'dev', 'test'):
        (folder / f'stsa.binary.{name}').write_text('\n'.join(lines))
    found = reviews.draw(ClaimContext('small', tmp_path, tmp_path), train=3, held_out=2)
    assert len(found.texts) == 5 and set(found.texts[:3]) == {line[2:] for line in lines}
    for n, text in enumerate(found.texts):
        own = {name: int(labels[n]) for name, labels in found.labels.items()}
        assert own == {
            'sentiment': int(f'1 {text}' in lines),
            'has a comma': int(',' in text),
            "has 'the'": int(text.startswith('the')),
        }


def test_noise_stands_in_front_of_its_share_of_the_texts():
    plain = reviews.Reviews(tuple(f'text {n}' for n in range(40)), {})
    assert plain.with_noise(0.0, 0) == plain
    noisy = plain.with_noise(1.0, 0).texts
    assert {text[:4] for text in noisy} == {'aaa ', 'bbb '} and tuple(text[4:] for text in noisy) == plain.texts
    assert 0 < sum(text.startswith('text') for text in plain.with_noise(0.5, 0).texts) < 40


def test_bags_count_the_tokens_that_are_not_in_one_row_alone():
    rows = [[1, 2, 2, 9], [2, 3, 3], [3, 1]]
    assert reviews.bag_of_tokens(rows).tolist() == [[1, 2, 0], [0, 1, 2], [1, 0, 1]]


def test_features_are_those_of_each_row_alone(tmp_path):
    real = real_model.open_real(ClaimContext('tiny', tmp_path))
    rows = [real.encode(text) for text in ('a film', 'a much longer text of a film', 'b', 'one more')]
    found = reading.last_tokens(real, real.params, rows, batch=3)
    assert found.shape == (3, 4, 16)
    for n, row in enumerate(rows):
        alone = capture.run(real.model, real.params, jnp.array([row]), sites=['resid_pre', 'resid_post'])
        expected = jnp.concatenate([alone.stack('resid_pre')[:1], alone.stack('resid_post')])[:, 0, -1]
        np.testing.assert_allclose(found[:, n], expected, atol=1e-5)
    said = reading.first_words(real, found[-1], (' negative', 'x'))
    logits = capture.run(real.model, real.params, jnp.array([rows[1]])).outputs[0, -1]
    np.testing.assert_allclose(said[1], logits[jnp.array([ord(' '), ord('x')])], atol=1e-5)
