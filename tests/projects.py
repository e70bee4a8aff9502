"""A user's project, with a module, networks and a configuration, for tests of the command line."""

from __future__ import annotations

from contextlib import contextmanager

import ccamerge
from ccamerge.cli import main

MODULE = '''\
"""A user's module: a small BatchNorm network and batches of four blobs in eight dimensions."""
import torch
from torch import nn


def network(width=16):
    return nn.Sequential(
        nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 12), nn.ReLU(),
        nn.Linear(12, 4),
    )


def batches(count=4, labels=True, bad=False, seed=5):
    centres = 2.5 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        y = torch.randint(4, (64,), generator=generator)
        x = centres[y] + torch.randn(64, 8, generator=generator)
        if bad and index == count - 1:
            x[0, 0] = float("nan")
        yield (x, y) if labels else x


def interrupted():
    yield from batches(1)
    raise KeyboardInterrupt


def endless():
    while True:
        yield from batches(1)


def random(once):
    made = ((torch.randn(64, 8), torch.randint(4, (64,))) for _ in range(4))
    return made if once else Random()


class Random:
    def __iter__(self):
        return random(True)


def wrong(): return 3
def no_method(alignment): return {}
def swap(alignment, *, first=0):
    """Not to be called before it is decorated: see the end."""
    from ccamerge.graph.feature_map import FeatureMap
    from ccamerge.methods import Solution

    found = {}
    for space in alignment.spaces:
        order = list(range(space.size))
        order[first], order[-1] = order[-1], order[first]
        own = [Solution(FeatureMap.permutation(order)) for _ in alignment.states]
        own[alignment.reference] = Solution(FeatureMap.identity(space.size))
        found[space.name] = own
    return found


from ccamerge.graph.groups import PERMUTATION
from ccamerge.methods import register
swap = register("swapped", pairs="all", maps=PERMUTATION)(swap)
def nothing(): return []
'''

CONFIG = """\
base_model: runs/1.pt
models:
  - model: runs/0.safetensors
    parameters: {weight: 1}
  - model: runs/1.pt
    parameters: {weight: 1}
architecture:
  factory: blobs_module:network
  arguments: {width: 16}
data:
  factory: blobs_module:batches
  arguments: {count: 8, labels: false, seed: 1}
evaluation:
  factory: blobs_module:batches
parameters: {ridge: 0.01, seed: 3}
"""

DATA = CONFIG[CONFIG.index("factory: blobs_module:batches") : CONFIG.index("evaluation:") - 1]


@contextmanager
def registering():
    """Forget the methods that are registered inside."""
    before = dict(ccamerge.METHODS)
    try:
        yield
    finally:
        ccamerge.METHODS.clear()
        ccamerge.METHODS.update(before)


def run(capsys, *args):
    status = main([str(a) for a in args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys, status, *args):
    found, out, err = run(capsys, *args)
    assert found == status
    assert out == ""
    assert "Traceback" not in err
    lines = [line.removeprefix("ccamerge: error: ") for line in err.splitlines()]
    assert all(line.startswith("ccamerge: error: ") for line in err.splitlines())
    return "\n".join(lines)


def change(project, *pairs):
    text = (project / "merge.yml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (project / "merge.yml").write_text(text)


def network():
    import blobs_module  # type: ignore[import-not-found]

    return blobs_module.network()


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "pycache" not in str(p))
