"""The picture of paper 32's rerun: what the first token and later ones receive, their norms, and accuracies."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from experiments.papers.attention_calibration.sinks import Windows


def draw(
    long: Windows,
    short: Windows,
    places: np.ndarray,
    middle: tuple[np.ndarray, np.ndarray],
    accuracies: dict[str, float],
    path: pathlib.Path,
) -> None:
    """Left: the first token by head; then one window's columns by layer; the later sink; norms; accuracies."""
    figure = Figure(figsize=(15, 8), layout='constrained')
    (first, window, column), (norms, scores, table) = figure.subplots(2, 3, width_ratios=(2, 4, 3))
    image = first.imshow(long.columns[..., 0].mean(axis=0), origin='lower', aspect='auto', vmin=0, vmax=1)
    first.set(xlabel='head', ylabel='layer', title='the first token receives')
    figure.colorbar(image, ax=first)
    shown = np.log10(np.maximum(short.columns[0].mean(axis=1), 1e-4))
    image = window.imshow(shown, origin='lower', aspect='auto', vmin=-3, vmax=0, interpolation='nearest')
    window.axvline(places[0], color='w', linewidth=0.5, linestyle=':')
    window.set(xlabel='key (dotted: the later sink)', ylabel='layer', title='columns of one window, mean of heads')
    figure.colorbar(image, ax=window, label='log10')
    column.plot(short.columns[..., 0].mean(axis=(0, 2)), 'k-', label='first token')
    column.plot(middle[0], 'C3o-', label='later sink')
    column.plot(middle[1], 'C0s--', label='without its two largest channels')
    column.set(xlabel='layer', ylabel='column mean', ylim=(0, 1), title='what they receive')
    column.legend()
    norms.semilogy(np.median(short.norms[..., 0], axis=0), 'k-', label='first token')
    later = short.norms[np.arange(len(places)), :, places]
    norms.semilogy(np.median(later, axis=0), 'C3o-', markersize=3, label='later sink')
    norms.semilogy(np.median(short.norms, axis=(0, 2)), 'C7-', label='median token')
    norms.set(xlabel='layer', title='norm of the residual stream')
    norms.legend(fontsize=8)
    groups = [name for name in accuracies if name.startswith('layers')]
    scores.bar([name.removeprefix('layers ') for name in groups], [accuracies[name] for name in groups], color='C0')
    scores.axhline(accuracies['whole, searched'], color='k', linewidth=1, label='no head calibrated')
    scores.set(xlabel='calibrated layers, all heads', ylabel='accuracy', title='the search', ylim=(0, 1))
    scores.legend(loc='lower left')
    names = ('whole', 'all heads', 'all heads, the first sink too', 'whole, others', 'what gained, others')
    table.barh(names, [accuracies[name] for name in names], color=['C7', 'C3', 'C3', 'C7', 'C0'])
    table.invert_yaxis()
    table.set(xlabel='accuracy', xlim=(0, 1), title='tested')
    figure.savefig(path, dpi=100)
