"""Which heads which bytes take: the gates of a trained MoH on held-out text, by class of byte."""

import dataclasses
import pathlib

import numpy as np
from matplotlib.figure import Figure

from experiments.papers import novels
from experiments.papers.contract import Line
from experiments.papers.mixture_of_heads.settings import PAPER
from experiments.papers.small_models import Setting, Variables, first_rows, read_site
from jattn.mixers.mixture_of_heads import MixtureOfHeadsConfig
from jattn.typing import Float

ROWS = 64
CLASSES = ('letters', 'spaces', 'other')
SHUFFLES = 20


@dataclasses.dataclass(frozen=True)
class Read:
    """Gates on held-out rows.

    Attributes:
        gates: [L, B, T, H].
        inputs: [B, T], the bytes.
    """

    gates: np.ndarray
    inputs: np.ndarray


def read(setting: Setting, variables: Variables) -> Read:
    """The gates of the first held-out rows."""
    rows = first_rows(setting, ROWS)
    return Read(np.asarray(read_site(setting, variables, rows, 'gates'), np.float64), rows.inputs)


def load(found: Read, cfg: MixtureOfHeadsConfig) -> Float[np.ndarray, 'L E']:
    """The share of tokens that take each routed head."""
    return (found.gates[..., cfg.shared :] > 0).mean(axis=(1, 2))


def classes(inputs: np.ndarray) -> np.ndarray:
    """The class of each byte, a number of `CLASSES`.

    >>> classes(np.frombuffer(b'a Z9.', np.uint8)).tolist()
    [0, 1, 0, 2, 2]
    """
    lower = inputs | 32
    return np.where((lower >= ord('a')) & (lower <= ord('z')), 0, np.where((inputs == 32) | (inputs == 10), 1, 2))


def variation(used: np.ndarray, labels: np.ndarray, first: int, second: int) -> float:
    """The total variation between two classes' shares of head use, mean over layers.

    >>> used = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> variation(used, np.array([0, 1]), 0, 1), variation(used, np.array([0, 0]), 0, 0)
    (1.0, 0.0)
    """
    a, b = (used[:, labels == label].sum(axis=1) for label in (first, second))
    a, b = (share / share.sum(axis=-1, keepdims=True) for share in (a, b))
    return float(0.5 * np.abs(a - b).sum(axis=-1).mean())


def lines(found: Read, cfg: MixtureOfHeadsConfig, seed: int) -> list[Line]:
    """Letters against the other classes; the bound is what shuffled labels reach."""
    used = (found.gates[..., cfg.shared :] > 0).reshape(len(found.gates), -1, cfg.routed).astype(float)
    labels = classes(found.inputs).reshape(-1)
    draws, out = np.random.default_rng(seed), []
    for number, name in enumerate(CLASSES[1:], start=1):
        by_chance = max(variation(used, draws.permutation(labels), 0, number) for _ in range(SHUFFLES))
        claim = f'routed heads of letters and of {name}: total variation of their use'
        note = f'bound: the largest of {SHUFFLES} shuffles; {np.sum(labels == number)} of {len(labels)} bytes'
        out.append(Line.number(PAPER, claim, variation(used, labels, 0, number), above=by_chance, note=note))
    return out


def draw(found: Read, cfg: MixtureOfHeadsConfig, path: pathlib.Path, shown: int = 64) -> None:
    """Mean gates by class of byte, and the gates along a piece of text; a row of panels a layer."""
    layers = len(found.gates)
    figure = Figure(figsize=(15, 2.6 * layers + 0.6), layout='constrained')
    axes = figure.subplots(layers, 2, width_ratios=(1, 5), squeeze=False)
    labels, top = classes(found.inputs), float(np.quantile(found.gates, 0.995))
    text = [novels.letter(byte) for byte in found.inputs[0, :shown]]
    heads = [f'{"shared" if head < cfg.shared else "routed"} {head}' for head in range(cfg.heads)]
    for layer, (left, right) in enumerate(axes):
        means = np.stack([found.gates[layer][labels == number].mean(axis=0) for number in range(len(CLASSES))], axis=1)
        left.imshow(means, vmin=0, vmax=top, cmap='magma', aspect='auto')
        for head, row in enumerate(means):
            for number, value in enumerate(row):
                color = 'white' if value < 0.6 * top else 'black'
                left.text(number, head, f'{value:.2f}', ha='center', va='center', fontsize=7, color=color)
        left.set_xticks(range(len(CLASSES)), CLASSES)
        left.set_yticks(range(cfg.heads), heads, fontsize=8)
        left.set_title(f'layer {layer}: mean gate', fontsize=9)
        image = right.imshow(found.gates[layer, 0, :shown].T, vmin=0, vmax=top, cmap='magma', aspect='auto')
        right.set_xticks(range(len(text)), text, fontsize=8, family='monospace')
        right.set_yticks([])
        right.axhline(cfg.shared - 0.5, color='white', linewidth=0.8)
        right.set_title(f'layer {layer}: gates along held-out text', fontsize=9)
        figure.colorbar(image, ax=right, pad=0.01)
    figure.savefig(path, dpi=110)
