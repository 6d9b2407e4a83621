"""Generation: one prefill of all but the last token, then one compiled loop of single tokens; any decoder, any mixer.

A decoder beside an encoder reads its source with the prompt.

Prompts of different length stand in one batch, padded on the right: padding is the identity of every mixer, so each
row goes on from its own last token, at its own position.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jattn.contract import Context
from jattn.typing import Array, Bool, Float, Int32, Key, PyTree, axis_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from the logits.

    Attributes:
        temperature: logits are divided by it; 0: the most likely token (greedy).
        top_k: only the k most likely tokens; None: all.
        top_p: only the most likely tokens that together have probability p (Holtzman et al. 2020); None: all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f'temperature={self.temperature} must be 0 (greedy) or positive')
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f'top_k={self.top_k} must be at least 1')
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f'top_p={self.top_p} must be in (0, 1]')

    def draw(self, key: Key, logits: Float[Array, 'B E']) -> Int32[Array, 'B']:
        """One token a row.

        >>> Sampling(temperature=1.0, top_k=1).draw(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]])).tolist()
        [1]
        """
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = logits.astype(jnp.float32) / self.temperature
        order = jnp.argsort(-logits, axis=-1)
        ranked = jnp.take_along_axis(logits, order, axis=-1)
        rank = jnp.arange(logits.shape[-1])[None]
        keep = rank < (self.top_k or logits.shape[-1])
        if self.top_p is not None:
            probability = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), axis=-1)
            keep &= jnp.cumsum(probability, axis=-1) - probability < self.top_p  # the first token always stays
        choice = jax.random.categorical(key, jnp.where(keep, ranked, -jnp.inf), axis=-1)
        return jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)


def generate(
    model: nn.Module,
    params: PyTree,
    prompts: Int32[Array, 'B T'],
    lengths: Int32[Array, 'B'],
    new_tokens: int,
    *,
    key: Key | None = None,
    sampling: Sampling = Sampling(),
    capacity: int | None = None,
    chunk: int | None = None,
    collections: Mapping[str, PyTree] | None = None,
    source: Array | None = None,
) -> Int32[Array, 'B N']:
    """Continues each prompt by `new_tokens` tokens.

    Args:
        model: a decoder; its config gives the state.
        params: its parameters.
        prompts: tokens, padded on the right.
        lengths: the number of real tokens of each prompt, at least 1.
        new_tokens: how many tokens to add.
        key: needed where the temperature is positive.
        sampling: how tokens are drawn.
        capacity: tokens that the state must hold; None: the longest prompt and the new tokens.
        chunk: tokens of a call of the prefill, so that the memory of a long prompt is that of one chunk and the state;
            None: the prompts are one call.
        collections: the model's slow state, if it has any.
        source: what an encoder-decoder's encoder reads, a row a prompt.

    Raises:
        ValueError: before anything is compiled, when the prompt and the new tokens do not fit in `capacity` or in the
            model's learned positions, or a length is not in [1, T].
    """
    axis_sizes('generate', prompts=(prompts, 'B T'), lengths=(lengths, 'B'))
    if new_tokens < 1:
        raise ValueError(f'generate: new_tokens={new_tokens} must be at least 1')
    shortest, longest = int(jnp.min(lengths)), int(jnp.max(lengths))
    if shortest < 1 or longest > prompts.shape[1]:
        raise ValueError(f'generate: lengths must be in [1, T={prompts.shape[1]}], found [{shortest}, {longest}]')
    needed = longest + new_tokens
    for name, limit in (('capacity', capacity), ('max_positions', model.cfg.max_positions)):
        if limit is not None and needed > limit:
            raise ValueError(
                f'generate: {longest} prompt tokens and {new_tokens} new ones need {needed}, but {name}={limit}'
            )
    if chunk is not None and chunk < 1:
        raise ValueError(f'generate: chunk={chunk} must be at least 1')
    if sampling.temperature > 0 and key is None:
        raise ValueError(f'generate: temperature={sampling.temperature} needs a key')
    key = jax.random.key(0) if key is None else key
    variables = {'params': params, **(collections or {})}
    chunk = min(chunk or prompts.shape[1], prompts.shape[1])
    return _generate(model, sampling, new_tokens, capacity or needed, chunk, variables, prompts, lengths, key, source)


def from_bytes(ids: Sequence[int]) -> str:
    """The text of bytes; those that are no text show as the replacement sign."""
    return bytes(ids).decode(errors='replace')


def generate_text(
    model: nn.Module,
    params: PyTree,
    prompts: Sequence[str],
    new_tokens: int,
    *,
    key: Key | None = None,
    sampling: Sampling = Sampling(),
    chunk: int | None = None,
    encode: Callable[[str], Sequence[int]] = str.encode,
    decode: Callable[[Sequence[int]], str] = from_bytes,
    end: int | None = None,
    collections: Mapping[str, PyTree] | None = None,
    source: Array | None = None,
) -> list[str]:
    """The continuation of each prompt, by default of a model of bytes.

    Args:
        model, params, new_tokens, key, sampling, chunk, collections, source: as `generate`.
        prompts: texts.
        encode, decode: text to token ids and back.
        end: the id that ends a text: a continuation is cut before it; None: none does.

    Raises:
        ValueError: an empty prompt, and as `generate`.
    """
    encoded = [list(encode(prompt)) for prompt in prompts]
    if not all(encoded):
        raise ValueError('generate_text: a prompt is empty, but the model must read at least one token')
    longest = max(map(len, encoded))
    tokens = jnp.array([row + [0] * (longest - len(row)) for row in encoded], jnp.int32)
    lengths = jnp.array([len(row) for row in encoded], jnp.int32)
    options = dict(key=key, sampling=sampling, chunk=chunk, collections=collections, source=source)
    rows = generate(model, params, tokens, lengths, new_tokens, **options).tolist()
    return [decode(row[: row.index(end)] if end in row else row) for row in rows]


def prefill(
    model: nn.Module,
    variables: PyTree,
    state: PyTree,
    prompts: Int32[Array, 'B T'],
    lengths: Int32[Array, 'B'],
    chunk: int,
    source: Array | None = None,
) -> PyTree:
    """The state behind the first `lengths` tokens of each row, read in calls of `chunk` tokens.

    Nobody reads the outputs, so that the compiler drops the read-out.
    """
    batch, tokens = prompts.shape
    pieces = jnp.pad(prompts, ((0, 0), (0, -tokens % chunk))).reshape(batch, -1, chunk).swapaxes(0, 1)
    starts = chunk * jnp.arange(len(pieces))

    def call(state: PyTree, piece: tuple[Array, Array]) -> tuple[PyTree, None]:
        tokens, start = piece
        real: Bool[Array, 'B C'] = start + jnp.arange(chunk)[None] < lengths[:, None]
        context = Context(segments=real.astype(jnp.int32), source=source)
        return model.apply(variables, tokens, context, state)[1], None

    return jax.lax.scan(call, state, (pieces, starts))[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(
    model: nn.Module,
    sampling: Sampling,
    new_tokens: int,
    capacity: int,
    chunk: int,
    variables: PyTree,
    prompts: Array,
    lengths: Array,
    key: Key,
    source: Array | None,
) -> Array:
    state = model.cfg.init_state(prompts.shape[0], capacity)
    state = prefill(model, variables, state, prompts, lengths - 1, chunk, source)

    def step(carry: tuple[PyTree, Array], key: Key) -> tuple[tuple[PyTree, Array], Array]:
        state, token = carry
        logits, state = model.apply(variables, token[:, None], Context(), state)
        token = sampling.draw(key, logits[:, 0])
        return (state, token), token

    # The loop starts from the last token of each prompt: of the others no logits are needed.
    last = jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]
    return jax.lax.scan(step, (state, last), jax.random.split(key, new_tokens))[1].T
