"""The families and what is aligned in each, as a table: ``python -m tests.families.table``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pytest

import ccamerge
from tests.families import families as F
from tests.families.packages import available

ENDS = ("network output", "vocabulary", "meets a fixed axis")
"""Notes of what nobody expects to be aligned, or of what follows from another note."""


def reasons(found: ccamerge.Spaces) -> list[str]:
    """Why features keep their basis, each reason once, without the places where it came up."""
    notes = (
        re.sub(r"_\d+$", "", note.rpartition(": ")[2])
        for space in found.fixed
        for note in space.notes
    )
    return [note for note in dict.fromkeys(notes) if note not in ENDS]


def group(words: str) -> str:
    """What maps a group has, without the numbers of this one's heads and planes."""
    words = re.sub(r" within each of \d+ heads(, which may be exchanged)?", " within heads", words)
    words = re.sub(r"for each of \d+ planes", "for each plane", words)
    return re.sub(r"any invertible map of \d+ of \d+ features", "any for the rest", words)


def rows(names: Iterable[str]) -> Iterator[str]:
    """A line of Markdown for each family: shares of parameters, groups, and what is left why."""
    yield "| family | along all axes | along some or all | exact groups | left as they are |"
    yield "|---|--:|--:|---|---|"
    for name in names:
        found = ccamerge.spaces(*F.built(name))
        every, some, _ = found.aligned_shares()
        words = (part for space in found.spaces for part in space.exact.words.split("; "))
        groups = ", ".join(dict.fromkeys(map(group, words)))
        left = "; ".join(reasons(found))
        yield f"| {name} | {every:.0%} | {every + some:.0%} | {groups} | {left} |"


def main() -> None:
    """Print the table of the families whose packages are there."""
    there = []
    for name, family in F.FAMILIES.items():
        try:
            available(family.package)
        except pytest.skip.Exception as why:
            print(f"{name} is left out: {why}")
        else:
            there.append(name)
    for line in rows(there):
        print(line, flush=True)


if __name__ == "__main__":
    main()
