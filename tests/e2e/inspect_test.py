"""The program that looks into a model, on small trained runs: what it prints and writes, what it leaves out."""

import pytest

from experiments import inspect, run
from tests import programs


@pytest.fixture(scope='module', params=['softmax', 'mamba'])
def workdir(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    text = path / 'text.txt'
    text.write_text('the quick brown fox jumps over the lazy dog. ' * 60)
    changes = (f'data.path={text}', 'data.tokens=32', 'training.steps=2', f'model.mixer={request.param}')
    arguments = [f'--set={change}' for change in changes]
    assert programs.call(run, '--config=lm_bytes', '--size=tiny', f'--workdir={path}/run', *arguments) == 0
    return request.param, path / 'run'


def test_a_trained_run_is_looked_into_and_what_a_mixer_lacks_is_said(workdir, tmp_path, capsys):
    name, path = workdir
    assert programs.call(inspect, f'--workdir={path}', '--prompt=the quick', f'--out={tmp_path}') == 0
    said = capsys.readouterr().out
    page = (tmp_path / 'inspect.html').read_text()
    assert '9 tokens; next: ' in said and 'lens: ' in said and 'what every layer would say' in page
    if name == 'softmax':
        assert 'heads: induction: layer ' in said and 'attribution: the logit of ' in said
        assert page.count('class="attention"') == 1
    else:
        for tool in ('heads', 'attention'):
            assert f'{tool}: left out: ' in said
        assert 'class="attention"' not in page


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--tools=lense',), "did you mean 'lens'?"),
        ((), '--prompt is needed once, not 0 times'),
        (('--prompt=ab', '--pretrained=smollm2', '--workdir=runs/a'), 'one of --pretrained and --workdir is needed'),
        (('--prompt=ab', '--pretrained=smol'), "did you mean 'smollm2'?"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, tmp_path, capsys):
    assert programs.call(inspect, f'--out={tmp_path}/page', *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'page').exists()
