"""Film reviews in a prompt, and concepts of them: one to be inferred, and two that stand in the text itself.

Review: one long string of cliches .
Sentiment:
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from experiments.papers.contract import ClaimContext
from jattn.data.sentences import SST2Config
from jattn.typing import Array, Float, Int32

PROMPT = 'Review: {}\nSentiment:'
SAID = (' negative', ' positive')  # what the model may say behind the prompt, by label
NOISE = ('aaa', 'bbb')
Encode = Callable[[str], list[int]]
# Concepts that single tokens tell; about half of the reviews have each.
LEXICAL: Mapping[str, Callable[[str], bool]] = {
    'has a comma': lambda text: ' , ' in f' {text} ',
    "has 'the'": lambda text: ' the ' in f' {text} ',
}


@dataclasses.dataclass(frozen=True)
class Reviews:
    """Texts with the answers to every question, by concept."""

    texts: tuple[str, ...]
    labels: Mapping[str, Int32[Array, 'B']]

    def rows(self, encode: Encode) -> list[list[int]]:
        """The prompts' tokens."""
        return [encode(PROMPT.format(text)) for text in self.texts]

    def with_noise(self, share: float, seed: int) -> 'Reviews':
        """Reviews behind three equal letters, as in the published code; a share of them, drawn at random."""
        generator, texts = np.random.default_rng(seed), []
        for text, letters in zip(self.texts, generator.integers(0, 2, len(self.texts))):
            texts.append(f'{NOISE[letters]} {text}' if generator.random() < share else text)
        return dataclasses.replace(self, texts=tuple(texts))


def draw(context: ClaimContext, train: int, held_out: int) -> Reviews:
    """Random sentences of SST-2's training and development files, or made-up ones at size tiny."""
    corpus = SST2Config(path=context.data('sst2'))
    texts = corpus.make_texts() if context.size == 'tiny' else corpus.read_texts()
    generator, drawn = np.random.default_rng(context.seed), []
    for split, count in (('train', train), ('validation', held_out)):
        own = texts[split]
        drawn += [own[n] for n in generator.permutation(len(own))[:count]]
    labels = {'sentiment': [label for _, label in drawn]}
    labels |= {name: [int(told(text)) for text, _ in drawn] for name, told in LEXICAL.items()}
    return Reviews(tuple(text for text, _ in drawn), {name: jnp.array(own, jnp.int32) for name, own in labels.items()})


def bag_of_tokens(rows: list[list[int]]) -> Float[Array, 'B E']:
    """How often every token that occurs in two rows or more is in a row.

    >>> bag_of_tokens([[5, 7, 5], [7, 9]]).tolist()
    [[1.0], [1.0]]
    """
    occurs = np.concatenate([np.unique(row) for row in rows])
    tokens, counts = np.unique(occurs, return_counts=True)
    kept = {token: n for n, token in enumerate(tokens[counts > 1])}
    found = np.zeros((len(rows), len(kept)), np.float32)
    for n, row in enumerate(rows):
        for token in row:
            if token in kept:
                found[n, kept[token]] += 1
    return jnp.asarray(found)
