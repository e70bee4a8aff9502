"""What the user's code imports is found as long as a command runs, and no longer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ccamerge
from ccamerge.config.importing import Factory, current_folder_importable
from tests.projects import run

CODE = '''\
"""Everything here imports `late_helper` only when it runs."""
import torch
from torch import nn


class Net(nn.Sequential):
    def forward(self, x):
        import late_helper
        return super().forward(late_helper.same(x))


def network():
    return Net(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def generated(labels=False):
    import late_helper
    for seed in range(3):
        yield late_helper.batch(seed, labels)


class Lazy(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        import late_helper
        if index >= len(self):
            raise IndexError(index)
        return late_helper.batch(index, True)[0][0]


def loader(workers):
    return torch.utils.data.DataLoader(Lazy(), batch_size=16, num_workers=workers)


def error(outputs, batch):
    import late_helper
    return late_helper.error(outputs, batch[1])
'''

HELPER = """\
import torch


def same(x): return x
def error(outputs, labels): return (outputs.argmax(-1) != labels).float()


def batch(seed, labels):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 6, generator=generator)
    return (x, (x[:, 0] > 0).long()) if labels else x
"""

CONFIG = """\
models: [{model: 0.safetensors}, {model: 1.safetensors}]
architecture: {factory: "late_code:network"}
data: {factory: "late_code:DATA"}
evaluation:
  factory: late_code:generated
  arguments: {labels: true}
  metric: late_code:error
  better: lower
"""


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "late_code.py").write_text(CODE)
    (tmp_path / "late_helper.py").write_text(HELPER)
    (tmp_path / "c.yml").write_text(CONFIG.replace("DATA", "generated"))
    monkeypatch.chdir(tmp_path)
    from ccamerge.checkpoints.reading import save_state

    with current_folder_importable():
        import late_code  # type: ignore[import-not-found]

        for seed in range(2):
            save_state(late_code.network().state_dict(), tmp_path / f"{seed}.safetensors")
    for name in ("late_code", "late_helper"):
        sys.modules.pop(name, None)
    yield tmp_path
    for name in ("late_code", "late_helper"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "command",
    [
        ("merge", "c.yml", "out", "--quiet"),
        ("merge", "c.yml", "out", "--dry-run", "--quiet"),
        ("collect", "c.yml", "s.safetensors", "--quiet"),
        ("evaluate", "c.yml", "--methods", "average", "--barrier", "3", "--quiet"),
        ("inspect", "c.yml", "--verify"),
    ],
)
def test_modules_beside_the_configuration_are_found_late(
    late: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    before = list(sys.path)
    status, _, err = run(capsys, *command)
    assert (status, err) == (0, "")
    assert sys.path == before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_the_workers_of_a_dataloader(late: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CONFIG.replace('"late_code:DATA"', '"late_code:loader", arguments: {workers: 1}')
    (late / "c.yml").write_text(text)
    before = list(sys.path)
    assert run(capsys, "merge", "c.yml", "out", "--quiet") == (0, "", "")
    assert sys.path == before


def test_a_command_that_fails_restores_the_path(
    late: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (late / "late_helper.py").unlink()
    before = list(sys.path)
    status, _, err = run(capsys, "merge", "c.yml", "out", "--quiet")
    assert status == 1
    assert "late_helper" in err
    assert sys.path == before


def test_a_metric_by_its_name_imports_late_in_python_too(late: Path) -> None:
    network = Factory("late_code:network")()
    before = list(sys.path)
    with current_folder_importable():
        import late_helper  # type: ignore[import-not-found]

        data = [late_helper.batch(0, True)]
    plain = network.__class__.__mro__[1](*network)  # its forward imports nothing
    del sys.modules["late_helper"]
    value = ccamerge.evaluate(plain, data, "late_code:error")
    assert 0 <= value <= 1
    assert sys.path == before


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    before = list(sys.path)
    with current_folder_importable():
        assert sys.path == before
    assert sys.path == before
