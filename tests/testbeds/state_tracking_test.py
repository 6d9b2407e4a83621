"""State tracking: automata against loops in plain Python, groups by their laws, exact laws of the outputs, scoring."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.testbeds import StateTracking
from jattn.testbeds.automata import AUTOMATA, after, permutations
from jattn.testbeds.state_tracking import run, scan
from tests.testbeds.draws import draw

GROUPS = {'z60': 60, 'a4_z5': 60, 'a5': 60, 's5': 120}


def value_of(symbols):
    """An expression mod 5, evaluated by Python."""
    return eval(''.join('01234+-*'[symbol] for symbol in symbols)) % 5


def answers(language, row):
    """What a language says at every place, by its definition; None where it says nothing."""
    if language == 'parity':
        return [sum(row[: t + 1]) % 2 for t in range(len(row))]
    if language == 'even_pairs':
        return [sum(a != b for a, b in itertools.pairwise(row[: t + 1])) % 2 for t in range(len(row))]
    if language == 'cycle':
        return [sum(move - 1 for move in row[: t + 1]) % 5 for t in range(len(row))]
    if language == 'modular_arithmetic':
        return [value_of(row[: t + 1]) if t % 2 == 0 else None for t in range(len(row))]
    if language == 'z60':
        return [sum(row[: t + 1]) % 60 for t in range(len(row))]
    elements = permutations(5, even=language == 'a5')
    product, found = elements[0], []
    for symbol in row:
        product = after(product, elements[symbol])
        found.append(elements.index(product))
    return found


@pytest.mark.parametrize('language', ['parity', 'even_pairs', 'cycle', 'modular_arithmetic', 'z60', 'a5', 's5'])
def test_targets_are_what_the_definition_says(language):
    batch = draw(StateTracking(language=language, tokens=9), jax.random.key(1), 40)
    for row, targets, mask in zip(*(np.asarray(x).tolist() for x in (batch.inputs, batch.targets, batch.mask))):
        for said, target, scored in zip(answers(language, row), targets, mask):
            assert scored == (said is not None) and target == (said or 0)


@pytest.mark.parametrize('language', AUTOMATA)
def test_the_scan_of_maps_is_the_loop(language):
    automaton = AUTOMATA[language]()
    inputs = draw(StateTracking(language=language, tokens=13), jax.random.key(2), 16).inputs
    np.testing.assert_array_equal(run(automaton, inputs), scan(automaton, inputs))


@pytest.mark.parametrize(('name', 'order'), GROUPS.items())
def test_groups_obey_their_laws(name, order):
    table = AUTOMATA[name]().next
    assert table.shape == (order, order)
    assert all(sorted(row) == list(range(order)) for row in (*table.tolist(), *table.T.tolist()))  # inverses
    np.testing.assert_array_equal(table[0], np.arange(order))
    np.testing.assert_array_equal(table[table], table[np.arange(order)[:, None, None], table[None]])  # associative


def test_a5_is_what_commutators_of_s5_generate_and_its_own():
    def derived(table, members):
        inverse = {a: next(b for b in members if table[a, b] == 0) for a in members}
        found = {table[table[a, b], table[inverse[a], inverse[b]]] for a in members for b in members}
        while (larger := found | {table[a, b] for a in found for b in found}) != found:
            found = larger
        return found

    s5 = AUTOMATA['s5']().next
    once = derived(s5, range(120))
    assert len(once) == 60 and derived(s5, sorted(once)) == once
    assert len(derived(AUTOMATA['a4_z5']().next, range(60))) == 4


@pytest.mark.parametrize(('tokens', 'expected'), [(3, 0.25333), (7, 0.21683)])
def test_the_share_of_zero_in_modular_arithmetic(tokens, expected):
    """Against every expression of that length."""
    law = AUTOMATA['modular_arithmetic']().output_law(tokens)[-1]
    rows = itertools.product(*(range(5) if t % 2 == 0 else (5, 6, 7) for t in range(tokens)))
    shares = np.bincount([value_of(row) for row in rows], minlength=5).astype(float)
    np.testing.assert_allclose(law, shares / shares.sum(), rtol=1e-12)
    assert law[0] == pytest.approx(expected, abs=1e-5)


def test_the_law_of_outputs_is_that_of_samples():
    task = StateTracking(language='modular_arithmetic', tokens=5)
    batch = draw(task, jax.random.key(3), 20_000)
    law = task.automaton.output_law(5)
    for place in (0, 2, 4):
        shares = np.bincount(np.asarray(batch.targets)[:, place], minlength=5) / 20_000
        assert np.all(np.abs(shares - law[place]) < 4.5 * np.sqrt(law[place] * (1 - law[place]) / 20_000))


@pytest.mark.parametrize(('language', 'chance'), [('parity', 1 / 2), ('cycle', 1 / 5), ('a5', 1 / 60), ('s5', 1 / 120)])
def test_facts_are_what_baselines_score(language, chance):
    task = StateTracking(language=language, tokens=12)
    facts, batch = task.facts(), draw(task, jax.random.key(4), 256)
    scored = {name: task.metrics(said, batch) for name, said in task.baselines(batch).items()}
    assert float(scored['automaton']['accuracy'].value()) == 1 and float(scored['automaton']['loss'].value()) == 0
    assert facts['chance_accuracy'] == pytest.approx(chance)
    late = {'parity': 1 / 2, 'cycle': None, 'a5': 1 / 60, 's5': 1 / 120}[language]
    if late is not None:
        assert facts['majority_accuracy'] == pytest.approx(late)
        assert float(scored['majority']['loss'].value()) == pytest.approx(facts['majority'], rel=1e-5)
    assert scored['automaton']['accuracy_by_place'].value().shape == (12,)


def test_the_last_place_alone_is_scored_at_uniform_lengths():
    task = StateTracking(language='modular_arithmetic', tokens=12, scored='last', min_tokens=4)
    batch = draw(task, jax.random.key(5), 3000)
    lengths = 1 + np.argmax(np.asarray(batch.mask), axis=1)
    assert np.all(np.asarray(batch.mask).sum(axis=1) == 1) and set(lengths) == {5, 7, 9, 11}
    assert np.all(np.abs(np.unique(lengths, return_counts=True)[1] / 3000 - 0.25) < 4.5 * np.sqrt(0.1875 / 3000))


@pytest.mark.slow
def test_same_key_same_batch_under_jit_and_vmap():
    task, keys = StateTracking(language='a5', tokens=8), jax.random.split(jax.random.key(6), 3)
    rows = jax.vmap(lambda key: task.sample(key, 4))(keys)
    for n, key in enumerate(keys):
        np.testing.assert_array_equal(rows.inputs[n], draw(task, key, 4).inputs)
    assert not jnp.array_equal(rows.inputs[0], rows.inputs[1]) and rows.inputs.dtype == rows.targets.dtype == jnp.int32


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'language': 'party'}, "language='party' is unknown; did you mean 'parity'?"),
        ({'tokens': 0}, 'tokens=0 must be at least 1'),
        ({'scored': 'some'}, "scored='some' must be one of every, last"),
        ({'min_tokens': 3}, 'min_tokens=3'),
        ({'language': 'modular_arithmetic', 'tokens': 2, 'scored': 'last'}, 'has no answer behind so many symbols'),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match='StateTracking') as error:
        StateTracking(**fields)
    assert message in str(error.value)
