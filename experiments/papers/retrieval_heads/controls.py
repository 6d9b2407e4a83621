"""Heads that are silenced for comparison: as many random ones, and as many of the same layers that do not retrieve."""

from collections.abc import Sequence

import numpy as np

from jattn.understanding.retrieval import RetrievalScores

Head = tuple[int, int]  # (layer, head)
LOW = 0.1  # a head below this retrieval score does not retrieve


def random_heads(generator: np.random.Generator, pool: Sequence[Head], count: int) -> list[Head]:
    """Different heads of a pool."""
    return [pool[n] for n in generator.permutation(len(pool))[:count]]


def of_the_same_layers(generator: np.random.Generator, heads: Sequence[Head], scores: RetrievalScores) -> list[Head]:
    """For each head another of its layer with a low score, all different; none where the layer has no more."""
    value = lambda head: float(scores.scores[scores.layers.index(head[0]), head[1]])
    low = [head for head in scores.ranked() if value(head) < LOW]
    chosen: list[Head] = []
    for layer, _ in heads:
        own = [head for head in low if head[0] == layer and head not in chosen]
        if own:
            chosen.append(own[generator.integers(len(own))])
    return chosen
