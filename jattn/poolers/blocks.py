"""Poolers that are blocks of Transformers: V-JEPA, SigLIP, CLIP, CoCa, CaiT, and DINO's whole block.

A is multi-head attention of one query, M the feed-forward block with exact GELU, n LayerNorm, u a learned token:

    V-JEPA   z = u + A(u; n(x))                vec = z + M(n(z))              Bardes et al. 2024
    SigLIP   z = A(u; x)                       vec = z + M(z)                 Zhai et al. 2023
    CLIP     s = [mean n(x), n(x)] + p         vec = A(s_0; s)                Radford et al. 2021
    CoCa     A's heads share one key and one value; vec = A(n(u); x)          Yu et al. 2022
    CaiT     z = u + g_1 * A(n([u, x]))        vec = n(z + g_2 * M(n(z)))     Touvron et al. 2021; u asks, g are vectors
    DINO     z = x + A(n(x)), all tokens ask   vec = mean_t (z + M(n(z)))     Caron et al. 2021

As in the code of paper 50, where CLIP's tokens are normalised first, which OpenAI's are not, and CoCa's are not, which
its authors' are. Left out is what changes no output: the biases of keys, and CoCa's other 195 queries, of which paper
50 reads only the first. DINO's attention has no output bias here, and initial values are this library's.

A key that is no token, CLIP's mean and CaiT's u, has no place in the maps: they are those of the tokens, scaled to sum
to 1. DINO's block has none.
"""

import dataclasses
from typing import ClassVar, Self

import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, locate
from jattn.mixers.softmax import SoftmaxConfig
from jattn.nn.feed_forward import FeedForwardConfig
from jattn.nn.norm import LayerNorm
from jattn.poolers.attentive import HeadsConfig, Pooled, QueryAttention
from jattn.poolers.pooler import learned_queries, mean_over_tokens, real_tokens, scale_norm
from jattn.typing import Array, Bool, Float

