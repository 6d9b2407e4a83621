"""Paper 38's prompts stand token beside token, places are what they say, forced heads look where they are told."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers import real_model
from experiments.papers.circuit_reuse import heads, prompts
from experiments.papers.contract import ClaimContext


def encode(text):
    return list(text.encode())


@pytest.mark.parametrize('task', prompts.TASKS)
def test_pairs_have_one_length_and_differ_where_the_answer_is_decided(task):
    found = prompts.TASKS[task](encode, np.random.default_rng(0), 8)
    assert found.clean.shape == found.corrupted.shape and len(found.clean) == 8
    differ = np.asarray(jnp.any(found.clean != found.corrupted, axis=1))
    assert differ.all() and not np.any(found.clean[:, -1] != found.corrupted[:, -1])
    wrong = np.asarray(found.right != found.wrong)
    assert wrong.any() and np.any(np.asarray(found.options) == np.asarray(found.right)[:, None], axis=1).all()


def texts(rows):
    return [bytes(row.tolist()).decode() for row in np.asarray(rows)]


def test_the_repeated_name_is_not_the_answer_and_places_are_the_names():
    found = prompts.ioi(encode, np.random.default_rng(1), 9)
    for n, (clean, corrupted) in enumerate(zip(texts(found.clean), texts(found.corrupted))):
        at = {name: int(place[n]) for name, place in found.places.items()}
        one, two = clean[at['IO'] :].split()[0], clean[at['S1'] :].split()[0]
        subject = clean.split(' gave')[0].split()[-1].strip(',')
        assert subject == two != one and clean[at['S2']] == subject[-1]
        assert corrupted == clean.replace(f',{" "}{two} gave', f', {one} gave')
        assert (int(found.right[n]), int(found.wrong[n])) == (ord(one[-1]), ord(two[-1]))


def test_the_colours_stand_where_they_are_said_to():
    found = prompts.colored(encode, np.random.default_rng(2), 9)
    for n, (clean, corrupted) in enumerate(zip(texts(found.clean), texts(found.corrupted))):
        scene, asked = clean.split('\n')[1], clean.rsplit('the ', 1)[1].removesuffix('? A:')
        other = corrupted.rsplit('the ', 1)[1].removesuffix('? A:')
        words = [clean[int(found.places[f'option {k}'][n]) :].split()[0] for k in range(3)]
        assert f'{words[0]} {asked}' in scene and f'{words[1]} {other}' in scene and len(set(words)) == 3
        assert [ord(word[-1]) for word in words] == found.options[n].tolist()


def test_years_begin_later_in_the_clean_prompt_and_arguments_are_exchanged():
    years = prompts.greater_than(encode, np.random.default_rng(3), 6)
    for n, clean in enumerate(texts(years.clean)):
        tens = int(clean.split(' 17')[1][0])
        assert tens == int(years.places['tens'][n]) and int(years.right[n]) - ord('0') == tens + 1
        assert years.options[n].tolist() == [ord(digit) for digit in '0123456789']
    functions = prompts.docstring(encode, np.random.default_rng(4), 6)
    for clean, corrupted in zip(texts(functions.clean), texts(functions.corrupted)):
        own, turned = (text.split('(self, ')[1].split(')')[0].split(', ') for text in (clean, corrupted))
        assert turned == [own[0], own[1], own[3], own[2], own[4]] and len(set(own)) == 5
        assert clean.count(own[0]) >= 2 and clean.endswith(':param') and f':param {own[1]}:' in clean


def test_prompts_of_several_lengths_are_named():
    rows = [prompts.Row('a', 'b', ['x', 'y'], {}), prompts.Row('aa', 'bb', ['x', 'y'], {})]
    with pytest.raises(ValueError, match=r'rows have \[1, 2\] tokens'):
        prompts._pairs(encode, rows)


def test_forcing_no_head_changes_nothing_and_a_row_of_the_models_own_neither(tmp_path):
    real = real_model.open_real(ClaimContext('tiny', tmp_path))
    pairs = prompts.colored(real.encode, np.random.default_rng(0), 2)
    logits, looks = heads._read(real.model, real.params, pairs.clean)
    assert looks.shape == (2, 2, 4, pairs.clean.shape[1])
    np.testing.assert_allclose(looks.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(heads.force_to_wrong(real, pairs, []), logits, atol=1e-6)
    only = jnp.zeros((2, 4), bool).at[1, 2].set(True)
    own = heads._forced(real.model, real.params, pairs.clean, looks[1, :, 2], only)
    np.testing.assert_allclose(own, logits, atol=1e-6)
    forced = heads.force_to_wrong(real, pairs, [(1, 2)])
    assert np.max(np.abs(forced - logits)) > 1e-4
