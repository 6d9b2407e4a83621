"""The layer around a memory: from the residual stream to queries, keys, values and gates, and from the reads back.

    q, k, v = norm(features(act(conv(W x))))      the same for each; what is left out is left out by the config
    z = norm(y + skip v) * act(gate(x))           (`gate_first`: norm((y + skip v) * act(gate(x))))

One recipe serves all members but RWKV-7, which has its own (`rwkv7.py`).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context, Rows, divide
from jattn.memories.gates import Gate, GateModule
from jattn.memories.tokens import Tokens
from jattn.nn.linear import Linear
from jattn.nn.norm import LayerNorm, RMSNorm
from jattn.nn.rotary import rotate
from jattn.nn.short_convolution import ShortConvolution
from jattn.typing import Array, Float, PyTree, at_least_float32

FEATURES = ('identity', 'elu', 'polynomial')
ROTARY = ('none', 'position', 'chunk')
NORMS = ('none', 'head_rms', 'head_layer', 'width_rms', 'width_layer')
ACTIVATIONS = {'silu': jax.nn.silu, 'sigmoid': jax.nn.sigmoid, 'gelu': jax.nn.gelu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The layer around a memory.

    Attributes:
        convolution: taps of the short causal convolutions; 0: none.
        convolution_activation: SiLU after them (without convolutions: after the projections).
        convolves_values: whether v has one too.
        shared_qk: q and k are one projection through two convolutions (TTT).
        key_groups: sets of q and k, shared by the heads (Mamba-2's B and C); None: one a head.
        features: of q and k: 'elu' (elu + 1), 'polynomial' (a_1 x + a_2 x^2, learned, from 1 and 1/2) or 'identity'.
        qk_norm: whether q and k have length 1.
        scaled: whether q is divided by sqrt(K).
        rotary: q and k are turned by their position in the document, or in the chunk.
        complement_keys: k = 1 - decay (HGRN2); there is no projection of k.
        erase_scale: what is erased is read along sigmoid(d) k, d learned a head (Comba).
        query_correction: initial D of q - D p, p the erasing key (Comba); None: none.
        normaliser: y is divided by what the same memory makes of values 1 (linear attention).
        skip: D v is added to the reads, D learned a head (Mamba-2).
        norm: of the reads, over a head or the whole width.
        gate: activation of the output gate; 'none': no gate.
        gate_rank: of its projection; None: full.
        gate_first: the gate comes before the norm.
    """

    convolution: int = 4
    convolution_activation: bool = True
    convolves_values: bool = True
    shared_qk: bool = False
    key_groups: int | None = None
    features: str = 'identity'
    qk_norm: bool = True
    scaled: bool = False
    rotary: str = 'none'
    complement_keys: bool = False
    erase_scale: bool = False
    query_correction: float | None = None
    normaliser: bool = False
    skip: bool = False
    norm: str = 'head_rms'
    gate: str = 'silu'
    gate_rank: int | None = None
    gate_first: bool = False

    def __post_init__(self) -> None:
        for name, legal in (
            ('features', FEATURES),
            ('rotary', ROTARY),
            ('norm', NORMS),
            ('gate', ('none', *ACTIVATIONS)),
        ):
            if getattr(self, name) not in legal:
                raise ValueError(f'recipe.{name}={getattr(self, name)!r} must be one of {", ".join(legal)}')
        if self.convolution < 0 or self.convolution == 1:
            raise ValueError(f'recipe.convolution={self.convolution} must be 0 (none) or at least 2')
        if self.shared_qk and not self.convolution:
            raise ValueError('recipe.shared_qk=True tells q from k by their convolutions, but convolution=0')

    def read_in(self, cfg: Any) -> nn.Module:
        """The module `(x, rows, context, tails, places) -> tokens, tails`."""
        return ReadIn(cfg, name='read')

    def read_out(self, cfg: Any) -> nn.Module:
        """The module `(x, y, tokens) -> z`."""
        return ReadOut(cfg, name='write')

    def init_tails(self, cfg: Any, batch: int, dtype: jnp.dtype) -> PyTree:
        """The last inputs of the convolutions; None: there are none."""
        if not self.convolution:
            return None
        return jnp.zeros((batch, self.convolution - 1, self.convolved(cfg)), dtype)

    def convolved(self, cfg: Any) -> int:
        """Channels of the convolutions."""
        values = cfg.heads * cfg.head_values * cfg.learner.steps if self.convolves_values else 0
        return self.groups(cfg) * cfg.keys * (1 + cfg.learner.steps) + values

    def groups(self, cfg: Any) -> int:
        """Sets of q and k."""
        return self.key_groups or cfg.heads

    def tiny(self) -> 'Recipe':
        """The same with a small rank."""
        return dataclasses.replace(self, gate_rank=self.gate_rank and min(self.gate_rank, 4))


