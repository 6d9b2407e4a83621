"""The picture of paper 47's rerun: importance and distance by head, pruning in order, and the atlas of patterns."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from jattn.understanding.importance import Importance
from jattn.understanding.spatial import Spread

Atlas = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # codes, maps, (layer, head), clusters


def draw(
    found: Importance,
    far: Spread,
    kept: dict[tuple[str, int], float],
    whole: float,
    laid: Atlas,
    path: pathlib.Path,
) -> None:
    """Above: heads by drop, by distance and by ring, and pruning; below: the plane of codes and each cluster."""
    codes, maps, heads, own = laid
    count = int(own.max()) + 1
    figure = Figure(figsize=(15, 8), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=(5, 4))
    drop, distance, rings, pruned = above.subplots(1, 4, width_ratios=(3, 3, 4, 4))
    for axis, value, title in (
        (drop, found.prob_drop.mean(axis=-1), 'drop of the right probability'),
        (distance, far.distance, 'mean distance, in patches'),
    ):
        image = axis.imshow(
            value, origin='lower', aspect='auto', extent=(-0.5, value.shape[1] - 0.5, 0.5, len(value) + 0.5)
        )
        axis.set(xlabel='head', ylabel='layer', title=title)
        figure.colorbar(image, ax=axis)
    for layer, mass in enumerate(far.density.mean(axis=1)):
        rings.semilogy(mass, color=f'{0.85 - 0.85 * layer / len(far.density):.3f}')
    rings.set(
        xticks=range(0, far.density.shape[-1], 3),
        xlabel='ring (hops)',
        ylabel='attention a patch',
        title='light: layer 1, dark: the last',
    )
    for name, style in (('lowest', 'C0o-'), ('highest', 'C3s-'), ('random', 'C7^-')):
        eighths = sorted(n for own_name, n in kept if own_name == name)
        pruned.plot([0, *(n / 8 for n in eighths)], [whole, *(kept[name, n] for n in eighths)], style, label=name)
    pruned.set(xlabel='share of heads silenced', ylabel='accuracy', ylim=(0, 1), title='in order of divergence')
    pruned.legend()
    plane, *shown = below.subplots(1, count + 1, width_ratios=[2.2] + [1] * count)
    plane.scatter(*codes.T, c=own, s=4, cmap='tab10', vmin=0, vmax=9)
    plane.set(title='codes of rows of attention', xlabel='colour: cluster')
    side = round(maps.shape[1] ** 0.5)
    for number, axis in enumerate(shown):
        axis.imshow(maps[own == number].mean(axis=0).reshape(side, side), cmap='magma')
        layers = 1 + heads[own == number, 0]
        axis.set_title(f'{np.mean(own == number):.0%} of rows\nlayers {np.percentile(layers, 25):.0f} to '
                       f'{np.percentile(layers, 75):.0f}', color=f'C{number}', fontsize=9)  # fmt: skip
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=100)
