"""The committed stub of the native module is what the module itself says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ccamerge
from ccamerge import _core


def test_the_stub_is_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("pybind11_stubgen", reason="comes with the dev extra")
    command = [sys.executable, "-m", "pybind11_stubgen", "ccamerge._core", "-o", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    fresh = (tmp_path / "ccamerge" / "_core.pyi").read_text().splitlines()
    committed = (Path(ccamerge.__file__).parent / "_core.pyi").read_text().splitlines()

    def without_build(lines: list[str]) -> list[str]:
        return [line for line in lines if not line.startswith("cuda_built")]

    assert without_build(fresh) == without_build(committed)


def test_every_native_name_is_in_the_stub() -> None:
    stub = (Path(ccamerge.__file__).parent / "_core.pyi").read_text()
    missing = [n for n in vars(_core) if not n.startswith("_") and n not in stub]
    assert not missing
