"""The only reader of disks: corpora as Grain pipelines. `CORPORA` is the one table; each runs without any file.

| key | rows | targets | file |
| --- | --- | --- | --- |
| text | bytes of files | the next byte | text.py |
| series | windows of a table with dates | the next values | series.py |
| dna | bases of a genome, or labelled sequences | the next base, or a class | dna.py |
| mnist, fashion_mnist_mini, omniglot | images | a class | images.py |
| fsdd | log-mel frames of a spoken digit | a class | audio.py |
| ucr | series of the UCR and UEA archives | a class | class_series.py |
| sst2, movie_polarity, ag_news | bytes or words of a text | a class | sentences.py |

What is classified shares `classes.py`, and needs a trunk with one output a row.
"""

from jattn.data.audio import FSDDConfig
from jattn.data.class_series import UCRConfig
from jattn.data.classes import ClassCorpus
from jattn.data.corpus import Corpus
from jattn.data.dna import DnaConfig
from jattn.data.images import FashionMiniConfig, MNISTConfig, OmniglotConfig
from jattn.data.sentences import AGNewsConfig, MoviePolarityConfig, SST2Config
from jattn.data.series import SeriesConfig
from jattn.data.text import TextConfig

CORPORA: dict[str, Corpus] = {
    'text': TextConfig(),
    'series': SeriesConfig(),
    'dna': DnaConfig(),
    'mnist': MNISTConfig(),
    'fashion_mnist_mini': FashionMiniConfig(),
    'omniglot': OmniglotConfig(),
    'fsdd': FSDDConfig(),
    'ucr': UCRConfig(),
    'sst2': SST2Config(),
    'movie_polarity': MoviePolarityConfig(),
    'ag_news': AGNewsConfig(),
}
