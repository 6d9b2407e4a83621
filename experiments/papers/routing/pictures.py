"""The picture of paper 55's rerun: which clusters the bytes of a novel join."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from experiments.papers import novels
from experiments.papers.small_models import Setting, Variables, first_rows, read_site

ROWS, SHOWN, BYTES = 16, 96, 24


def draw(setting: Setting, variables: Variables, path: pathlib.Path) -> None:
    """A row of panels a layer: where the commonest bytes go, and the clusters along a piece of text."""
    rows = first_rows(setting, ROWS)
    found = np.asarray(read_site(setting, variables, rows, 'gates')).argmax(axis=-1)
    layers, heads, count = len(found), found.shape[-1], setting.model.mixer[0].clusters
    values, often = np.unique(rows.inputs, return_counts=True)
    common = values[np.argsort(-often)][:BYTES]
    text = [novels.letter(byte) for byte in rows.inputs[0, :SHOWN]]
    figure = Figure(figsize=(17, 3.4 * layers + 0.4), layout='constrained')
    axes = figure.subplots(layers, 2, width_ratios=(1, 2.2), squeeze=False)
    for layer, (left, right) in enumerate(axes):
        joined = np.stack(
            [np.bincount(found[layer, ..., 0][rows.inputs == byte], minlength=count) for byte in common]
        ).astype(float)
        order = np.argsort(np.argmax(joined, axis=1), kind='stable')
        shares = joined[order] / joined[order].sum(axis=1, keepdims=True)
        image = left.imshow(shares.T, cmap='Blues', vmin=0, vmax=1, aspect='auto', interpolation='none')
        left.set_xticks(range(len(common)), [novels.letter(common[n]) for n in order], fontsize=8, family='monospace')
        left.set_yticks(range(0, count, max(count // 8, 1)))
        left.set(ylabel='cluster', title=f'layer {layer}, head 0: share of each byte in each cluster')
        figure.colorbar(image, ax=left, pad=0.01)
        colors = 'tab20' if count <= 20 else 'viridis'
        strip = found[layer, 0, :SHOWN].T
        right.imshow(strip, cmap=colors, vmin=0, vmax=count - 1, aspect='auto', interpolation='none')
        right.set_xticks(range(len(text)), text, fontsize=7, family='monospace')
        right.set_yticks(range(heads), [f'head {head}' for head in range(heads)])
        right.set_title(f'layer {layer}: the cluster of each byte of held-out text, a colour each')
    figure.savefig(path, dpi=110)
