"""The only reader of disks: corpora as Grain pipelines. `CORPORA` is the one table; each runs without any file."""

from jattn.data.corpus import Corpus
from jattn.data.dna import DnaConfig
from jattn.data.series import SeriesConfig
from jattn.data.text import TextConfig

CORPORA: dict[str, Corpus] = {'text': TextConfig(), 'series': SeriesConfig(), 'dna': DnaConfig()}
