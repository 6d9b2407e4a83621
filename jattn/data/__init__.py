"""The only reader of disks: corpora as Grain pipelines."""

from jattn.data.text import TextConfig
