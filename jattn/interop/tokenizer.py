"""Tokenizers of published models: text to ids and back, by the `tokenizers` package.

A Hugging Face folder has a `tokenizer.json`. A GGUF file has the parts of one, which are put together here: byte-level
byte-pair merges behind the splits that `tokenizer.ggml.pre` names. Text is tokenised whole: the pieces of a text do
not always have the tokens of the whole.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from jattn.config import ConfigError, nearest

CONTROL = 3  # a GGUF token that no text contains
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# tokenizer.ggml.pre -> what splits a text before merges.
SPLITS = {
    'gpt-2': BYTE_LEVEL,
    'smollm': pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
}
CHAT = '<|im_start|>{role}\n{content}<|im_end|>\n'  # ChatML


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back.

    Attributes:
        inner: of the package.
        end: the id that ends an answer or a document; None: the files name none.
        system: the message that leads a chat without one; None: none.
    """

    inner: tokenizers.Tokenizer
    end: int | None = None
    system: str | None = None

    @property
    def size(self) -> int:
        """Tokens of the vocabulary, added ones too."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    def byte_lengths(self) -> np.ndarray | None:
        """How many bytes of text every id stands for, where the vocabulary is of bytes; None: it is not."""
        if not isinstance(self.inner.decoder, decoders.ByteLevel):
            return None
        return np.array([len(self.inner.id_to_token(n) or '') for n in range(self.size)], np.float32)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens written in it are those tokens."""
        return self.inner.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens too."""
        return self.inner.decode(list(map(int, ids)), skip_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of every id alone; bytes that are no text alone show as the replacement sign."""
        return [self.decode([one]) for one in ids]

    def id_of(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            ValueError: it is several.
        """
        ids = self.inner.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ValueError(f'{text!r} is {len(ids)} tokens, not one: {self.pieces(ids)}')
        return ids[0]

    def chat(self, *messages: tuple[str, str]) -> str:
        """The prompt of a conversation of (role, content), up to where the assistant answers (ChatML).

        Raises:
            ConfigError: the model was not trained on this form of conversation.
        """
        if self.inner.token_to_id('<|im_start|>') is None:
            raise ConfigError('chat: this tokenizer has no <|im_start|>: the model has no ChatML conversations')
        if self.system is not None and messages[0][0] != 'system':
            messages = (('system', self.system), *messages)
        said = ''.join(CHAT.format(role=role, content=content) for role, content in messages)
        return f'{said}<|im_start|>assistant\n'

    def check(self, vocabulary: int, where: str) -> None:
        """Raises a ConfigError where the tokenizer has ids that the model has no embedding for."""
        if self.size > vocabulary:
            raise ConfigError(f'{where}: the tokenizer has {self.size} tokens, the model {vocabulary}: they do not fit')


def from_folder(folder: str | pathlib.Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder, its truncation and padding off; None where there is none."""
    path = pathlib.Path(folder) / 'tokenizer.json'
    if not path.is_file():
        return None
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exceptions
        raise ConfigError(f'{path}: not a tokenizer ({error})') from error
    inner.no_truncation()
    inner.no_padding()
    end = config.get('eos_token_id')
    return Tokenizer(inner, end[0] if isinstance(end, list) else end)


def from_gguf(tokens: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Raises:
        ConfigError: one of another kind than byte-level merges, or splits that are not known here.
    """
    kind, split = tokens.get('ggml.model'), tokens.get('ggml.pre')
    if kind != 'gpt2' or split not in SPLITS:
        rule = "ggml.model must be 'gpt2', ggml.pre" if kind != 'gpt2' else 'ggml.pre'
        known = nearest(str(split), SPLITS)
        raise ConfigError(f'{where}: tokenizer ggml.model={kind!r}, ggml.pre={split!r}: {rule} is not known; {known}')
    words = tokens['ggml.tokens']
    merges = [tuple(merge.split(' ')) for merge in tokens['ggml.merges']]
    inner = tokenizers.Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=merges))
    inner.pre_tokenizer = SPLITS[split]
    inner.decoder = decoders.ByteLevel()
    special = [word for word, kind in zip(words, tokens['ggml.token_type']) if kind == CONTROL]
    inner.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    return Tokenizer(inner, tokens.get('ggml.eos_token_id'))
