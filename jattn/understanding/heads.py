"""What attention heads do, read from their patterns on a block of random tokens that is repeated (Olsson et al. 2022).

On tokens x_1 .. x_n x_1 .. x_n, averaged over the queries t of the second half,

    previous token   pattern[t, t - 1]         attends to the token before
    duplicate token  pattern[t, t - n]         attends to the same token's last occurrence
    induction        pattern[t, t - n + 1]     attends to what followed it then: what comes next now

Each score is the share of a head's attention, in [0, 1]; uniform attention scores about 1.4 / T over the second half.
Recurrent mixers have no patterns: their layers are not scored.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.typing import Array, Float, Int32, Key, PyTree
from jattn.understanding import capture

SCORES = ('previous_token', 'duplicate_token', 'induction')


@struct.dataclass
class HeadScores:
    """Scores by head.

    Attributes:
        layers: the layers that have patterns, one a row.
        previous_token, duplicate_token, induction: [L, H].
    """

    layers: tuple[int, ...] = struct.field(pytree_node=False)
    previous_token: Float[Array, 'L H']
    duplicate_token: Float[Array, 'L H']
    induction: Float[Array, 'L H']

    def best(self, score: str) -> tuple[int, int, float]:
        """(layer, head, value) of the highest score."""
        values = getattr(self, score)
        row, head = jnp.unravel_index(jnp.argmax(values), values.shape)
        return self.layers[int(row)], int(head), float(values[row, head])


def repeated_tokens(key: Key, batch: int, half: int, tokens: Int32[Array, 'N']) -> Int32[Array, 'B T']:
    """Blocks of `half` tokens drawn without replacement from `tokens`, each twice in a row: [batch, 2 half].

    >>> repeated_tokens(jax.random.key(0), 1, 2, jnp.arange(5)).shape
    (1, 4)
    """
    if half > len(tokens):
        raise ValueError(f'repeated_tokens: half={half} distinct tokens of {len(tokens)} were asked for')
    draw = lambda key: jax.random.permutation(key, tokens)[:half]
    block = jax.vmap(draw)(jax.random.split(key, batch))
    return jnp.concatenate([block, block], axis=1)


def score_heads(
    model: nn.Module, params: PyTree, key: Key, tokens: Int32[Array, 'N'], *, batch: int = 8, half: int = 32
) -> HeadScores:
    """Scores every head of every layer that has patterns.

    Args:
        model: a trunk that reads tokens.
        params: its parameters.
        key: of the random blocks.
        tokens: the vocabulary to draw from; distinct within a block.
        batch: blocks.
        half: n, tokens of a block.

    Raises:
        ValueError: no layer of the model has patterns.
    """
    inputs = repeated_tokens(key, batch, half, tokens)
    if 'pattern' not in capture.index(model, params, inputs):
        raise ValueError('score_heads: no layer of this model has attention patterns')
    captured = capture.run(model, params, inputs, sites=['pattern'])
    means = captured.stack('pattern').mean(axis=1)  # [L, H, T, S]
    query = jnp.arange(half, 2 * half)

    def at_offset(offset: int) -> Float[Array, 'L H']:
        return means[:, :, query, query - offset].mean(axis=-1)

    layers = tuple(captured.values['pattern'])
    return HeadScores(layers, at_offset(1), at_offset(half), at_offset(half - 1))
