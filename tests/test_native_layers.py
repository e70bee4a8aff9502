"""What the folders of the native sources may include of each other, as csrc/README.md has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
MAY_INCLUDE = {
    "common": set[str](),
    "host": {"common"},
    "solve": {"common", "host"},
    "cpu": {"common", "host", "solve"},
    "cuda": {"common", "solve"},
    "emulation": {"common", "host", "cuda"},
    "bind": {"common", "host", "solve", "cpu", "cuda"},
    "tests": {"common", "host", "solve", "cpu", "cuda"},
}


def sources(folder: str) -> list[Path]:
    found = (CSRC / folder).rglob("*")
    return sorted(p for p in found if p.suffix in {".cpp", ".hpp", ".cu", ".h"})


def test_every_source_lies_in_a_folder_of_the_table() -> None:
    folders = {path.name for path in CSRC.iterdir() if path.is_dir()}
    assert folders == set(MAY_INCLUDE)
    assert {path.name for path in CSRC.iterdir() if path.is_file()} == {"README.md"}


@pytest.mark.parametrize("folder", MAY_INCLUDE)
def test_a_folder_includes_what_lies_below_it(folder: str) -> None:
    allowed = MAY_INCLUDE[folder] | {folder}
    for source in sources(folder):
        for name in re.findall(r'^ *# *include "(.+)"', source.read_text(), re.MULTILINE):
            if "/" in name:
                assert (CSRC / name).is_file(), f"{source}: {name}"
                assert name.split("/")[0] in allowed, f"{source}: {name}"
            else:
                assert source.with_name(name).is_file(), f"{source}: {name}"


@pytest.mark.parametrize("folder", MAY_INCLUDE)
def test_python_is_known_to_the_bindings_alone(folder: str) -> None:
    knowing = [p for p in sources(folder) if re.search(r"pybind11/|Python\.h", p.read_text())]
    assert bool(knowing) == (folder == "bind"), knowing
