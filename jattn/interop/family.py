"""What a family of published models is: how their config becomes a trunk, and the table of their tensors.

cfg = family.trunk(config)              config: a dict, with the names of Hugging Face's config.json
rules = family.rules(cfg)               their tensors <-> our parameters
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jattn.config import ConfigError
from jattn.contract import Context
from jattn.interop.rules import Rule
from jattn.models.trunk import TrunkConfig
from jattn.typing import Array

Config = Mapping[str, Any]


def one_token(cfg: TrunkConfig) -> tuple[Array, Context]:
    """The inputs that a model of tokens is initialised with."""
    del cfg
    return jnp.zeros((1, 1), jnp.int32), Context()


@dataclasses.dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        trunk: from their config.
        rules: of a trunk that `trunk` made.
        example: inputs and context that the trunk is initialised with.
        describe: their config from a trunk, the inverse of `trunk`, where models are exported; None: they are not.
        prefix: what some files put before every name.
        ignored: patterns of names that are no parameters (buffers, heads of the training); say why beside each.
    """

    trunk: Callable[[Config], TrunkConfig]
    rules: Callable[[Any], list[Rule]]
    example: Callable[[Any], tuple[Array, Context]] = one_token
    describe: Callable[[Any], dict[str, Any]] | None = None
    prefix: str = ''
    ignored: Sequence[str] = ()


def need(config: Config, name: str, legal: Sequence[Any]) -> Any:
    """A value of their config that we can follow, or an error that names it and what is legal.

    >>> need({'hidden_act': 'silu'}, 'hidden_act', ['silu'])
    'silu'
    """
    value = config.get(name, legal[0])
    if value not in legal:
        raise ConfigError(f'config: {name}={value!r} is not one of {", ".join(map(repr, legal))}, which are read')
    return value
