"""The table of settings, and what is fed from it."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import ccamerge
from ccamerge.cli import main
from ccamerge.config import settings
from ccamerge.config.kinds import Choice
from ccamerge.config.reader import load_config
from ccamerge.config.settings import TABLE, Settings
from ccamerge.reporting.report import Report

pytestmark = pytest.mark.as_users_do

OTHERS = ("models", "data", "reference", "statistics", "aligned", "progress", "device")
"""Arguments of `merge` that depend on what is at hand."""


def _arguments() -> dict[str, inspect.Parameter]:
    found = inspect.signature(ccamerge.merge).parameters
    return {name: p for name, p in found.items() if name not in OTHERS}


def test_the_arguments_of_merge() -> None:
    arguments = _arguments()
    assert list(TABLE) == list(vars(Settings()))
    assert {name: p.default for name, p in arguments.items()} == {
        name: own.default for name, own in TABLE.items()
    }
    types = Settings.__annotations__
    assert {name: p.annotation for name, p in arguments.items()} == types


def test_choices_are_their_types() -> None:
    for name, words in (("mode", settings.Mode), ("repair", settings.Repair)):
        kind = TABLE[name].kind
        assert isinstance(kind, Choice)
        assert kind.words == get_args(words)


def test_defaults_are_of_their_kind() -> None:
    for own in TABLE.values():
        assert own.check(own.default, 2) == own.default
        if own.usual is not None:
            assert own.check(own.usual, 2) == own.usual
        else:
            assert own.example


@pytest.mark.parametrize("name", TABLE)
def test_the_reader_has_its_keys(tmp_path: Path, name: str) -> None:
    """What the table says that a setting is by default, or as an example, can be written."""
    own = TABLE[name]
    key = own.where.removeprefix("parameters.")
    texts = [own.example or json.dumps(own.usual)]
    texts += [] if own.by_patterns is None else [own.by_patterns[0]]
    for text in texts:
        entry = f"{key}: {text}" if key == own.where else f"parameters: {{{key}: {text}}}"
        file = tmp_path / "merge.yml"
        file.write_text(
            f"models: [{{model: a}}, {{model: b}}]\narchitecture: {{factory: 'a:b'}}\n{entry}\n"
        )
        config = load_config(file)
        found: Any = getattr(config.settings, name)
        own.check(found, 2)
        if text == json.dumps(own.usual):
            assert found == own.usual
        assert own.where in config.lines


def test_help_names_each_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for own in TABLE.values():
        key = own.where.removeprefix("parameters.")
        value = own.example
        if own.usual is not None:
            value = own.usual if isinstance(own.usual, str) else json.dumps(own.usual)
        said = re.compile(rf" +{key}: {re.escape(value)} +# {re.escape(own.words)}")
        assert any(said.fullmatch(line) for line in lines)
        if own.by_patterns is not None:
            example, rest = own.by_patterns
            said = re.compile(rf"  {key}: {re.escape(example)} +# others: {rest}")
            assert any(said.fullmatch(line) for line in lines)


def test_the_readme_has_each_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    table = text[text.index("| setting | meaning |") :].split("\n\n")[0]
    rows = {}
    for line in table.splitlines()[2:]:
        names, meaning = line.strip("| ").split(" | ", 1)
        rows.update(dict.fromkeys(re.findall(r"`(\w+)`", names), meaning))
    assert set(rows) == {*TABLE, "reference", "device"}
    for own in TABLE.values():
        if own.usual is not None:
            plain = re.sub('[`"]', "", rows[own.name]).lower()
            value = str(own.usual).lower()
            assert f"{value} (default)" in plain or f"default {value}" in plain


def test_the_report_says_what_was_asked_for() -> None:
    """All but what it says otherwise: shares for t, a ridge for each space, proof and fidelity."""
    fields = set(Report.__annotations__)
    judged = {"select", "ensemble", "holdout", "refine"}
    assert set(TABLE) - fields == {"ridge", "t", "seed", "prove", *judged}
    assert {"proved", "fidelity"} <= fields


def test_neither_torch_nor_numpy_for_the_table(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from ccamerge.config.settings import TABLE;"
        "TABLE['ridge'].check({'*': 1}, 2); TABLE['prove'].check(1, 2);"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    path = str(Path(ccamerge.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code, path], cwd=tmp_path).returncode == 0
