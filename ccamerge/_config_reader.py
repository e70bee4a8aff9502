"""Reading a configuration by PyYAML's nodes, which know the line that each value stands on."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias, get_args

import yaml

from ccamerge.config import (
    DTYPES,
    FACTORY_PATTERN,
    METHODS,
    Config,
    ConfigError,
    Factory,
    Norm,
    Repair,
    did_you_mean,
)


class _Loader(yaml.SafeLoader):
    """The safe loader, which also reads 1e-3 as a number: YAML 1.1 wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+\Z"),
    list("-+0123456789"),
)

_TOP = (
    "merge_method",
    "base_model",
    "models",
    "architecture",
    "data",
    "evaluation",
    "parameters",
    "moments",
    "dtype",
)
_PARAMETERS = ("ridge", "gamma", "repair", "norm", "seed", "weights")
_MISSING: Any = object()
_Node: TypeAlias = yaml.nodes.Node


def read(path: Path) -> Config:
    """See `ccamerge.config.load_config`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 text, so no YAML: {error}"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}:{_yaml_problem(error)}"]) from None
    return _Reader(path).read(root)


def parse_text(text: str) -> Any:
    """See `ccamerge.config.parse_value`."""
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of the safe loader
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError([f"{text!r} is not a YAML value: {problem}"]) from None


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    text = ", ".join(str(p) for p in parts if p) or str(error).replace("\n", " ")
    return f"{mark.line + 1 if mark else 1}: not valid YAML: {text}"


class _Reader:
    """Collects problems while it reads, so that all can be shown at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        self.lines: dict[str, int] = {}

    def read(self, root: _Node | None) -> Config:
        if root is None:
            raise ConfigError([f"{self.path}:1: the file is empty"])
        top = self._mapping(root, "", _TOP)
        method = self._choice(top.get("merge_method"), "merge_method", METHODS, "cca")
        models, own_weights = self._models(top.get("models"), root)
        reference = self._reference(top.get("base_model"), models)
        architecture = self._factory(top.get("architecture"), "architecture")
        if "architecture" not in top:
            self._report(root, "architecture", "missing; it says how to build the network")
        data = self._factory(top.get("data"), "data")
        evaluation = self._factory(top.get("evaluation"), "evaluation")
        options = self._options(top.get("parameters"), len(models), own_weights)
        moments = self._path(top["moments"], "moments") if "moments" in top else None
        dtype = self._choice(top.get("dtype"), "dtype", DTYPES, None)
        if self.problems or architecture is None or method is None:
            ordered = sorted(self.problems, key=lambda p: p[0])
            raise ConfigError([f"{self.path}:{line}: {text}" for line, text in ordered])
        return Config(
            self.path,
            method,
            tuple(p for p in models if p is not None),
            reference=reference,
            architecture=architecture,
            data=data,
            evaluation=evaluation,
            moments=moments,
            dtype=dtype,
            lines=self.lines,
            **options,
        )

    # Parts ---------------------------------------------------------------------------------

    def _models(
        self, node: _Node | None, root: _Node
    ) -> tuple[list[Path | None], list[tuple[_Node, Any] | None]]:
        """Paths (None for a wrong one) and what each model says of its weight."""
        if node is None:
            self._report(root, "models", "missing; it lists the checkpoints to merge")
            return [], []
        if not isinstance(node, yaml.SequenceNode):
            self._report(node, "models", f"expected a list, got {self._shown(node)}")
            return [], []
        if len(node.value) < 2:
            self._report(node, "models", f"expected two models or more, got {len(node.value)}")
        paths: list[Path | None] = []
        weights: list[tuple[_Node, Any] | None] = []
        for index, item in enumerate(node.value):
            where = f"models[{index}]"
            entry = self._mapping(item, where, ("model", "parameters"))
            if "model" not in entry and isinstance(item, yaml.MappingNode):
                self._report(item, f"{where}.model", "missing; it is the checkpoint's path")
            path = self._path(entry["model"], f"{where}.model") if "model" in entry else None
            if path is not None and path in paths:
                same = paths.index(path)
                text = f"the same file as models[{same}]; give it a larger weight instead"
                self._report(entry["model"], f"{where}.model", text)
            paths.append(path)
            inner = entry.get("parameters")
            parameters = self._mapping(inner, f"{where}.parameters", ("weight",)) if inner else {}
            weight = parameters.get("weight")
            value = None
            if weight is not None:
                value = self._number(weight, f"{where}.parameters.weight", positive=True)
            weights.append(None if weight is None else (weight, value))
        given = [w for w in weights if w is not None]
        if given and len(given) < len(weights):
            bare = ", ".join(f"models[{i}]" for i, w in enumerate(weights) if w is None)
            self._report(node, "models", f"some have a weight, but not {bare}; give all or none")
        return paths, weights

    def _reference(self, node: _Node | None, models: list[Path | None]) -> int:
        path = self._path(node, "base_model") if node is not None else None
        if path is None or path in models:
            return 0 if path is None else models.index(path)
        if None not in models and models:  # a broken entry may well be the one that is meant
            assert node is not None
            listed = [str(m) for m in models]
            names = {Path(m).name: m for m in listed}
            hint = did_you_mean(path.name, names)
            self._report(node, "base_model", f"{self._shown(node)} is not one of the models{hint}")
        return 0

    def _options(
        self, node: _Node | None, count: int, own: list[tuple[_Node, Any] | None]
    ) -> dict[str, Any]:
        entry = self._mapping(node, "parameters", _PARAMETERS) if node is not None else {}
        options: dict[str, Any] = {}
        for name in ("ridge", "gamma"):
            if name in entry:
                options[name] = self._number(entry[name], f"parameters.{name}", positive=False)
        if "ridge" in entry and "gamma" in entry:
            text = "given beside ridge; ridge is relative to the features' variance, gamma absolute"
            self._report(entry["gamma"], "parameters.gamma", text)
        options["repair"] = self._choice(
            entry.get("repair"), "parameters.repair", get_args(Repair), "variance"
        )
        options["norm"] = self._choice(entry.get("norm"), "parameters.norm", get_args(Norm), "fold")
        seed = self._value(entry["seed"], "parameters.seed") if "seed" in entry else 0
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            shown = self._shown(entry["seed"])
            self._report(entry["seed"], "parameters.seed", f"expected an integer >= 0, got {shown}")
        options["seed"] = seed
        weights = [w[1] for w in own if w is not None]
        if "weights" in entry:
            if weights:
                text = "the models have weights of their own; give one or the other"
                self._report(entry["weights"], "parameters.weights", text)
            weights = self._weights(entry["weights"], count)
        if len(weights) != count or None in weights:
            weights = [1.0] * count  # none given; or wrong, and then reported
        total = math.fsum(weights)
        options["weights"] = tuple(w / total for w in weights)
        return options

    def _weights(self, node: _Node, count: int) -> list[Any]:
        where = "parameters.weights"
        if not isinstance(node, yaml.SequenceNode):
            self._report(node, where, f"expected a list of numbers, got {self._shown(node)}")
            return []
        if len(node.value) != count:
            text = f"expected {count} numbers, one for each model, got {len(node.value)}"
            self._report(node, where, text)
        return [
            self._number(item, f"{where}[{i}]", positive=True) for i, item in enumerate(node.value)
        ]

    def _factory(self, node: _Node | None, where: str) -> Factory | None:
        if node is None:
            return None
        entry = self._mapping(node, where, ("factory", "arguments"))
        if not isinstance(node, yaml.MappingNode):
            return None
        arguments: Any = {}
        if "arguments" in entry:
            arguments = self._value(entry["arguments"], f"{where}.arguments")
            if arguments is None:  # a key with nothing below it
                arguments = {}
            if arguments is not _MISSING and (
                not isinstance(arguments, dict) or not all(isinstance(k, str) for k in arguments)
            ):
                text = f"expected names with values, got {self._shown(entry['arguments'])}"
                self._report(entry["arguments"], f"{where}.arguments", text)
        if "factory" not in entry:
            self._report(node, f"{where}.factory", 'missing; expected "package.module:function"')
            return None
        path = self._value(entry["factory"], f"{where}.factory")
        if not isinstance(path, str) or not FACTORY_PATTERN.fullmatch(path):
            text = f'expected "package.module:function", got {self._shown(entry["factory"])}'
            self._report(entry["factory"], f"{where}.factory", text)
            return None
        line = entry["factory"].start_mark.line + 1
        return Factory(path, arguments, f"{self.path}:{line}: {where}")

    # Values --------------------------------------------------------------------------------

    def _mapping(self, node: _Node, where: str, known: Iterable[str]) -> dict[str, _Node]:
        """Return a mapping's known keys; duplicate and unknown ones are reported."""
        if not isinstance(node, yaml.MappingNode):
            text = f"expected a mapping with {', '.join(known)}; got {self._shown(node)}"
            self._report(node, where, text)
            return {}
        found: dict[str, _Node] = {}
        self._duplicates(node, where)
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else self._shown(key)
            inside = f"{where}.{name}" if where else str(name)
            if name not in known:
                hint = did_you_mean(str(name), known) or f"; known: {', '.join(known)}"
                self._report(key, inside, f"unknown key{hint}")
            elif _is_null(value) and name not in ("arguments",):
                if name not in found:
                    self._report(key, inside, "has no value")
            elif name not in found:
                found[name] = value
                self.lines[inside] = key.start_mark.line + 1
        return found

    def _duplicates(self, node: yaml.MappingNode, where: str) -> None:
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            identity = (key.tag, key.value)
            if identity in first:
                inside = f"{where}.{key.value}" if where else key.value
                self._report(key, inside, f"given twice, first in line {first[identity]}")
            first.setdefault(identity, line)

    def _value(self, node: _Node, where: str) -> Any:
        """Return a node as plain data; `_MISSING` if it has none, which is then reported."""
        self._inner_duplicates(node, where, set())
        try:
            return yaml.constructor.SafeConstructor().construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date such as 2020-99-99
            problem = getattr(error, "problem", None) or str(error)
            self._report(node, where, f"cannot be read: {problem}")
            return _MISSING

    def _inner_duplicates(self, node: _Node, where: str, seen: set[int]) -> None:
        if id(node) in seen:  # an alias; it may even contain itself
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._duplicates(node, where)
            for key, value in node.value:
                self._inner_duplicates(value, f"{where}.{getattr(key, 'value', '?')}", seen)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._inner_duplicates(item, f"{where}[{index}]", seen)

    def _number(self, node: _Node, where: str, *, positive: bool) -> float | None:
        value = self._value(node, where)
        if value is _MISSING:
            return None
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value < 0 or (positive and value == 0):
            bound = "> 0" if positive else ">= 0"
            self._report(node, where, f"expected a number {bound}, got {self._shown(node)}")
            return None
        return float(value)

    def _choice(
        self, node: _Node | None, where: str, choices: tuple[str, ...], default: str | None
    ) -> str | None:
        if node is None:
            return default
        value = self._value(node, where)
        if isinstance(value, str) and value in choices:
            return value
        hint = did_you_mean(str(value).lower(), choices)
        text = f"expected one of {', '.join(choices)}; got {self._shown(node)}{hint}"
        self._report(node, where, text)
        return None

    def _path(self, node: _Node, where: str) -> Path | None:
        value = self._value(node, where)
        if not isinstance(value, str) or not value:
            self._report(node, where, f"expected a file's path, got {self._shown(node)}")
            return None
        return Path(os.path.abspath(self.path.parent / Path(value).expanduser()))

    # Problems ------------------------------------------------------------------------------

    def _report(self, node: _Node, where: str, text: str) -> None:
        line = node.start_mark.line + 1
        problem = (line, f"{where}: {text}" if where else text)
        if problem not in self.problems:
            self.problems.append(problem)

    def _shown(self, node: _Node) -> str:
        if isinstance(node, yaml.SequenceNode):
            return "a list"
        if isinstance(node, yaml.MappingNode):
            return "a mapping"
        if _is_null(node):
            return "nothing"
        quoted = node.tag.endswith(":str")
        return repr(node.value) if quoted else str(node.value)


def _is_null(node: _Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
