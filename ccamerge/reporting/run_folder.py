"""Reading what a merge and an evaluation left in their folder, for the report."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccamerge.core.brief import Brief
from ccamerge.repair.regression import Fitted
from ccamerge.repair.repairing import Repaired
from ccamerge.reporting.fidelity import Candidate, Fidelity
from ccamerge.reporting.report import Report, SpaceReport
from ccamerge.reporting.results import Barrier, Comparison, Score


class RecordError(ValueError):
    """A file of a record is not what it should be; the message names it and the place."""


@dataclasses.dataclass(frozen=True, repr=False)
class Record(Brief):
    """A merge: its settings and sources as plain data, its report, its evaluation if there is."""

    versions: dict[str, str]
    config: dict[str, Any]
    sources: list[dict[str, Any]]
    report: Report
    evaluated: Comparison | None


class _Each:
    """The shape of a mapping whose keys are free."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


_NONE = type(None)
_NUMBER = (int, float, _NONE)  # null is what is not finite
_SPACE = {
    "name": str,
    "size": int,
    "method": str,
    "ridge": _NUMBER,
    "exact": str,
    "notes": [str],
    "correlations": [[_NUMBER]],
    "details": [_Each(object)],
    "widths": [int],
}
_REPORT = {
    "method": (str, dict),
    "options": dict,
    "mode": str,
    "gamma": _NUMBER,
    "reference": int,
    "weights": [_NUMBER],
    "repair": str,
    "norm": str,
    "samples": int,
    "seconds": _Each(_NUMBER),
    "spaces": [_SPACE],
    "repaired": [{"tap": str, "before": _NUMBER, "after": _NUMBER}],
    "fitted": [{"tap": str, "error": _NUMBER}],
    "skipped": _Each(str),
    "walked": int,
    "kept": int,
    "fixed": _Each([str]),
    "pinned": _Each(str),
}
_FIDELITY = {
    "unit": str,
    "reading": str,
    "inputs": int,
    "members": [_NUMBER],
    "average": _NUMBER,
    "merged": _NUMBER,
    "error": _NUMBER,
    "reference": int,
    "chosen": str,
    "candidates": [{"name": str, "distance": _NUMBER, "t": _NUMBER}],
    "doubt": str,
    "progress": [[_NUMBER]],
}
_RECORD = {
    "versions": _Each(str),
    "config": dict,
    "sources": [{"path": str, "sha256": str, "weight": _NUMBER}],
    "report": _REPORT,
}
_SCORE = {"metric": _NUMBER, "loss": _NUMBER}
_EVALUATED = {
    "metric": str,
    "better": str,
    "loss": str,
    "samples": int,
    "models": [{"name": str, **_SCORE}],
    "ensemble": (dict, _NONE),
    "merged": [{"name": str, "seconds": _NUMBER, **_SCORE}],
    "barriers": [
        {"name": str, "t": [_NUMBER], "metric": [_NUMBER], "loss": [_NUMBER], "ends": [_NUMBER]}
    ],
}


def read_record(folder: Path) -> Record:
    """Read ``report.json`` of a merge and, if it is there, ``evaluation.json``.

    Raises
    ------
    RecordError
        If a file cannot be read or holds something else.
    """
    if not folder.is_dir():
        message = f"{folder}: expected the folder of a merge"
        raise RecordError(message)
    content = _read(folder / "report.json", _RECORD, "`ccamerge merge`")
    evaluated = None
    if (folder / "evaluation.json").exists():
        evaluated = _evaluated(folder / "evaluation.json")
    return Record(
        content["versions"],
        content["config"],
        content["sources"],
        _report(folder / "report.json", content["report"]),
        evaluated,
    )