class ReadIn(nn.Module):
    """From x [B, T, D] to the tokens of a memory; taps q, k, v, gates."""

    cfg: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], rows: Rows, context: Context, tails: PyTree, place: Array
    ) -> tuple[Tokens, PyTree]:
        del context
        cfg, recipe = self.cfg, self.cfg.recipe
        q, k, v, tails = self._project(x, rows, tails)
        gates = self._gates(x)
        if recipe.features == 'elu':
            q, k = (jax.nn.elu(h.astype(at_least_float32(h))) + 1 for h in (q, k))
        if recipe.features == 'polynomial':
            q, k = self._polynomial(q, 'q_powers'), self._polynomial(k, 'k_powers')
        if recipe.complement_keys:
            k = -jnp.expm1(gates['log_decay']).astype(k.dtype)
        if recipe.qk_norm:
            q, k = _unit(q), _unit(k)
        if recipe.rotary != 'none':
            q, k = (self._rotate(h, rows, place) for h in (q, k))
        erase = None
        if recipe.erase_scale:
            scale = self._per_head('erase_scale', nn.initializers.zeros, k)
            along = k * jax.nn.sigmoid(scale).astype(k.dtype)
            erase = (along, k)
            if recipe.query_correction is not None:
                init = nn.initializers.constant(recipe.query_correction)
                q = q - self._per_head('query_correction', init, q).astype(q.dtype) * along
        if recipe.scaled:
            q = q / math.sqrt(cfg.keys)
        return Tokens(q=q, k=k, v=v, erase=erase, **gates), tails

    def _project(self, x: Array, rows: Rows, tails: PyTree) -> tuple[Array, Array, Array, PyTree]:
        """Queries, keys and values, with their convolutions, by head."""
        cfg, recipe, steps = self.cfg, self.cfg.recipe, self.cfg.learner.steps
        groups, axes = recipe.groups(cfg), ('embed', 'heads', 'head')
        q = Linear((groups, cfg.keys), axes, name='qk_proj' if recipe.shared_qk else 'q_proj')(x)
        has_keys = not (recipe.shared_qk or recipe.complement_keys)  # else k comes of q's projection, or of the decay
        k = q if not has_keys else Linear((steps * groups, cfg.keys), axes, name='k_proj')(x)
        v = Linear((steps * cfg.heads, cfg.head_values), axes, name='v_proj')(x)
        shapes, flat = [h.shape for h in (q, k, v)], [h.reshape(*h.shape[:2], -1) for h in (q, k, v)]
        count = 3 if recipe.convolves_values or not recipe.convolution else 2
        if recipe.convolution:
            joined, tails = ShortConvolution(recipe.convolution, name='conv')(
                jnp.concatenate(flat[:count], axis=-1), rows, tails
            )
            borders = [flat[0].shape[-1], flat[0].shape[-1] + flat[1].shape[-1]][: count - 1]
            flat[:count] = jnp.split(joined, borders, axis=-1)
        if recipe.convolution_activation:
            flat[:count] = [jax.nn.silu(h) for h in flat[:count]]
        q, k, v = (h.reshape(shape) for h, shape in zip(flat, shapes))
        if steps > 1:
            k, v = (h.reshape(*h.shape[:2], -1, steps, h.shape[-1]) for h in (k, v))
        if groups != cfg.heads:
            q, k = (jnp.repeat(h, divide('heads', cfg.heads, 'recipe.key_groups', groups), axis=2) for h in (q, k))
        return q, k, v, tails

    def _gates(self, x: Array) -> dict[str, Array | None]:
        """All gates of a token, by their names in `Tokens`."""
        cfg, gates = self.cfg, self.cfg.gates

        def module(gate: Gate, name: str, channels: int, heads: int = cfg.heads) -> GateModule:
            return GateModule(gate, heads, channels, cfg.step_bound, cfg.keys, name=f'{name}_gate')

        found: dict[str, Array | None] = {'log_decay': None}
        if gates.decay is not None:
            decay = module(gates.decay, 'decay', cfg.keys)
            found['log_decay'] = decay(x, as_log=True)
        if cfg.shares_time_step:
            found['step'] = decay(x, as_log=False)
        else:
            step = module(gates.step, 'step', cfg.values, cfg.heads * cfg.learner.steps)(x, as_log=False)
            steps = cfg.learner.steps
            found['step'] = step.reshape(*step.shape[:2], cfg.heads, steps) if steps > 1 else step
        if gates.momentum is not None:
            found['log_momentum'] = module(gates.momentum, 'momentum', 1)(x, as_log=True)
        for name, key in (('threshold', 'threshold'), ('window', 'weight')):
            if getattr(gates, name) is not None:
                found[key] = module(getattr(gates, name), name, 1)(x, as_log=False)
        return found

    def _polynomial(self, x: Array, name: str) -> Array:
        """a_1 x + a_2 x^2, element by element: the degree-2 features of Atlas without their cross terms."""
        init = lambda *_: jnp.array([1.0, 0.5], jnp.float32)
        powers = self.param(name, nn.with_logical_partitioning(init, ('tap',))).astype(x.dtype)
        return powers[0] * x + powers[1] * jnp.square(x)

    def _per_head(self, name: str, init: Any, like: Array) -> Array:
        """A parameter a head, shaped [1, 1, H, 1]."""
        heads = like.shape[2]
        return self.param(name, nn.with_logical_partitioning(init, ('heads',)), (heads,), jnp.float32).reshape(
            1, 1, heads, 1
        )

    def _rotate(self, x: Array, rows: Rows, place: Array) -> Array:
        if self.cfg.recipe.rotary == 'chunk':
            return rotate(x, place)
        return rotate(x, jnp.arange(x.shape[1])[None] if rows.positions is None else rows.positions)


