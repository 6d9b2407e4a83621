"""The common form: with its maps, gates and weights held, a layer is y = Phi u, and Phi's rank is its state.

    h_i = A_i h_{i-1} + B_i u_i      y_i = C_i h_i      Phi_ij = C_i A_i ... A_{j+1} B_j      0 where j > i

Whatever a token after the middle hears of those before it has passed through h. So the block of Phi that maps the first
half of u to the second half of y has as many singular values as one channel of the layer has numbers in its state, and
the smallest such state is found for softmax attention too, which has no recurrence. Phi is the derivative of a layer's
reads to its values, while all else that it makes of its input is held; in float64.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from experiments.papers.contract import Line
from jattn.contract import MixerConfig
from jattn.memories import MEMORIES, MemoryConfig
from jattn.mixers import AarenConfig, MambaConfig, NormalizedAttentionConfig, QLSTMConfig, SoftmaxConfig
from jattn.taps import Edit
from jattn.typing import Array, Float, Key

PAPER = '58'
WIDTH, TOKENS, EXPANSION = 16, 24, 4
HELD = ('q', 'k', 'gates')  # what S6 and the qLSTM make of their values
SOFTMAX = 'softmax'
SMALLEST = 1e-10  # of the largest: a singular value that counts


def members() -> dict[str, tuple[MixerConfig, int]]:
    """Layers of the common form, and the numbers in a channel's state; softmax attention needs one a token."""
    exact = dict(heads=1, key_dim=EXPANSION)
    mamba2 = dataclasses.replace(MEMORIES['mamba2'], **exact, value_width=1.0)
    # The norm and the gate behind SSD's reads are no part of the system.
    bare = dataclasses.replace(mamba2.recipe, norm='none', gate='none', skip=False)
    layers = {
        SOFTMAX: (SoftmaxConfig(heads=1, rotary_base=None), TOKENS // 2),
        'linear attention': (dataclasses.replace(MEMORIES['linear_attention'], **exact), EXPANSION),
        'normalised attention': (NormalizedAttentionConfig(**exact, chunk=8), EXPANSION),
        'Aaren': (AarenConfig(heads=1, chunk=8), 1),
        'S6': (MambaConfig(state_size=EXPANSION, chunk=8), EXPANSION),
        'SSD': (dataclasses.replace(mamba2, recipe=bare), EXPANSION),
        'qLSTM': (QLSTMConfig(), 1),
        'reversed qLSTM': (QLSTMConfig(forget='reversed'), 1),
    }
    return {name: (dataclasses.replace(cfg, width=WIDTH), numbers) for name, (cfg, numbers) in layers.items()}


@struct.dataclass
class Operator:
    """One value channel of a layer as a system.

    Attributes:
        phi: Phi.
        u: the channel's values.
        y: what the layer reads for it.
    """

    phi: Float[Array, 'T T']
    u: Float[Array, 'T']
    y: Float[Array, 'T']

    @property
    def error(self) -> float:
        """The largest difference between y and Phi u, over the largest of y."""
        return float(np.max(np.abs(self.phi @ self.u - self.y)) / np.max(np.abs(self.y)))

    @property
    def is_causal(self) -> bool:
        """Whether everything above the diagonal is 0, bit for bit."""
        return not np.any(np.triu(self.phi, 1))

    def spectrum(self) -> Float[np.ndarray, 'half']:
        """The singular values of what the first half of the tokens tells the second, over the largest."""
        half = len(self.u) // 2
        values = np.linalg.svd(self.phi[half:, :half], compute_uv=False)
        return values / values[0]

    @property
    def rank(self) -> int:
        """How many of them count."""
        return int(np.sum(self.spectrum() > SMALLEST))


def operators(key: Key) -> dict[str, Operator]:
    """The system of every member at random parameters, on the same random tokens."""
    with jax.enable_x64(True):
        return {name: jax.device_get(_operator(cfg, key)) for name, (cfg, _) in members().items()}


@functools.partial(jax.jit, static_argnums=0)
def _operator(cfg: MixerConfig, key: Key) -> Operator:
    module, (x_key, u_key, key) = cfg.make(), jax.random.split(key, 3)
    x = jax.random.normal(x_key, (1, TOKENS, WIDTH), jnp.float64)
    u = jax.random.normal(u_key, (TOKENS,), jnp.float64)
    shapes = jax.eval_shape(module.init, key, x)['params']
    leaves, tree = jax.tree.flatten(nn.unbox(shapes))
    keys = jax.random.split(key, len(leaves))
    params = tree.unflatten([0.4 * jax.random.normal(k, leaf.shape, jnp.float64) for k, leaf in zip(keys, leaves)])
    kernel = params['o_proj']['kernel']
    first = jnp.zeros_like(kernel).at[(0,) * kernel.ndim].set(1)  # the outputs' first channel is that of the reads
    params = params | {'o_proj': {'kernel': first}}

    held = {}
    if not isinstance(cfg, MemoryConfig):  # a memory makes nothing of its values
        taps = module.apply({'params': params}, x, mutable=['taps'])[1]['taps']
        held = {site: Edit(value=taps[site]) for site in HELD if site in taps}

    def read(u: Float[Array, 'T']) -> Float[Array, 'T']:
        edits = held | {'v': Edit(value=u[None, :, None, None])}
        return module.apply({'params': params, 'edits': edits}, x)[0][0, :, 0]

    return Operator(jax.jacrev(read)(u), u, read(u))


def taylor_errors(key: Key, degrees: int = 6) -> dict[int, tuple[float, float]]:
    """degree -> largest error of a softmax weight before normalisation, by features of that degree; and its bound.

    The features of x are all its monomials up to the degree, over the root of their degree's factorial: with
    |q.k| <= sqrt(d) the weights exp(q.k / sqrt(d)) are off by at most e / (degree + 1)!.
    """
    draws = np.random.default_rng(int(jax.random.randint(key, (), 0, 2**31 - 1)))
    q, k = draws.normal(size=(2, TOKENS, 2))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    exact = np.exp(q @ k.T)
    found = {}
    for degree in range(1, degrees + 1):
        error = np.max(np.abs(_monomials(q, degree) @ _monomials(k, degree).T - exact))
        found[degree] = float(error), math.e / math.factorial(degree + 1)
    return found


def _monomials(x: Float[np.ndarray, 'T d'], degree: int) -> Float[np.ndarray, 'T N']:
    features, power = [np.ones((len(x), 1))], np.ones((len(x), 1))
    for m in range(1, degree + 1):
        power = (power[:, :, None] * x[:, None, :]).reshape(len(x), -1)
        features.append(power / math.sqrt(math.factorial(m)))
    return np.concatenate(features, axis=1)


def lines(found: Mapping[str, Operator], errors: Mapping[int, tuple[float, float]]) -> list[Line]:
    """One form for all, and the size of the state that each needs."""
    expected = {name: numbers for name, (_, numbers) in members().items()}
    ranks = ', '.join(f'{name} {system.rank}' for name, system in found.items())
    recurrent = [name for name in found if name != SOFTMAX]
    worst = max(found.values(), key=lambda system: system.error).error
    ratio = max(error / bound for error, bound in errors.values())
    return [
        Line.number(
            PAPER,
            f'common form: largest difference between a layer and Phi u, {len(found)} layers',
            worst,
            below=1e-10,
            note=f'relative, float64: {", ".join(found)}',
        ),
        Line.count(
            PAPER,
            'common form: layers whose Phi is exactly 0 above the diagonal',
            sum(system.is_causal for system in found.values()),
            of=len(found),
        ),
        Line.count(
            PAPER,
            "common form: layers whose Phi has the rank of one channel's state",
            sum(found[name].rank == expected[name] for name in recurrent),
            of=len(recurrent),
            note=f'from the first {TOKENS // 2} tokens to the last, state expansion {EXPANSION}: {ranks}',
        ),
        Line.number(
            PAPER,
            f'common form: rank of softmax from {TOKENS // 2} tokens to {TOKENS // 2}: a state as long as the past',
            found[SOFTMAX].rank,
            near=(TOKENS // 2, 0),
            note='no finite state for all lengths',
        ),
        Line.number(
            PAPER,
            f'softmax by Taylor features of degree 1 to {len(errors)}: largest error of a weight over e / (p+1)!',
            ratio,
            below=1.0,
            note=', '.join(f'p = {degree}: {error:.2g}' for degree, (error, _) in errors.items()),
        ),
    ]
