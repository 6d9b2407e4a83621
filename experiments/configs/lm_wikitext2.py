"""How well does a small decoder predict Wikipedia articles byte by byte, on 'WikiText-2 (test->valid)'?

    python -m experiments.run --config=lm_wikitext2 --set data.path=DIR/wikitext2 --workdir=runs/lm_wikitext2

The folder holds WikiText-2's test.txt.gz, which is trained on, and valid.txt.gz, which is held out: a split of our own,
by bytes, whose figures say nothing beside published WikiText-2 perplexities. Only --size=tiny runs without a path, on
the sources of Python's standard library.
"""

import dataclasses

from experiments.configs import lm_bytes
from jattn.data import TextConfig
from jattn.training.experiment import Experiment


def config(size: str) -> Experiment:
    """The sizes of lm_bytes."""
    base = lm_bytes.config(size)
    if size == 'tiny':
        return base
    data = TextConfig(tokens=base.data.tokens, train=('test.txt*',), validation=('valid.txt*',))
    return dataclasses.replace(base, data=data)
