"""Small models for the tests of the tools: every form of a decoder, and decoders of recurrent mixers."""

import functools

import jax

from jattn.contract import Context
from jattn.mixers import MIXERS, SoftmaxConfig
from jattn.models import DecoderConfig
from tests.marks import slow_where
from tests.parameters import perturbed_params

GROUPED = SoftmaxConfig(key_heads=2)
FORMS = {
    'scanned': dict(mixer=(GROUPED,)),
    'unrolled': dict(mixer=(GROUPED,), scan=False),
    'hybrid': dict(mixer=(MIXERS['rg_lru'].tiny(), GROUPED)),
    'parallel': dict(mixer=(GROUPED,), block='parallel'),
    'sandwich': dict(mixer=(GROUPED,), block='sandwich'),
    'post': dict(mixer=(GROUPED,), block='post'),
    **{name: dict(mixer=(MIXERS[name].tiny(),)) for name in ('titans_lmm', 'gated_deltanet', 'mamba')},
}
# The quick tests open a scanned decoder; the other forms compile as long again each.
THREE = tuple(slow_where('scanned'.__ne__, ('scanned', 'hybrid', 'unrolled')))
RECURRENT = tuple(slow_where(lambda name: True, ('mamba', 'titans_lmm', 'gated_deltanet')))
VOCABULARY = 11
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, VOCABULARY)
OTHER = jax.random.randint(jax.random.key(4), (2, 7), 0, VOCABULARY)


@functools.cache
def opened(name):
    """(model, params) of a form; parameters with noise, so that nothing starts at zero."""
    fields = dict(width=32, layers=2, read_in='tokens', input_size=VOCABULARY, output_size=VOCABULARY, remat='none')
    cfg = DecoderConfig(**fields | FORMS[name])
    return cfg.make(), perturbed_params(cfg, TOKENS, 0.1)


def metric(logits):
    """The mean difference of two tokens' logits at the last place."""
    return (logits[:, -1, 3] - logits[:, -1, 5]).mean()


def metric_at_five(logits):
    """As `metric`, at place 5."""
    return metric(logits[:, :6])


def padded(tokens, left=2, right=1):
    """Rows with padding on both sides, and their context."""
    rows = jax.numpy.pad(tokens, ((0, 0), (left, right)))
    return rows, Context(segments=jax.numpy.pad(jax.numpy.ones_like(tokens), ((0, 0), (left, right))))
