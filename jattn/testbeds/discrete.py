"""What the testbeds of tokens share: scores of masked tokens, draws without replacement, logits of exact answers."""

import jax
import jax.numpy as jnp

from jattn.nn.losses import Mean, cross_entropy
from jattn.testbeds.task import Batch
from jattn.typing import Array, Float, Int32, Key

CERTAIN = 100.0  # logits that far below the best one have no probability in float32


def token_metrics(outputs: Float[Array, 'B T E'], batch: Batch) -> dict[str, Mean]:
    """Cross-entropy in nats and accuracy of the masked tokens, and the share of rows with all of them right.

    >>> batch = Batch(jnp.zeros((1, 3), jnp.int32), jnp.array([[0, 2, 1]]), jnp.array([[0.0, 1.0, 1.0]]))
    >>> metrics = token_metrics(certain_logits(jnp.array([[9, 2, 2]]), 3), batch)
    >>> float(metrics['accuracy'].value()), float(metrics['sequence_accuracy'].value())
    (0.5, 0.0)
    """
    right = jnp.argmax(outputs, axis=-1) == batch.targets
    all_right = jnp.all(right | (batch.mask == 0), axis=1)
    return {
        'loss': cross_entropy(outputs, batch.targets, batch.mask),
        'accuracy': Mean.of(right.astype(jnp.float32), batch.mask),
        'sequence_accuracy': Mean.of(all_right.astype(jnp.float32), jnp.any(batch.mask > 0, axis=1)),
    }


def certain_logits(tokens: Int32[Array, 'B T'], vocabulary: int) -> Float[Array, 'B T E']:
    """Logits that put all probability on these tokens.

    >>> certain_logits(jnp.array([[1]]), 3).tolist()
    [[[-100.0, 0.0, -100.0]]]
    """
    return CERTAIN * (jax.nn.one_hot(tokens, vocabulary) - 1)


def choose(key: Key, batch: int, count: int, out_of: int) -> Int32[Array, 'B N']:
    """`count` different numbers of 0 .. out_of - 1 in each row, in random order.

    >>> sorted(choose(jax.random.key(0), 1, 4, 4)[0].tolist())
    [0, 1, 2, 3]
    """
    return jax.lax.top_k(jax.random.uniform(key, (batch, out_of)), count)[1].astype(jnp.int32)
