"""How well does a small decoder predict a whole novel that it has not read, byte by byte?

    python -m experiments.run --config=lm_books --set data.path=DIR/books --workdir=runs/lm_books

The folder holds whole novels as <title>.txt.gz: nine are read, Pride and Prejudice is held out; A Tale of Two Cities
and Dracula are left for a test, --set data.validation=tale_of_two_cities,dracula. Other folders need other names:
data.validation, data.train. Only --size=tiny runs without a path, on the sources of Python's standard library.
"""

import dataclasses

from experiments.configs import lm_bytes
from jattn.data import TextConfig
from jattn.training.experiment import Experiment

TRAIN = (
    'alice_in_wonderland',
    'david_copperfield',
    'emma',
    'great_expectations',
    'middlemarch',
    'moby_dick',
    'sherlock_holmes',
    'ulysses',
    'war_and_peace',
)


def config(size: str) -> Experiment:
    """The sizes of lm_bytes; small and paper read the novels in rows of 512 and 2048 bytes."""
    base = lm_bytes.config(size)
    if size == 'tiny':
        return base
    tokens = 512 if size == 'small' else 2048
    return dataclasses.replace(base, data=TextConfig(tokens=tokens, train=TRAIN, validation=('pride_and_prejudice',)))
