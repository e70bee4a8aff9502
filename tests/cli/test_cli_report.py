from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ccamerge.cli import main
from ccamerge.cli._output import FILES, check_target
from ccamerge.cli._shared import UsageError, to_json
from ccamerge.reporting import plots
from ccamerge.reporting.run_folder import RecordError, read_record
from tests import reports

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
Image = pytest.importorskip("PIL.Image")


def evaluation(**changes) -> dict:
    return {**reports.evaluated().to_dict(), **changes}


def content(**changes) -> dict:
    sources = [{"path": "a.pt", "sha256": "0" * 64, "weight": 0.5}]
    whole = {"versions": {"ccamerge": "1"}, "config": {}, "sources": sources}
    return {**whole, "report": reports.report().to_dict(), **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "merged"
    made.mkdir()
    for name in FILES:
        (made / name).write_text("")
    (made / "report.json").write_text(to_json(content()))
    return made


def fails(capsys, *args) -> str:
    assert main([str(a) for a in args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ccamerge: error: ")
    return err


def test_what_was_written_is_read_again(folder: Path) -> None:
    (folder / "evaluation.json").write_text(to_json(evaluation()))
    found = read_record(folder)
    assert found.report == reports.report()
    expected = reports.evaluated()
    plain = [dataclasses.replace(score, seconds=None) for score in expected.models]
    assert found.evaluated == dataclasses.replace(expected, models=plain)


def test_nulls_are_read_as_missing_numbers(folder: Path) -> None:
    made = reports.report()
    made.spaces[0].details[0]["condition"] = float("inf")
    made.spaces[0].correlations[0][0] = float("nan")
    made.spaces[0].explained[1] = float("nan")
    (folder / "report.json").write_text(to_json(content(report=made.to_dict())))
    space = read_record(folder).report.spaces[0]
    assert space.details[0]["condition"] != space.details[0]["condition"]
    assert space.mean_correlation != space.mean_correlation
    assert space.explained[1] != space.explained[1]
    assert space.mean_explained == space.explained[0]
    assert main(["report", str(folder), "--quiet"]) == 0


def test_reports_of_before_memory_was_measured(folder: Path) -> None:
    old = reports.report().to_dict()
    del old["peak_bytes"]
    for space in old["spaces"]:
        for key in ("approximate", "explained", "explained_by_map"):
            del space[key]
    (folder / "report.json").write_text(json.dumps(content(report=old)))
    assert read_record(folder).report.peak_bytes == {}
    assert main(["report", str(folder), "--quiet"]) == 0


def test_page_and_pictures(folder: Path, capsys) -> None:
    (folder / "evaluation.json").write_text(to_json(evaluation()))
    assert main(["report", str(folder), "--png"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "report.html" in err
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("data:image/png;base64,") == len(plots.PICTURES)
    assert {p.name for p in (folder / "pictures").iterdir()} == {
        f"{name}.png" for name in plots.PICTURES
    }
    for path in (folder / "pictures").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 200
    assert {p.name for p in folder.iterdir()} == {
        *FILES,
        "evaluation.json",
        "pictures",
        "report.html",
    }
    check_target(folder, force=True)  # still ours to replace


def test_other_places(folder: Path, tmp_path: Path) -> None:
    before = {p.name for p in folder.iterdir()}
    args = ["report", str(folder), "--out", str(tmp_path / "p.html"), "--png", str(tmp_path / "d")]
    assert main([*args, "--quiet"]) == 0
    assert (tmp_path / "p.html").is_file()
    assert (tmp_path / "d/correlations.png").is_file()
    assert {p.name for p in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["other.html", "pictures/other.png", "pictures/sub"])
def test_force_spares_what_is_not_ours(folder: Path, name: str) -> None:
    (folder / "pictures").mkdir()
    (folder / name).write_text("precious")
    with pytest.raises(UsageError, match="replaces only the folder of an earlier merge"):
        check_target(folder, force=True)


BROKEN_REPORTS = {
    "{": "not JSON that can be read",
    "[]": "the whole: expected dict, got []",
    "{}": "versions: missing",
    json.dumps(content(sources=3)): "sources: expected list, got 3",
    json.dumps(content(report={})): "report.method: missing",
    to_json(content(report={**reports.report().to_dict(), "samples": True})): (
        "report.samples: expected int, got true"
    ),
    to_json(content(report={**reports.report().to_dict(), "peak_bytes": {"solve": "1"}})): (
        "report.peak_bytes['solve']: expected int, got \"1\""
    ),
    to_json(content()).replace('"explained": [', '"explained": ["x", ', 1): (
        'report.spaces[0].explained[0]: expected int or float or null, got "x"'
    ),
    to_json(content()).replace('"notes": [', '"notes": [7, ', 1): (
        "report.spaces[0].notes[0]: expected str, got 7"
    ),
}


@pytest.mark.parametrize(("text", "message"), BROKEN_REPORTS.items())
def test_broken_reports(folder: Path, capsys, text: str, message: str) -> None:
    (folder / "report.json").write_text(text)
    error = fails(capsys, "report", folder)
    assert str(folder / "report.json") in error
    assert message in error
    assert not (folder / "report.html").exists()


BROKEN_EVALUATIONS = {
    "nonsense": "not JSON",
    "{}": "metric: missing",
    json.dumps(evaluation(ensemble=3)): "ensemble: expected dict or null, got 3",
    json.dumps(evaluation(ensemble={"metric": 1})): "loss: missing",
    json.dumps(evaluation(models=[{"name": "m", "metric": "x", "loss": 1}])): (
        'models[0].metric: expected int or float or null, got "x"'
    ),
    json.dumps(
        evaluation(
            barriers=[{"name": "b", "t": [0, 1], "metric": [1], "loss": [1], "ends": [0, 0]}]
        )
    ): "barriers[0]: t, metric and loss differ in length",
}


@pytest.mark.parametrize(("text", "message"), BROKEN_EVALUATIONS.items())
def test_broken_evaluations(folder: Path, capsys, text: str, message: str) -> None:
    (folder / "evaluation.json").write_text(text)
    error = fails(capsys, "report", folder)
    assert str(folder / "evaluation.json") in error
    assert message in error


def test_bad_arguments(folder: Path, tmp_path: Path, capsys) -> None:
    assert "expected the folder of a merge" in fails(capsys, "report", tmp_path / "none")
    assert "`ccamerge merge` writes it" in fails(capsys, "report", tmp_path)
    assert "there is no folder" in fails(capsys, "report", folder, "--out", tmp_path / "x/y.html")
    assert "is a folder" in fails(capsys, "report", folder, "--out", tmp_path)
    assert "is a file" in fails(capsys, "report", folder, "--png", folder / "config.yml")
    with pytest.raises(RecordError):
        read_record(tmp_path)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_a_package(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    error = fails(capsys, "report", folder)
    assert f"{package}: pip install 'ccamerge[plots]'" in error
    assert not (folder / "report.html").exists()


def test_help_needs_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, ccamerge.cli as c\n"
        "c.build_parser()\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
