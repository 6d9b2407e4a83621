"""The peer's side of `titans.py`: runs in a Python with torch and titans-pytorch, answers one JSON line a request."""

import json
import os
import resource
import sys


def main() -> None:
    """Serves until its input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), 'w', buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the packages print must not stand among the answers
    modules = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer = {'ready': True}
        if request['do'] == 'make':
            answer = make(modules, request)
        elif request['do'] == 'run':
            run(*modules[request['name']])
        answers.write(json.dumps(answer) + '\n')


def make(modules: dict, request: dict) -> dict:
    """Builds the package's NeuralMemory and an input; one pass measures the growth of the peak resident set."""
    import importlib.metadata

    import torch
    from titans_pytorch import MemoryMLP, NeuralMemory

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    module = NeuralMemory(
        dim=request['width'],
        heads=request['heads'],
        dim_head=request['channels'],
        chunk_size=request['chunk_size'],
        batch_size=request.get('batch_size'),
        model=MemoryMLP(request['channels'], depth=2, expansion_factor=4.0),
    )
    x = torch.randn(1, request['tokens'], request['width'], requires_grad=True)
    modules[request['name']] = (module, x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(module, x)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'titans-pytorch')}
    return versions | {'peak_rss_growth_mb': round(grown / 1024, 1)}


def run(module: object, x: object) -> None:
    """Forward and backward."""
    module.zero_grad(set_to_none=True)
    x.grad = None
    retrieved, _ = module(x)
    retrieved.square().sum().backward()


if __name__ == '__main__':
    main()