def _report(path: Path, found: dict[str, Any]) -> Any:
    _check(found.get("peak_bytes", {}), _Each(int), "report.peak_bytes", path)
    _check(found.get("device", ""), str, "report.device", path)
    _check(found.get("on_cpu", []), [str], "report.on_cpu", path)
    spaces = []
    for place, space in enumerate(found["spaces"]):
        _check(space.get("approximate", ""), str, f"report.spaces[{place}].approximate", path)
        explained = {}
        for key in ("explained", "explained_by_map"):
            values = space.get(key, [])
            _check(values, [_NUMBER], f"report.spaces[{place}].{key}", path)
            explained[key] = [_number(value) for value in values]
        details = [
            {**row, "condition": _number(row["condition"])} if "condition" in row else row
            for row in space["details"]
        ]
        rows = [[_number(c) for c in row] for row in space["correlations"]]
        own = {"correlations": rows, "details": details, **explained}
        spaces.append(_made(SpaceReport, {**space, **own}))
    lists: dict[str, Any] = {
        "spaces": spaces,
        "repaired": [
            Repaired(r["tap"], _number(r["before"]), _number(r["after"])) for r in found["repaired"]
        ],
        "fitted": [Fitted(r["tap"], _number(r["error"])) for r in found["fitted"]],
        "seconds": {stage: _number(value) for stage, value in found["seconds"].items()},
        "weights": [_number(value) for value in found["weights"]],
    }
    if (fidelity := found.get("fidelity")) is not None:
        _check(fidelity, _FIDELITY, "report.fidelity", path)
        lists["fidelity"] = _fidelity(fidelity)
    return _made(Report, {**found, **lists})


def _fidelity(found: dict[str, Any]) -> Any:
    candidates = [Candidate(c["name"], _number(c["distance"]), c["t"]) for c in found["candidates"]]
    numbers = {key: _number(found[key]) for key in ("merged", "error")}
    members = [_number(value) for value in found["members"]]
    progress = [tuple(map(_number, step)) for step in found["progress"]]
    lists = {"members": members, "candidates": candidates, "progress": progress}
    return _made(Fidelity, {**found, **numbers, **lists})


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass of those values that it knows; a newer ccamerge may have written more."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def _evaluated(path: Path) -> Comparison:
    found = _read(path, _EVALUATED, "`ccamerge evaluate`")
    ensemble = found["ensemble"]
    if ensemble is not None:
        _check(ensemble, _SCORE, "ensemble", path)
        ensemble = _score("ensemble", ensemble)
    barriers = {}
    for place, row in enumerate(found["barriers"]):
        t, metric, loss, ends = (
            tuple(_number(v) for v in row[key]) for key in ("t", "metric", "loss", "ends")
        )
        if not len(t) == len(metric) == len(loss) > 0 or len(ends) != 2:
            message = f"{path}: barriers[{place}]: t, metric and loss differ in length"
            if len(ends) != 2 or not t:
                message = f"{path}: barriers[{place}]: expected points t and two ends"
            raise RecordError(message)
        barriers[row["name"]] = Barrier(t, metric, loss, (ends[0], ends[1]))
    return Comparison(
        found["metric"],
        found["better"],
        found["loss"],
        found["samples"],
        [_score(row["name"], row) for row in found["models"]],
        ensemble,
        [_score(row["name"], row) for row in found["merged"]],
        barriers,
    )


def _score(name: str, row: Mapping[str, Any]) -> Score:
    return Score(name, _number(row["metric"]), _number(row["loss"]), row.get("seconds"))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _read(path: Path, shape: Any, writer: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"{path}: not found; {writer} writes it"
        raise RecordError(message) from None
    except (ValueError, OSError) as error:
        message = f"{path}: not JSON that can be read: {error}"
        raise RecordError(message) from error
    try:
        _check(found, shape, "", path)
    except RecordError as error:
        message = f"{error}; is it what {writer} wrote?"
        raise RecordError(message) from None
    return dict(found)


def _check(value: Any, shape: Any, where: str, path: Path) -> None:
    """Raise RecordError, with the place, unless plain data has this shape."""
    kind = {list: list, dict: dict, _Each: dict}.get(type(shape), shape)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object):
        names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
        expected = " or ".join("null" if n == "NoneType" else n for n in names)
        text = f"expected {expected}, got {json.dumps(value)[:60]}"
        message = f"{path}: {where or 'the whole'}: {text}"
        raise RecordError(message)
    if type(shape) is list:
        for index, item in enumerate(value):
            _check(item, shape[0], f"{where}[{index}]", path)
    elif isinstance(shape, _Each):
        for key, item in value.items():
            _check(item, shape.shape, f"{where}[{key!r}]", path)
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            name = f"{where}.{key}".lstrip(".")
            if key not in value:
                message = f"{path}: {name}: missing"
                raise RecordError(message)
            _check(value[key], inner, name, path)
