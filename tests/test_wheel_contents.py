"""The installed package is whole, and its modules need and export no more than they should."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import zipfile
from pathlib import Path

import pytest

import ccamerge

CHECKER = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "check_wheel.py"))


def module(name: str) -> Path:
    spec = importlib.util.find_spec(f"ccamerge.{name}")
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not built here")
    if shutil.which("readelf") is None:
        pytest.skip("readelf (of binutils) is not installed")
    return Path(spec.origin)


@pytest.mark.parametrize("name", CHECKER["CONTENTS"])
def test_the_package_holds(name: str) -> None:
    assert (Path(ccamerge.__file__).parent / name).is_file()


@pytest.mark.parametrize("name", CHECKER["MODULES"])
def test_a_module_needs_the_system_alone_and_exports_its_entry(name: str) -> None:
    assert CHECKER["module_faults"](module(name)) == []


def test_libraries_of_nvidia_are_not_of_the_system() -> None:
    system = CHECKER["SYSTEM"].fullmatch
    assert all(map(system, ["libc.so.6", "libstdc++.so.6", "ld-linux-x86-64.so.2"]))
    assert not any(map(system, ["libcuda.so.1", "libcudart.so.13", "libcublas.so.13"]))


def test_the_checker_finds_what_a_wheel_lacks(tmp_path: Path) -> None:
    core = module("_core")
    wheel = tmp_path / "ccamerge-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(core, f"ccamerge/{core.name}")
        archive.writestr("ccamerge/py.typed", "")
        archive.writestr("ccamerge.libs/libcublas.so.13", "")
    assert CHECKER["wheel_faults"](wheel) == [
        "the wheel lacks _core.pyi",
        "the wheel lacks _cuda.pyi",
        "the wheel lacks reporting/page.html.jinja",
        "the wheel lacks the module _cuda",
        "a library was copied into the wheel: ccamerge.libs/libcublas.so.13",
    ]
