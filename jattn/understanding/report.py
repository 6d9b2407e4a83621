"""Reports: what the tools found as one HTML file that needs nothing else: no network, no notebook, no library.

    parts = [tokens('bits', pieces, bits), head_map('effects', values, layers), attention('patterns', pieces, pattern)]
    write('report.html', 'SmolLM2 on a prompt', parts)

Every part is a string of HTML, so that a page is a list and anything can be put between. Numbers show on hover; the
patterns of any head are chosen in the page. Positive values are blue, negative ones red, 0 is white, the strongest
colour is the largest size of the part.
"""

import html
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jattn.typing import Array, Float, axis_sizes

WIDTH, HEIGHT, MARGIN = 640, 260, 44  # of a picture, in its own units
LINES = ('#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#ff7f0e', '#17becf', '#8c564b', '#7f7f7f')
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
section { display: inline-block; vertical-align: top; margin-right: 3em; max-width: 100%; }
h2 { font-size: 1.1em; margin: 2em 0 .5em; } td, th { text-align: left; }
.note { color: #666; font-size: .9em; margin: .3em 0; }
.text span { white-space: pre-wrap; border-radius: 2px; padding: .1em 0; } .text { line-height: 1.9; }
table.map { border-collapse: collapse; font-size: 11px; } table.map td { width: 1.7em; height: 1.4em; }
table.map th { font-weight: normal; color: #666; padding: 0 .4em; text-align: right; }
svg text { font-size: 11px; fill: #444; }
"""
# Hover over a query: every token shows the share of its attention. The weights are rows of thousandths.
SCRIPT = """
for (const part of document.querySelectorAll('.attention')) {
  const data = JSON.parse(part.querySelector('script').textContent), spans = [...part.querySelectorAll('.text span')];
  const [layer, head] = part.querySelectorAll('select'), said = part.querySelector('.said');
  let query = spans.length - 1;
  const fill = (select, names) => {
    select.innerHTML = names.map((name, i) => `<option value="${i}">${name}</option>`).join('');
  };
  const show = () => {
    const row = data.pattern[layer.value][head.value][query];
    spans.forEach((span, i) => {
      const share = (row[i] || 0) / 1000;
      span.style.background = `rgba(31, 119, 180, ${Math.sqrt(share)})`;
      span.style.outline = i === query ? '2px solid #d62728' : '';
      span.title = share.toFixed(3);
    });
    said.textContent = `token ${query} attends`;
  };
  fill(layer, data.layers.map(n => `layer ${n}`));
  const heads = () => fill(head, data.pattern[layer.value].map((_, n) => `head ${n}`));
  layer.onchange = () => {
    const before = head.value;
    heads();
    head.value = before in data.pattern[layer.value] ? before : 0;
    show();
  };
  head.onchange = show;
  spans.forEach((span, i) => { span.onmouseenter = () => { query = i; show(); }; });
  layer.value = data.first[0]; heads(); head.value = data.first[1]; show();
}
"""


def write(path: str | pathlib.Path, title: str, parts: Sequence[str]) -> None:
    """Writes a page.

    Args:
        path: of the file.
        title: of the page.
        parts: what the other functions return, in order.
    """
    name = html.escape(title)
    head = f'<head><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style></head>'
    body = '\n'.join(parts)
    pathlib.Path(path).write_text(
        f'<!doctype html><html lang="en">{head}<body><h1>{name}</h1>\n{body}\n<script>{SCRIPT}</script></body></html>\n'
    )


def tokens(title: str, pieces: Sequence[str], values: Float[Array, 'T'], note: str = '') -> str:
    """A text, each token coloured by a number.

    >>> '<span style="background:#ffffff" title="0">a</span>' in tokens('bits', ['a', 'b'], np.array([0.0, 2.0]))
    True
    """
    axis_sizes('tokens', values=(values, str(len(pieces))))
    values = np.asarray(values, np.float64)
    most = largest(values)
    spans = [
        f'<span style="background:{colour(value / most)}" title="{number(value)}">{html.escape(piece)}</span>'
        for piece, value in zip(pieces, values)
    ]
    return section(title, f'<div class="text">{"".join(spans)}</div>', note)


def head_map(title: str, values: Float[Array, 'L H'], layers: Sequence[int], note: str = '') -> str:
    """A table of layers and heads, the first layer below; nan where a layer has no such head."""
    values = np.asarray(values, np.float64)
    axis_sizes('head_map', values=(values, f'{len(layers)} H'))
    most, rows = largest(values), []
    for layer, row in reversed(list(zip(layers, values))):
        cells = [
            f'<td style="background:{colour(value / most)}" title="layer {layer}, head {head}: {number(value)}"></td>'
            for head, value in enumerate(row)
            if not math.isnan(value)
        ]
        rows.append(f'<tr><th>{layer}</th>{"".join(cells)}</tr>')
    foot = ''.join(f'<th>{head}</th>' for head in range(values.shape[1]))
    table = f'<table class="map">{"".join(rows)}<tr><th></th>{foot}</tr></table>'
    return section(title, table, note or f'layers upwards, heads to the right; the strongest colour is {number(most)}')


def attention(
    title: str,
    pieces: Sequence[str],
    pattern: Float[Array, 'L H T T'],
    layers: Sequence[int],
    first: tuple[int, int] | None = None,
    note: str = '',
) -> str:
    """The patterns of any head: choose it, and hover over a query.

    Args:
        title: of the part.
        pieces: the text of every token.
        pattern: attention weights, queries then keys.
        layers: their numbers.
        first: (layer, head) that the page opens with; None: the first.
        note: below it.
    """
    axis_sizes('attention', pattern=(pattern, f'{len(layers)} H {len(pieces)} {len(pieces)}'))
    thousandths = np.round(1000 * np.nan_to_num(np.asarray(pattern, np.float64))).astype(int)
    rows = [[[row[: t + 1].tolist() if not row[t + 1 :].any() else row.tolist() for t, row in enumerate(head)]
             for head in layer] for layer in thousandths]  # fmt: skip
    layer, head = (layers[0], 0) if first is None else first
    data = {'layers': list(layers), 'pattern': rows, 'first': [list(layers).index(layer), head]}
    spans = ''.join(f'<span>{html.escape(piece)}</span>' for piece in pieces)
    choose = '<select></select> <select></select> <span class="said note"></span>'
    kept = f'<script type="application/json">{json.dumps(data, separators=(",", ":"))}</script>'
    inside = f'<div class="attention">{choose}<div class="text">{spans}</div>{kept}</div>'
    return section(title, inside, note or 'hover over a token: the others show the share of its attention')


def curves(title: str, lines: Mapping[str, Sequence[float]], across: str, note: str = '', start: float = 0.0) -> str:
    """Lines by name over start, start + 1, ...; what is not finite is left out."""
    values = {name: np.asarray(line, np.float64) for name, line in lines.items()}
    every = np.concatenate(list(values.values()))
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    high = high if high > low else low + 1
    longest = max(map(len, values.values()))
    x = lambda n: MARGIN + n * (WIDTH - 2 * MARGIN) / max(longest - 1, 1)
    y = lambda value: HEIGHT - MARGIN - (value - low) * (HEIGHT - 2 * MARGIN) / (high - low)
    drawn = []
    for n, (name, line) in enumerate(values.items()):
        points = ' '.join(f'{x(i):.1f},{y(value):.1f}' for i, value in enumerate(line) if math.isfinite(value))
        shade = LINES[n % len(LINES)]
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{shade}" stroke-width="2"/>')
        drawn.append(
            f'<text x="{WIDTH - MARGIN + 6}" y="{MARGIN + 14 * n}" style="fill:{shade}">{html.escape(name)}</text>'
        )
    for value in (low, high):
        drawn.append(f'<text x="{MARGIN - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for n in sorted({0, longest // 2, longest - 1}):
        drawn.append(f'<text x="{x(n):.1f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{start + n:g}</text>')
    middle, below = WIDTH / 2, HEIGHT - 6
    drawn.append(f'<text x="{middle}" y="{below}" text-anchor="middle">{html.escape(across)}</text>')
    frame = f'M{MARGIN},{MARGIN / 2} V{HEIGHT - MARGIN} H{WIDTH - MARGIN}'
    return section(title, svg(f'<path d="{frame}" fill="none" stroke="#999"/>' + ''.join(drawn), HEIGHT), note)


def graph(title: str, edges: Mapping[tuple[str, str], float], ranks: Mapping[str, int], note: str = '') -> str:
    """A circuit: nodes in rows by rank, the lowest below, edges as wide as they are strong.

    Args:
        title: of the part.
        edges: (sender, reader) -> strength.
        ranks: node -> row.
        note: below it.

    Raises:
        ValueError: an edge with a node that has no rank.
    """
    for edge in edges:
        for node in edge:
            if node not in ranks:
                raise ValueError(f'graph: edge {edge} has a node {node!r} without a rank')
    rows: dict[int, list[str]] = {}
    for node, rank in sorted(ranks.items(), key=lambda item: item[1]):
        rows.setdefault(rank, []).append(node)
    height = 52 * len(rows) + 20
    at = {
        node: (WIDTH * (place + 1) / (len(nodes) + 1), height - 30 - 52 * row)
        for row, nodes in enumerate(rows.values())
        for place, node in enumerate(nodes)
    }
    most, drawn = largest(np.array(list(edges.values()))), []
    for (sender, reader), strength in edges.items():
        (x1, y1), (x2, y2), size = at[sender], at[reader], 0.6 + 4 * abs(strength) / most
        shade, told = '#1f77b4' if strength > 0 else '#d62728', f'{sender} to {reader}: {number(strength)}'
        line = f'<path d="M{x1:.1f},{y1 - 8:.1f} L{x2:.1f},{y2 + 8:.1f}" stroke="{shade}" stroke-width="{size:.1f}"'
        drawn.append(f'{line} opacity="0.6"><title>{html.escape(told)}</title></path>')
    for node, (x, y) in at.items():
        wide = 7 * len(node) + 10
        drawn.append(f'<rect x="{x - wide / 2:.1f}" y="{y - 9:.1f}" width="{wide}" height="18" rx="4" fill="#eee"/>')
        drawn.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{html.escape(node)}</text>')
    return section(title, svg(''.join(drawn), height), note)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | float]], note: str = '') -> str:
    """Rows of text and numbers."""
    cell = lambda value: html.escape(value if isinstance(value, str) else number(value))
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in columns)
    body = ''.join(f'<tr>{"".join(f"<td>{cell(value)}</td>" for value in row)}</tr>' for row in rows)
    return section(title, f'<table cellpadding="4"><tr>{head}</tr>{body}</table>', note)


def section(title: str, inside: str, note: str = '') -> str:
    """A part with its heading; `inside` is HTML, the others are text."""
    below = f'<p class="note">{html.escape(note)}</p>' if note else ''
    return f'<section><h2>{html.escape(title)}</h2>{inside}{below}</section>'


def svg(inside: str, height: float) -> str:
    """A picture of the common width, with room for names at the right."""
    return f'<svg viewBox="0 0 {WIDTH + 120} {height}" width="{WIDTH + 120}" xmlns="http://www.w3.org/2000/svg">{inside}</svg>'


def largest(values: np.ndarray) -> float:
    """The largest size of what is finite, at least a little."""
    sizes = np.abs(values[np.isfinite(values)])
    return max(float(sizes.max(initial=0.0)), 1e-12)


def colour(share: float) -> str:
    """Of a share in -1 .. 1: red, white, blue; grey where there is none.

    >>> colour(0.0), colour(1.0), colour(-1.0), colour(float('nan'))
    ('#ffffff', '#2171b5', '#cb181d', '#dddddd')
    """
    if math.isnan(share):
        return '#dddddd'
    end, size = (33, 113, 181) if share > 0 else (203, 24, 29), min(abs(share), 1.0)
    return '#' + ''.join(f'{round(255 + (part - 255) * size):02x}' for part in end)


def number(value: float) -> str:
    """Four figures at most.

    >>> number(0.123456), number(1234.5), number(0.0)
    ('0.1235', '1234', '0')
    """
    return f'{value:.4g}'
