"""Circuits of edges: what a model still does when only some connections carry the clean run, all others the corrupted.

    what v reads = sum over its edges u -> v in C of z_u  +  sum over the others of z_u'
    faithfulness(C) = (m(C) - m(corrupted)) / (m(clean) - m(corrupted))

z_u is what u writes in this very run, from what it reads itself; z_u' what it writes on `corrupted` (Conmy et al. 2023;
Hanna et al. 2024). All edges give the clean run, none the corrupted one. What v reads is set right reader after reader:
as many passes as there are readers, each with the differences that the writers of the last one still have, so the
result is exact and costs 2 L + 1 runs. Senders are heads, feed-forwards and the read-in, as in `edge_attribution`;
readers are whole mixers, feed-forwards and the outputs. A head is a query head.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jattn.contract import Context
from jattn.taps import Edit
from jattn.typing import Array, Bool, Float, PyTree
from jattn.understanding import capture
from jattn.understanding.attribution_patching import Values
from jattn.understanding.edge_attribution import READS, WRITES, Node, by_node, held_at, precedes
from jattn.understanding.interventions import Metric, check_pair

READERS = (*READS, 'logits')
Edge = tuple[Node, Node]


def measure_edges(
    model: nn.Module,
    params: PyTree,
    clean: Array,
    corrupted: Array,
    metric: Metric,
    circuits: Sequence[Sequence[Edge]],
    *,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
    batch_size: int = 1,
) -> Float[Array, 'C']:
    """The faithfulness of every circuit.

    Args:
        model: a decoder or an encoder whose blocks add what they compute ('pre' or 'parallel').
        params: its parameters.
        clean, corrupted: inputs of one shape, whose tokens stand in the same places.
        metric: of the outputs.
        circuits: edges (sender, reader), as `EdgeScores.connected(count, sites=READERS)` gives them.
        context: positions and segments of both inputs.
        collections: the model's slow state, if it has any.
        state: what stands before both inputs, from `capture.run`.
        batch_size: circuits that run at once.

    Raises:
        ValueError: shapes differ; blocks of another kind; an edge that the model does not have.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=1, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens, other = jnp.array([[1, 2, 3]]), jnp.array([[4, 2, 3]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> embed, logits = ('embed', None, None), ('logits', None, None)
    >>> heads = [(('z', 0, head), logits) for head in range(4)]
    >>> read = [(embed, ('attn_in', 0, None)), (embed, logits)]
    >>> found = measure_edges(model, params, tokens, other, lambda y: y[0, -1, 3], [[], heads, heads + read])
    >>> abs(found[:2]).round(3).tolist(), bool(abs(found[2]) > 0.01)       # a way must be whole to carry something
    ([0.0, 0.0], True)
    """
    check_pair('measure_edges', clean, corrupted)
    block = getattr(model.cfg, 'block', 'pre')
    if block not in ('pre', 'parallel'):
        raise ValueError(f"measure_edges: block={block!r} normalises what is added: it must be 'pre' or 'parallel'")
    run = dict(context=context, collections=collections, state=state)
    there = capture.index(model, params, clean, **run)
    writes = tuple(site for site in WRITES if site in there)
    reads = tuple(site for site in READS if site in there or site == 'attn_in')
    shapes = jax.eval_shape(
        lambda: capture.run(model, params, clean, sites=('embed', 'z', 'resid_post', *writes, *reads), **run).values
    )
    z = {layer: jnp.zeros((value.shape[2], 1, 1, 1)) for layer, value in shapes['z'].items()}
    senders = tuple(by_node(shapes | {'z': z}, ('embed', 'z', *writes)))
    readers = tuple(by_node(shapes | {'logits': {None: None}}, (*reads, 'logits')))
    edges = np.array([[precedes(sender, reader, block == 'parallel') for reader in readers] for sender in senders])
    kept = jnp.stack([jnp.asarray(_table(circuit, senders, readers, edges)) for circuit in circuits])
    arrays = (params, clean, corrupted, context, collections or {}, state)
    found = _measured(model, metric, batch_size, (writes, readers), arrays, jnp.asarray(edges)[None] & ~kept)
    return (found[2:] - found[1]) / (found[0] - found[1])


def _table(
    circuit: Sequence[Edge], senders: tuple[Node, ...], readers: tuple[Node, ...], edges: Bool[np.ndarray, 'U V']
) -> Bool[np.ndarray, 'U V']:
    """The edges of a circuit."""
    table = np.zeros(edges.shape, bool)
    for sender, reader in circuit:
        known = sender in senders and reader in readers
        if not known or not edges[senders.index(sender), readers.index(reader)]:
            raise ValueError(
                f'measure_edges: no edge {sender} -> {reader} in this model; its readers are whole parts, such as '
                f'{readers[0]} and {readers[-1]}, behind what they read'
            )
        table[senders.index(sender), readers.index(reader)] = True
    return table


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _measured(
    model: nn.Module,
    metric: Metric,
    batch_size: int,
    names: tuple[tuple[str, ...], tuple[Node, ...]],
    arrays: tuple[PyTree, ...],
    swapped: Bool[Array, 'C U V'],
) -> Float[Array, 'C+2']:
    """The metric on the clean run, on the corrupted one, and with the swapped edges of every circuit."""
    params, clean, corrupted, context, collections, state = arrays
    writes, readers = names
    run = functools.partial(capture.run, model, params, context=context, collections=collections, state=state)
    sites = ('embed', 'z', *writes)
    mine, other = run(clean, sites=sites), run(corrupted, sites=sites)
    projections = _projections(functools.partial(run, clean), mine.values['z'])
    last = max(layer for _, layer, _ in readers if layer is not None)

    def through(swapped: Bool[Array, 'U V']) -> Float[Array, '']:
        def again(_: Array, carry: tuple[Values, Array]) -> tuple[Values, Array]:
            values, _ = carry
            missing = jax.tree.map(jnp.subtract, other.values, values)
            missing['z'] = {
                layer: jnp.einsum('bthv,hvd->hbtd', z, projections[layer]) for layer, z in missing['z'].items()
            }
            missing = jnp.stack(list(by_node(missing, sites).values()))
            added = jnp.einsum('uv,ubtd->vbtd', swapped.astype(missing.dtype), missing)
            edits = {
                ('resid_post', last) if site == 'logits' else (site, layer): Edit(add=add)
                for (site, layer, _), add in zip(readers, added)
            }
            found = run(clean, edits=edits, sites=sites)
            return found.values, metric(found.outputs)

        start = (mine.values, metric(mine.outputs))
        return jax.lax.fori_loop(0, len(readers), again, start)[1]

    measured = jax.lax.map(through, swapped, batch_size=batch_size)
    return jnp.concatenate([jnp.stack([metric(mine.outputs), metric(other.outputs)]), measured])


def _projections(run: functools.partial, z: Mapping[int, Float[Array, 'B T H V']]) -> dict[int, Float[Array, 'H V D']]:
    """What the heads of every layer write for a unit of each of their channels: one such unit a token, run by run."""
    tokens = math.prod(next(iter(z.values())).shape[:2])
    most = max(math.prod(value.shape[2:]) for value in z.values())

    def written(place: Array) -> dict[int, Array]:
        units = {}
        for layer, value in z.items():
            channel = jnp.arange(math.prod(value.shape[2:]))
            unit = place[:, None] == channel[None]
            units[layer] = unit.reshape(value.shape).astype(value.dtype)
        return run(edits=held_at('z', units), sites=['attn_out']).values['attn_out']

    nothing = written(jnp.full(tokens, -1))
    places = jnp.arange(-(-most // tokens) * tokens).reshape(-1, tokens)
    found = jax.lax.map(lambda place: jax.tree.map(jnp.subtract, written(place), nothing), places)
    return {
        layer: found[layer]
        .reshape(-1, found[layer].shape[-1])[: math.prod(value.shape[2:])]
        .reshape(*value.shape[2:], -1)
        for layer, value in z.items()
    }