MLP = FeedForwardConfig(activation='gelu_exact', use_bias=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VJEPAConfig(HeadsConfig):
    """V-JEPA: a cross-attention block of a learned token, which is not normalised.

    Attributes:
        mlp: the feed-forward block.

    >>> import jax
    >>> (vec, maps), _ = VJEPAConfig(width=24).make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 24)))
    >>> vec.shape, maps.shape
    ((2, 24), (2, 12, 5))
    """

    heads: int = 12
    mlp: FeedForwardConfig = MLP

    def make(self, **flax_kwargs: object) -> nn.Module:
        return VJEPA(self, **flax_kwargs)


class VJEPA(nn.Module):
    """The module of `VJEPAConfig`."""

    cfg: VJEPAConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> Pooled:
        tokens, real = real_tokens(tokens, context)
        query, normed = _token(self, tokens, 0.02), LayerNorm(1e-5, name='token_norm')(tokens)
        y, maps = _attention(self.cfg)(query, normed, normed, real)
        z = query + y
        z = z + self.cfg.mlp.make(name='mlp')(LayerNorm(1e-5, name='mlp_norm')(z))
        return z[:, 0], maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIPConfig(HeadsConfig):
    """SigLIP: attention of a learned token, then a feed-forward block; no norms, and the token itself is not added.

    Attributes:
        mlp: the feed-forward block.

    >>> import jax
    >>> (vec, maps), _ = SigLIPConfig(width=16).make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape
    ((2, 16), (2, 8, 5))
    """

    heads: int = 8
    mlp: FeedForwardConfig = MLP

    def make(self, **flax_kwargs: object) -> nn.Module:
        return SigLIP(self, **flax_kwargs)


class SigLIP(nn.Module):
    """The module of `SigLIPConfig`."""

    cfg: SigLIPConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> Pooled:
        cfg = self.cfg
        tokens, real = real_tokens(tokens, context)
        z, maps = _attention(cfg)(_token(self, tokens, cfg.require_width() ** -0.5), tokens, tokens, real)
        z = z + cfg.mlp.make(name='mlp')(z)
        return z[:, 0], maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig(HeadsConfig):
    """CLIP: self-attention of the tokens and their mean, read at the mean.

    Attributes:
        positions: how many places have a learned vector, beside the mean's; no fewer than tokens.

    >>> import jax
    >>> cfg = CLIPConfig(width=16, positions=5)
    >>> (vec, maps), _ = cfg.make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape
    ((2, 16), (2, 4, 5))
    """

    ordered: ClassVar[bool] = True

    heads: int = 4
    positions: int = 256

    def make(self, **flax_kwargs: object) -> nn.Module:
        return CLIP(self, **flax_kwargs)


class CLIP(nn.Module):
    """The module of `CLIPConfig`."""

    cfg: CLIPConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> Pooled:
        cfg = self.cfg
        if tokens.shape[1] > cfg.positions:
            raise ValueError(f'clip: {tokens.shape[1]} tokens, but positions={cfg.positions}')
        places = locate(context, tokens.shape[:2]).index  # padding takes none
        places = jnp.arange(tokens.shape[1])[None] if places is None else places
        tokens, real = real_tokens(tokens, context)
        tokens = LayerNorm(name='norm')(tokens)
        init = nn.with_logical_partitioning(nn.initializers.normal(cfg.width**-0.5), ('position', 'embed'))
        vectors = self.param('positions', init, (1 + cfg.positions, cfg.width), jnp.float32).astype(tokens.dtype)
        query = (mean_over_tokens(tokens, real) + vectors[:1])[:, None]
        return _class_attention(cfg, query, tokens + vectors[1 + places], real)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoCaConfig(HeadsConfig):
    """CoCa: multi-query attention of a learned token.

    Attributes:
        head_dim: K = V.

    >>> import jax
    >>> (vec, maps), _ = CoCaConfig(width=16).make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape
    ((2, 16), (2, 8, 5))
    """

    heads: int = 8
    head_dim: int = 64

    @property
    def channels(self) -> int:
        return self.head_dim

    def make(self, **flax_kwargs: object) -> nn.Module:
        return CoCa(self, **flax_kwargs)

    def tiny(self) -> Self:
        return dataclasses.replace(super().tiny(), head_dim=8)


class CoCa(nn.Module):
    """The module of `CoCaConfig`."""

    cfg: CoCaConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> Pooled:
        tokens, real = real_tokens(tokens, context)
        query = scale_norm(_token(self, tokens, 1.0), 1e-5, name='q_norm')
        attention = _attention(self.cfg, key_heads=1, use_bias=False, out_bias=False)
        y, maps = attention(query, tokens, tokens, real)
        return y[:, 0], maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaiTConfig(HeadsConfig):
    """CaiT: a class-attention block with layer scale, whose learned token sees itself too.

    Attributes:
        mlp: the feed-forward block.
        layer_scale: what g_1 and g_2 start at.

    >>> import jax
    >>> (vec, maps), _ = CaiTConfig(width=16).make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps.shape
    ((2, 16), (2, 4, 5))
    """

    heads: int = 4
    mlp: FeedForwardConfig = MLP
    layer_scale: float = 1e-5

    def make(self, **flax_kwargs: object) -> nn.Module:
        return CaiT(self, **flax_kwargs)


class CaiT(nn.Module):
    """The module of `CaiTConfig`."""

    cfg: CaiTConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> Pooled:
        cfg = self.cfg
        tokens, real = real_tokens(tokens, context)
        z, norm = _token(self, tokens, 0.02), LayerNorm(name='attention_norm')
        y, maps = _class_attention(cfg, norm(z), norm(tokens), real)
        z = z + self._scaled('attention_scale', y[:, None])
        z = z + self._scaled('mlp_scale', cfg.mlp.make(name='mlp')(LayerNorm(name='mlp_norm')(z)))
        return LayerNorm(1e-5, name='norm')(z)[:, 0], maps

    def _scaled(self, name: str, y: Float[Array, 'B N D']) -> Float[Array, 'B N D']:
        init = nn.with_logical_partitioning(nn.initializers.constant(self.cfg.layer_scale), ('embed',))
        return y * self.param(name, init, y.shape[-1:], jnp.float32).astype(y.dtype)[None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOBlockConfig(HeadsConfig):
    """DINO's block: a whole Transformer block, then the mean. O(T^2), the heaviest.

    Attributes:
        mlp: the feed-forward block.

    >>> import jax
    >>> (vec, maps), _ = DINOBlockConfig(width=16).make().init_with_output(jax.random.key(0), jnp.ones((2, 5, 16)))
    >>> vec.shape, maps
    ((2, 16), None)
    """

    heads: int = 8
    mlp: FeedForwardConfig = MLP

    @property
    def maps(self) -> int:
        return 0

    def make(self, **flax_kwargs: object) -> nn.Module:
        return DINOBlock(self, **flax_kwargs)


class DINOBlock(nn.Module):
    """The module of `DINOBlockConfig`."""

    cfg: DINOBlockConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, 'B T D'], context: Context = Context()) -> tuple[Float[Array, 'B D'], None]:
        cfg = self.cfg
        x, real = real_tokens(tokens, context)
        mixer = SoftmaxConfig(width=cfg.require_width(), heads=cfg.heads, rotary_base=None, causal=False)
        x = x + mixer.make(name='mixer')(LayerNorm(1e-5, name='mixer_norm')(x), context)[0]
        x = x + cfg.mlp.make(name='mlp')(LayerNorm(1e-5, name='mlp_norm')(x))
        return mean_over_tokens(x, real), None


def _token(module: nn.Module, tokens: Float[Array, 'B T D'], scale: float) -> Float[Array, 'B 1 D']:
    """A learned token, for every row."""
    token = learned_queries(module, 1, scale).astype(tokens.dtype)
    return jnp.broadcast_to(token[None], (len(tokens), *token.shape))


def _attention(cfg: HeadsConfig, **fields: object) -> QueryAttention:
    return QueryAttention(cfg.heads, cfg.channels, name='attention', **fields)


def _class_attention(
    cfg: HeadsConfig, query: Float[Array, 'B 1 D'], tokens: Float[Array, 'B T D'], real: Bool[Array, 'B T']
) -> Pooled:
    """Attention of a query that is also the first key; its own weight is left out of the maps."""
    seen = jnp.concatenate([jnp.ones_like(real[:, :1]), real], axis=1)
    keys = jnp.concatenate([query, tokens], axis=1)
    y, maps = _attention(cfg)(query, keys, keys, seen)
    maps = maps[..., 1:]
    total = jnp.sum(maps, axis=-1, keepdims=True)
    return y[:, 0], maps / jnp.where(total > 0, total, 1)
