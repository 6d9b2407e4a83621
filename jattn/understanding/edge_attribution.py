"""Edge attribution patching: what every connection between two parts of a model carries, to first order, all at once.

    score(u -> v) = sum over rows, tokens, channels of (z_u' - z_u) * d metric / d input_v        (Syed et al. 2023)

u writes z_u into the residual stream (the read-in, a head through its output projection, a feed-forward); v reads the
stream (a mixer, one of its queries, keys or values, a feed-forward, the outputs); z_u' is what u writes on `corrupted`.
The score is the slope of the metric when only what v reads of u moves from clean to corrupted. With `steps` the
gradient is the mean over runs whose read-in lies between the two, corrupted + k / steps (clean - corrupted), k = 1 ..
steps (EAP-IG, Hanna et al. 2024), which sees through saturated softmaxes; one step is the gradient on `clean`.

A run and a backward pass give d metric / d q, k, v and what whole parts read; a pull-back a head through the
projections and the norm alone, with the stream held fixed, gives what each query, key or value reads. The reader
`attn_in` is the whole mixer, so those of its heads are parts of it (all of it in softmax attention). A head is a query
head, in k and v a key head. In blocks that normalise the sum, parts do not add up in the stream: they are refused.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from jattn.contract import Context
from jattn.taps import Edit
from jattn.typing import Array, Float, PyTree, at_least_float32
from jattn.understanding import capture
from jattn.understanding.attribution_patching import Values, gradients
from jattn.understanding.interventions import Metric, check_pair

Node = tuple[str, int | None, int | None]  # site, layer, head; None: of the whole model, the whole value
COMPONENTS = ('q', 'k', 'v')
# The place in a layer where a site writes to the stream or reads it: what is read at a place was written before it.
PLACES = {'z': 0, 'attn_in': 0, 'cross_out': 1, 'cross_in': 1, 'mlp_out': 2, 'mlp_in': 2}
WRITES, READS = ('cross_out', 'mlp_out'), ('attn_in', 'cross_in', 'mlp_in')


@struct.dataclass
class EdgeScores:
    """Scores of the edges.

    Attributes:
        senders: (site, layer, head) of what writes: embed, z by head, cross_out, mlp_out.
        readers: (site, layer, head) of what reads: attn_in, cross_in, mlp_in, the components by head, logits.
        scores: [U, V], NaN where the sender comes after the reader.
        before: the metric on `clean`.
    """

    senders: tuple[Node, ...] = struct.field(pytree_node=False)
    readers: tuple[Node, ...] = struct.field(pytree_node=False)
    scores: Float[Array, 'U V']
    before: Float[Array, '']

    def at(self, sender: Node, reader: Node) -> float:
        """The score of one edge."""
        return float(self.scores[self.senders.index(sender), self.readers.index(reader)])

    def ranked(self, sites: Sequence[str] | None = None) -> list[tuple[Node, Node]]:
        """(sender, reader), the largest score in either direction first; of readers of these sites, None: of all."""
        of_site = np.array([sites is None or site in sites for site, _, _ in self.readers])
        size = np.where(of_site[None], np.abs(np.asarray(self.scores)), np.nan)
        order = np.argsort(-size, axis=None, kind='stable')[: np.sum(~np.isnan(size))]
        rows, columns = np.unravel_index(order, size.shape)
        return [(self.senders[row], self.readers[column]) for row, column in zip(rows, columns)]

    def connected(self, count: int, sites: Sequence[str] | None = None) -> list[tuple[Node, Node]]:
        """Those of the `count` strongest edges that lie on a way from the read-in to the outputs, the strongest first.

        An edge goes on where the part that it enters writes: from a query its head, from a key or value the heads that
        read it, from a whole mixer all its heads. The heads among the senders are the circuit's.
        """
        edges = self.ranked(sites)[:count]
        while True:
            entered = {('embed', None, None)}.union(*(self._writers(reader) for _, reader in edges))
            left = {sender for sender, _ in edges}
            kept = [
                (sender, reader)
                for sender, reader in edges
                if sender in entered and (reader[0] == 'logits' or left & self._writers(reader))
            ]
            if len(kept) == len(edges):
                return kept
            edges = kept

    def _writers(self, reader: Node) -> set[Node]:
        """What writes on what a reader reads."""
        site, layer, head = reader
        if site in ('cross_in', 'mlp_in'):
            return {(site.replace('in', 'out'), layer, None)}
        heads = [sender for sender in self.senders if sender[:2] == ('z', layer)]
        if head is None:
            return set(heads) if site == 'attn_in' else set()
        groups = sum(node[:2] == (site, layer) for node in self.readers)
        return {sender for sender in heads if sender[2] * groups // len(heads) == head}


def attribute_edges(
    model: nn.Module,
    params: PyTree,
    clean: Array,
    corrupted: Array,
    metric: Metric,
    *,
    components: Sequence[str] = COMPONENTS,
    steps: int = 1,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
) -> EdgeScores:
    """The score of every edge: the change of the metric on `clean`, to first order, when it carries what is corrupted.

    Args:
        model: a decoder or an encoder.
        params: its parameters.
        clean, corrupted: inputs of one shape, whose tokens stand in the same places.
        metric: of the outputs.
        components: what heads read by, of the layers that have the site; () for whole mixers alone.
        steps: runs between corrupted and clean.
        context: positions and segments of both inputs.
        collections: the model's slow state, if it has any.
        state: what stands before both inputs, from `capture.run`.

    Raises:
        ValueError: shapes differ; steps below 1; blocks of kind 'post'; a site that the model does not have.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens, other = jnp.array([[1, 2, 3]]), jnp.array([[4, 2, 3]])
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> found = attribute_edges(model, params, tokens, other, lambda y: y[0, -1, 3])
    >>> found.scores.shape                # embed, 8 heads, 2 feed-forwards; 2 (1 + 12 + 1) readers and the logits
    (11, 29)
    """
    check_pair('attribute_edges', clean, corrupted)
    if steps < 1:
        raise ValueError(f'attribute_edges: steps={steps} must be at least 1')
    if getattr(model.cfg, 'block', 'pre') == 'post':
        raise ValueError(
            "attribute_edges: the blocks are of kind 'post', whose norm is over the sum: parts do not add up"
        )
    there = capture.index(model, params, clean, context, collections, state)
    reads = tuple(site for site in READS if site in there or site == 'attn_in')
    writes = tuple(site for site in WRITES if site in there)
    arrays = (params, clean, corrupted, context, collections or {}, state)
    written = by_node(_written(model, writes, arrays), ('embed', 'z', *writes))
    found, before = _read(model, metric, reads, tuple(components), steps, arrays)
    read = by_node(found, ('attn_in', *components, *reads[1:], 'logits'))
    wide = lambda nodes: jnp.stack([value.astype(at_least_float32(value)) for value in nodes.values()])
    scores = jnp.einsum('ubtd,vbtd->uv', wide(written), wide(read))
    parallel = getattr(model.cfg, 'block', 'pre') == 'parallel'
    edges = np.array([[precedes(sender, reader, parallel) for reader in read] for sender in written])
    return EdgeScores(tuple(written), tuple(read), jnp.where(edges, scores, jnp.nan), before)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _written(model: nn.Module, writes: tuple[str, ...], arrays: tuple[PyTree, ...]) -> Values:
    """What every part would add to the stream in place of what it adds; of z by head, [H, B, T, D]."""
    params, clean, corrupted, context, collections, state = arrays
    run = functools.partial(capture.run, model, params, context=context, collections=collections, state=state)
    sites = ('embed', 'z', *writes)
    mine = run(clean, sites=(*sites, 'resid_pre', 'attn_out')).values
    other = run(corrupted, sites=sites).values
    change = {site: jax.tree.map(jnp.subtract, other[site], mine[site]) for site in sites}

    def of_head(head: Array) -> dict[int, Array]:
        # The stream is held fixed, so that all layers can be asked at once.
        z = jax.tree.map(jnp.add, mine['z'], _one_head(change['z'], head))
        edits = held_at('resid_pre', mine['resid_pre']) | held_at('z', z)
        added = run(clean, edits=edits, sites=['attn_out']).values['attn_out']
        return jax.tree.map(jnp.subtract, added, mine['attn_out'])

    by_head = jax.lax.map(of_head, jnp.arange(max(z.shape[2] for z in mine['z'].values())))
    change['z'] = {layer: by_head[layer][: z.shape[2]] for layer, z in mine['z'].items()}
    return change


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _read(
    model: nn.Module,
    metric: Metric,
    reads: tuple[str, ...],
    components: tuple[str, ...],
    steps: int,
    arrays: tuple[PyTree, ...],
) -> tuple[Values, Float[Array, '']]:
    """d metric / d what every part reads of the stream, a mean over the steps; of components by head, [H, B, T, D]."""
    params, clean, corrupted, context, collections, state = arrays
    rest = dict(context=context, collections=collections, state=state)
    run = functools.partial(capture.run, model, params, clean, **rest)
    mine = run(sites=['embed']).at('embed')
    other = capture.run(model, params, corrupted, sites=['embed'], **rest).at('embed')
    sites = (*reads, *components, 'resid_pre', 'resid_post')

    def at(share: Array) -> tuple[Values, Array]:
        start = {'embed': Edit(value=other + share.astype(mine.dtype) * (mine - other))}
        metric_there, values, slopes = gradients(model, params, clean, metric, sites, edits=start, **rest)

        def components_of(added: dict[int, Array]) -> Values:
            edits = held_at('resid_pre', values['resid_pre'])
            edits |= {('attn_in', layer): Edit(add=add) for layer, add in added.items()}
            return run(edits=edits, sites=components).values

        found = {site: slopes[site] for site in reads}
        found['logits'] = {None: slopes['resid_post'][max(slopes['resid_post'])]}
        if components:
            pull = jax.vjp(components_of, jax.tree.map(jnp.zeros_like, values['attn_in']))[1]
        for site in components:

            def of_head(head: Array, site: str = site) -> dict[int, Array]:
                blank = {name: jax.tree.map(jnp.zeros_like, slopes[name]) for name in components}
                return pull(blank | {site: _one_head(slopes[site], head)})[0]

            by_head = jax.lax.map(of_head, jnp.arange(max(slope.shape[2] for slope in slopes[site].values())))
            found[site] = {layer: by_head[layer][: slope.shape[2]] for layer, slope in slopes[site].items()}
        return found, metric_there

    shares = jnp.arange(1, steps + 1, dtype=jnp.float32) / steps
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(at, shares[0])[0])

    def add(total: Values, share: Array) -> tuple[Values, Array]:
        found, metric_there = at(share)
        return jax.tree.map(lambda sum_, new: sum_ + new / steps, total, found), metric_there

    total, metrics = jax.lax.scan(add, blank, shares)
    return total, metrics[-1]


def held_at(site: str, values: Mapping[int, Array]) -> dict[tuple[str, int], Edit]:
    """Edits that hold a site at values."""
    return {(site, layer): Edit(value=value) for layer, value in values.items()}


def _one_head(values: Mapping[int, Array], head: Array) -> dict[int, Array]:
    """Values [B, T, H, ...] with all heads but one at 0."""
    keep = lambda value: (jnp.arange(value.shape[2]) == head)[None, None, :, None]
    return {layer: jnp.where(keep(value), value, 0) for layer, value in values.items()}


def by_node(found: Values, order: Sequence[str]) -> dict[Node, Float[Array, 'B T D']]:
    """One array a node: the whole model's first, then layer by layer in this order of sites; the outputs last."""
    nodes: dict[Node, Array] = {('embed', None, None): found['embed'][None]} if 'embed' in order else {}
    for layer in sorted({layer for site in order for layer in found[site] if layer is not None}):
        for site in order:
            value = found[site].get(layer)
            if value is not None and value.ndim == 4:
                nodes |= {(site, layer, head): one for head, one in enumerate(value)}
            elif value is not None:
                nodes[site, layer, None] = value
    return nodes | ({('logits', None, None): found['logits'][None]} if 'logits' in order else {})


def precedes(sender: Node, reader: Node, parallel: bool) -> bool:
    """Whether the reader comes after what the sender writes; all parts of a parallel block read the same stream."""
    if sender[0] == 'embed' or reader[0] == 'logits':
        return True
    if sender[1] != reader[1]:
        return sender[1] < reader[1]
    return not parallel and PLACES[sender[0]] < PLACES.get(reader[0], 0)
