"""The public door to a model's readable values: run it, read sites, edit sites; names are checked, layers are numbers.

    captured = capture.run(model, params, tokens, sites=('z', 'pattern'))
    captured.at('z', layer=3)                                           # [B, T, H, V]
    captured.stack('z')                                                 # [L, B, T, H, V]
    capture.run(model, params, tokens, edits={('z', 3): Edit(scale=0.0 * mask)})
    capture.run(model, params, tokens, edits={'z': Edit(scale=mask)})   # mask [L, 1, 1, H, 1]: layer axis first
    prefix = capture.run(model, params, before, state=model.cfg.init_state(batch, capacity))
    capture.run(model, params, after, state=prefix.state, edits=...)    # the tokens behind a prefix that is run once

`jattn/taps.py` lists the sites. Flax ignores an edit at a wrong path in silence; this does not. Everything is
traceable: edits are arrays, so a sweep under `lax.map` or `vmap` compiles once, and `jax.grad` with respect to
`Edit.add` is the gradient at the site.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jattn.config import nearest
from jattn.contract import Context
from jattn.taps import EDITS, PATTERNS, TAPS, Edit, Function
from jattn.typing import Array, PyTree

Path = tuple[str, ...]
# site -> layer (None: of the whole model) -> (collection, path of the module that taps it, repeat on the leading axis).
Index = dict[str, dict[int | None, tuple[str, Path, int | None]]]
EditKey = str | tuple[str, int]


@struct.dataclass
class Captured:
    """The outputs of a run and the values at the sites that were asked for.

    Attributes:
        outputs: of the model.
        values: site -> layer -> value; the layer of `embed` and `logits` is None.
        state: behind the call's tokens; None: the run had none.
    """

    outputs: Array
    values: dict[str, dict[int | None, Array]]
    state: PyTree | None = None

    def at(self, site: str, layer: int | None = None) -> Array:
        """The value of a site at a layer."""
        layers = self.values[site]
        if layer not in layers:
            raise ValueError(f'site {site!r} exists at layers {sorted(layers, key=str)}, not at {layer}')
        return layers[layer]

    def stack(self, site: str) -> Array:
        """The values of all layers that have the site, in order, on a new first axis; their shapes must be equal."""
        values = [self.values[site][layer] for layer in sorted(self.values[site])]
        shapes = {value.shape for value in values}
        if len(shapes) > 1:
            raise ValueError(f'site {site!r} has several shapes {sorted(shapes)}: read it with at(site, layer)')
        return jnp.stack(values)


def run(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    *,
    sites: Iterable[str] = (),
    edits: Mapping[EditKey, Edit] | None = None,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
) -> Captured:
    """Runs the model on whole sequences, or on the tokens behind a state; reads `sites`, obeys `edits`.

    Args:
        model: a trunk.
        params: its parameters.
        inputs: [B, T] tokens or [B, T, F] vectors.
        sites: names to capture.
        edits: `site` -> an Edit whose arrays have the layer axis first (the layers that have the site, or 1 for the
            same everywhere), or (site, layer) -> an Edit without it.
        context: positions and segments; padding is respected.
        collections: the model's slow state, if it has any.
        state: what stands before the inputs, from `cfg.init_state` or an earlier run; None: nothing. Patterns then have
            a column for every slot of the state, filled or not, and one for every token of the call.

    Raises:
        ValueError: a site or a layer that the model does not have; names those it has.

    >>> from jattn.models import DecoderConfig
    >>> model = DecoderConfig(width=16, layers=2, read_in='tokens', input_size=8, output_size=8).make()
    >>> tokens = jnp.zeros((1, 5), jnp.int32)
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> captured = run(model, params, tokens, sites=['z'], edits={('z', 0): Edit(scale=jnp.zeros(()))})
    >>> captured.stack('z').shape, float(abs(captured.at('z', 0)).max())
    ((2, 1, 5, 4, 4), 0.0)
    """
    sites, edits = tuple(sites), dict(edits or {})
    there = index(model, params, inputs, context, collections, state)
    for key in (*sites, *edits):
        site, layer = key if isinstance(key, tuple) else (key, None)
        if site not in there:
            raise ValueError(f'no site {site!r} in this model; {nearest(site, sorted(there))}')
        if layer is not None and layer not in there[site]:
            raise ValueError(f'site {site!r} exists at layers {sorted(there[site], key=str)}, not at {layer}')
    tree: dict[str, Any] = {}
    for site in dict.fromkeys(key[0] if isinstance(key, tuple) else key for key in edits):
        _file(tree, there[site], site, _by_layer(edits, site, there[site]))
    mutable = tuple({there[site][layer][0] for site in sites for layer in there[site]})
    variables = {'params': params, EDITS: tree, **(collections or {})}
    (outputs, state), captured = _apply(model, mutable, variables, inputs, context, state)
    values = {site: {layer: _read(captured, place, site) for layer, place in there[site].items()} for site in sites}
    return Captured(outputs, values, state)


def index(
    model: nn.Module,
    params: PyTree,
    inputs: Array,
    context: Context = Context(),
    collections: Mapping[str, PyTree] | None = None,
    state: PyTree | None = None,
) -> Index:
    """Every site of the model and where it is filed, from its abstract evaluation.

    A site that is in no layer is named by its path: `embed` of a decoder, `encoder.embed` in an encoder-decoder.
    """
    variables = {'params': params, **(collections or {})}
    apply = functools.partial(_apply, model, (TAPS, PATTERNS))
    taps = jax.eval_shape(apply, variables, inputs, context, state)[1]
    layers_of: dict[Path, list[tuple[int, int]]] = {}
    for layer, (slot, repeat) in enumerate(model.cfg.layer_sites()):
        layers_of.setdefault(slot, []).append((layer, repeat))
    found: Index = {}
    for collection in (TAPS, PATTERNS):
        for path, _ in jax.tree_util.tree_leaves_with_path(taps.get(collection, {})):
            *module, site = (key.key for key in path)
            layers = next((ls for slot, ls in layers_of.items() if tuple(module[: len(slot)]) == slot), [(None, None)])
            if layers == [(None, None)]:
                site = '.'.join((*module, site))
            for layer, repeat in layers:
                if layer in found.setdefault(site, {}):
                    raise ValueError(f'site {site!r} is tapped twice in layer {layer}')
                found[site][layer] = (collection, tuple(module), repeat)
    in_order = lambda item: -1 if item[0] is None else item[0]
    return {site: dict(sorted(places.items(), key=in_order)) for site, places in found.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(
    model: nn.Module,
    mutable: tuple[str, ...],
    variables: Mapping[str, PyTree],
    inputs: Array,
    context: Context,
    state: PyTree | None,
) -> tuple[tuple[Array, PyTree | None], dict[str, PyTree]]:
    out, captured = model.apply(variables, inputs, context, state, mutable=list(mutable))
    return out, dict(captured)


def _by_layer(edits: Mapping[EditKey, Edit], site: str, places: Mapping) -> dict[int | None, Edit]:
    """One edit a layer, without the layer axis; a (site, layer) edit comes after that of the whole site."""
    own: dict[int | None, Edit] = {}
    if site in edits:
        for number, layer in enumerate(places):
            if layer is None:
                own[None] = edits[site]
                continue
            for name in ('scale', 'add', 'value', 'mask'):
                for part in jax.tree.leaves(getattr(edits[site], name)):  # several where `value` is a function
                    if jnp.ndim(part) == 0 or part.shape[0] not in (1, len(places)):
                        raise ValueError(
                            f'edit of {site!r}: {name} has shape {jnp.shape(part)}, but its first axis must be the '
                            f'layers that have the site ({len(places)}) or 1; for one layer use the key '
                            f'({site!r}, layer)'
                        )
            own[layer] = jax.tree.map(lambda part, n=number: part[n if part.shape[0] > 1 else 0], edits[site])
    for key, edit in edits.items():
        if isinstance(key, tuple) and key[0] == site:
            if key[1] in own:
                raise ValueError(f'edits name {site!r} of layer {key[1]} twice')
            own[key[1]] = edit
    return own


def _file(tree: dict[str, Any], places: Mapping, site: str, edits: Mapping[int | None, Edit]) -> None:
    """Files the edits of a site under its modules, stacked over the repeats of a slot, neutral where there is none."""
    by_module: dict[Path, dict[int | None, Edit]] = {}
    repeats: dict[Path, int] = {}
    for layer, (_, module, repeat) in places.items():
        repeats[module] = max(repeats.get(module, 0), 0 if repeat is None else repeat + 1)
        if layer in edits:
            by_module.setdefault(module, {})[repeat] = edits[layer]
    for module, own in by_module.items():
        node = tree
        for name in module:
            node = node.setdefault(name, {})
        node[_own(site)] = own[None] if None in own else _stack(own, repeats[module])


def _stack(own: Mapping[int, Edit], count: int) -> Edit:
    """The edits of a slot's repeats on a leading axis."""
    parts: dict[str, Array | Function] = {}
    for name, neutral in (('scale', 1), ('add', 0), ('value', 0), ('mask', False)):
        given = {}
        if name == 'value' and any(callable(edit.value) for edit in own.values()):
            parts[name] = _stack_functions({n: edit.value for n, edit in own.items() if edit.value is not None}, count)
            continue
        for repeat, edit in own.items():
            part = getattr(edit, name)
            if name == 'mask' and part is None and edit.value is not None:
                part = jnp.array(True)
            if part is not None:
                given[repeat] = jnp.asarray(part)
        if given:
            shape = jnp.broadcast_shapes(*(part.shape for part in given.values()))
            dtype = jnp.result_type(*given.values())
            blank = jnp.full(shape, neutral, dtype)
            rows = [jnp.broadcast_to(given[n], shape).astype(dtype) if n in given else blank for n in range(count)]
            parts[name] = jnp.stack(rows)
    return Edit(**parts)


def _stack_functions(own: Mapping[int, Array | Function], count: int) -> Function:
    """The functions of a slot's repeats, their arrays on a leading axis; a mask says where there is none."""
    first = next(iter(own.values()))
    if len({jax.tree.structure(function) for function in own.values()}) > 1:
        raise ValueError(
            'edits of one site must be one function, with arrays of its own in each layer, or none of them'
        )
    rows = [own.get(n, first) for n in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(jnp.broadcast_arrays(*leaves)), *rows)


def _read(captured: Mapping[str, Any], place: tuple[str, Path, int | None], site: str) -> Array:
    collection, module, repeat = place
    node = captured[collection]
    for name in module:
        node = node[name]
    value = node[_own(site)]
    return value if repeat is None else value[repeat]


def _own(site: str) -> str:
    """The name under which a module taps a site."""
    return site.rpartition('.')[2]