class ReadOut(nn.Module):
    """From the reads y [B, T, H, V] to what the output projection takes."""

    cfg: Any

    @nn.compact
    def __call__(self, x: Float[Array, 'B T D'], y: Float[Array, 'B T H V'], tokens: Tokens) -> Float[Array, 'B T H V']:
        cfg, recipe = self.cfg, self.cfg.recipe
        if recipe.normaliser:
            y = y[..., :-1] / (y[..., -1:] + 1e-6)
        y = y.astype(x.dtype)
        if recipe.skip:
            ones = nn.with_logical_partitioning(nn.initializers.ones, ('heads',))
            skip = self.param('skip', ones, (cfg.heads,), jnp.float32).astype(x.dtype)
            y = y + skip.reshape(1, 1, -1, 1) * tokens.v.astype(x.dtype)
        if recipe.gate == 'none':
            return self._norm(y)
        act = ACTIVATIONS[recipe.gate]
        gate = act(self._gate(x).reshape(y.shape))
        return self._norm(y * gate) if recipe.gate_first else self._norm(y) * gate

    def _gate(self, x: Array) -> Array:
        shape, axes = (self.cfg.heads, self.cfg.head_values), ('heads', 'head')
        if self.cfg.recipe.gate_rank is None:
            return Linear(shape, ('embed', *axes), name='gate_proj')(x)
        low = Linear((self.cfg.recipe.gate_rank,), ('embed', 'rank'), name='gate_down_proj')(x)
        return Linear(shape, ('rank', *axes), name='gate_up_proj')(low)

    def _norm(self, y: Array) -> Array:
        kind = self.cfg.recipe.norm
        if kind == 'none':
            return y
        scope, family = kind.split('_')
        norm = {'rms': RMSNorm, 'layer': LayerNorm}[family]
        if scope == 'head':
            return norm(axis='head', name='norm')(y)
        return norm(axis='mlp', name='norm')(y.reshape(*y.shape[:2], -1)).reshape(y.shape)


def _unit(x: Array) -> Array:
    """Length 1 over the channels; a zero stays zero, with a finite gradient."""
    wide = x.astype(at_least_float32(x))
    return (wide * jax.lax.rsqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)
