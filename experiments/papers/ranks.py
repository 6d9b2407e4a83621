"""Whether two measures put things in one order."""

import numpy as np


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of ranks; without ties.

    >>> spearman(np.array([1.0, 5.0, 9.0]), np.array([2.0, 3.0, 30.0]))
    1.0
    """
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])
