"""The report page: one file without a network, colours and numbers, opened in headless Chromium if there is one."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from jattn.understanding import report

PIECES = ['The', ' cat', ' <b>', ' sat']
PATTERN = np.tril(np.ones((2, 3, 4, 4))) / np.arange(1, 5)[:, None]
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


def page(path):
    effects = np.array([[1.0, -2.0, np.nan], [0.0, 0.5, 0.25]])
    edges = {('embed', '0.1'): 1.0, ('0.1', 'logits'): -0.5}
    parts = [
        report.tokens('bits', PIECES, np.array([0.0, 1.0, -1.0, np.nan])),
        report.head_map('effects', effects, (3, 5)),
        report.curves('loss', {'train': [3.0, 2.0, np.inf], 'eval': [2.5, 2.25]}, 'step'),
        report.graph('circuit', edges, {'embed': 0, '0.1': 1, 'logits': 2}),
        report.table('found', ('head', 'score'), [('0.1 & more', 0.5)]),
        report.attention('attention', PIECES, PATTERN, (3, 5), first=(5, 2)),
    ]
    report.write(path, 'a <page>', parts)
    return path.read_text()


def test_a_page_needs_nothing_else_and_escapes_text(tmp_path):
    text = page(tmp_path / 'page.html')
    assert not re.findall(r'(?:src|href|@import|url)\s*[=(]', text)
    assert '<title>a &lt;page&gt;</title>' in text and ' &lt;b&gt;' in text and '0.1 &amp; more' in text
    assert text.count('<section>') == text.count('</section>') == 6


def test_colours_and_numbers_are_those_of_the_values(tmp_path):
    text = page(tmp_path / 'page.html')
    assert 'style="background:#cb181d" title="layer 3, head 1: -2"' in text
    assert 'title="layer 3, head 2' not in text  # nan: no such head
    assert '<span style="background:#dddddd" title="nan"> sat</span>' in text
    assert 'embed to 0.1: 1</title>' in text
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text).group(1))
    assert data['layers'] == [3, 5] and data['first'] == [1, 2]
    assert data['pattern'][0][0] == [[1000], [500, 500], [333, 333, 333], [250] * 4]


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium on this machine')
def test_a_browser_runs_the_page(tmp_path):
    page(tmp_path / 'page.html')
    still = '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync'
    command = [CHROMIUM, *still.split(), f'--user-data-dir={tmp_path}/user', '--dump-dom', f'{tmp_path}/page.html']
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert '<option value="0">layer 3</option><option value="1">layer 5</option>' in dom
    assert 'token 3 attends' in dom and dom.count('title="0.250"') == 4


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r'values has shape \(2,\)'):
        report.tokens('bits', PIECES, np.zeros(2))
    with pytest.raises(ValueError, match='pattern has shape'):
        report.attention('attention', PIECES, PATTERN[:, :, :3], (3, 5))
    with pytest.raises(ValueError, match="has a node 'b' without a rank"):
        report.graph('circuit', {('a', 'b'): 1.0}, {'a': 0})
