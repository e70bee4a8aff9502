"""Reading a configuration: what each key of the YAML may hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import yaml

from ccamerge.config.data_files import TABLES, DataFiles
from ccamerge.config.importing import FACTORY_PATTERN, ConfigError, Factory, did_you_mean
from ccamerge.config.kinds import (
    Budget,
    Choice,
    ChoiceOrFunction,
    Flag,
    Folder,
    Keywords,
    NameOrPatterns,
    Number,
    NumberForEachModel,
    Seed,
    limit_of,
)
from ccamerge.config.model import (
    DTYPES,
    METRICS,
    Architecture,
    Config,
    Ensemble,
    Evaluation,
    Pretrained,
)
from ccamerge.config.settings import TABLE, Settings, normalised
from ccamerge.config.yaml_nodes import MISSING, Loader, Node, NodeReader
from ccamerge.core.device import DEVICE_PATTERN

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
    "device",
)
_PARAMETERS = tuple(name for name in TABLE if name != "method")
_FACTORY = ("factory", "arguments")
_ARCHITECTURE = (*_FACTORY, "transformers", "trust_remote_code")
_MEASURED = ("metric", "better", "loss", "ensemble")


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file.

    Weights are normalised to sum to one; all models count equally if none has a weight. Relative
    paths are relative to the file's folder. Files it names are not opened, nothing is imported.

    Raises
    ------
    ConfigError
        With every problem found, each naming file, line and key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 text, so no YAML: {error}"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}:{_yaml_problem(error)}"]) from None
    return _Reader(path).read(root)


def parse_value(text: str) -> Any:
    """One value as a configuration would have it: 2 is a number, two a string.

    Raises
    ------
    ConfigError
        If it is no YAML.
    """
    try:
        return yaml.load(text, Loader=Loader)  # a subclass of the safe loader
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError([f"{text!r} is not a YAML value: {problem}"]) from None


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    text = ", ".join(str(p) for p in parts if p) or str(error).replace("\n", " ")
    if getattr(error, "context", None) == "while scanning an alias":
        text += '; a pattern that begins with * needs quotes: "*"'
    return f"{mark.line + 1 if mark else 1}: not valid YAML: {text}"


class _Reader(NodeReader):
    def read(self, root: Node | None) -> Config:
        if root is None:
            raise ConfigError([f"{self.path}:1: the file is empty"])
        top = self.mapping(root, "", _TOP)
        models, own_weights, overrides = self._models(top.get("models"), root)
        reference = self._reference(top.get("base_model"), models)
        architectures = self._architectures(top.get("architecture"), models, overrides)
        model = models[reference] if models else None
        data, _ = self._data(top.get("data"), "data", model)
        evaluation = self._evaluation(top.get("evaluation"), model)
        settings = self._settings(
            top.get("merge_method"), top.get("parameters"), len(models), own_weights
        )
        moments = self.file(top["moments"], "moments") if "moments" in top else None
        if "architecture" not in top and not (settings.plain and data is None and moments is None):
            self.report(root, "architecture", "missing; it says how to build the network")
        dtype = self.choice(top.get("dtype"), "dtype", DTYPES, None)
        device = self._device(top["device"]) if "device" in top else None
        if self.problems:
            ordered = sorted(self.problems, key=lambda p: p[0])
            raise ConfigError([f"{self.path}:{line}: {text}" for line, text in ordered])
        return Config(
            self.path,
            tuple(p for p in models if p is not None),
            reference,
            architectures,
            settings,
            data=data,
            evaluation=evaluation,
            moments=moments,
            dtype=dtype,
            device=device,
            lines=self.lines,
        )

    def _architectures(
        self,
        node: Node | None,
        models: list[Path | None],
        overrides: list[tuple[dict[str, Any], str]],
    ) -> tuple[Architecture, ...]:
        """What makes each model's network; nothing if that is not said, or wrong."""
        where = "architecture"
        entry = self.mapping(node, where, _ARCHITECTURE) if node is not None else {}
        if node is None or "transformers" not in entry:
            if "trust_remote_code" in entry:
                text = "is for transformers: auto, which is not given"
                self.report(entry["trust_remote_code"], f"{where}.trust_remote_code", text)
            factory = self._call(node, where, entry)
            return tuple(
                Factory(factory.path, {**factory.arguments, **own}, source) if own else factory
                for own, source in overrides
                if factory is not None
            )
        self.choice(entry["transformers"], f"{where}.transformers", ("auto",), None)
        for name in _FACTORY:
            if name in entry:
                text = "given beside transformers, which builds the network by itself"
                self.report(entry[name], f"{where}.{name}", text)
        for index, (own, _) in enumerate(overrides):
            if own:
                text = "are for a factory; transformers builds by the config.json in the folder"
                self.report(node, f"models[{index}].arguments", text)
        trusted = False
        if "trust_remote_code" in entry:
            trusted = bool(self.flag(entry["trust_remote_code"], f"{where}.trust_remote_code"))
        source = f"{self.path}:{entry['transformers'].start_mark.line + 1}: {where}"
        return tuple(Pretrained(path, trusted, source) for path in models if path is not None)

    def _device(self, node: Node) -> str | None:
        value = self.value(node, "device")
        if isinstance(value, str) and DEVICE_PATTERN.fullmatch(value):
            return value
        self.report(node, "device", f"expected cpu, cuda, cuda:N or auto, got {self.shown(node)}")
        return None

    # Models --------------------------------------------------------------------------------

    def _models(
        self, node: Node | None, root: Node
    ) -> tuple[list[Path | None], list[float | None], list[tuple[dict[str, Any], str]]]:
        """Paths (None for a wrong one), the models' own weights, if they have any, and arguments.

        With the arguments of a model's own goes what begins the messages of errors in them.
        """
        if node is None:
            self.report(root, "models", "missing; it lists the checkpoints to merge")
            return [], [], []
        if not isinstance(node, yaml.SequenceNode):
            self.report(node, "models", f"expected a list, got {self.shown(node)}")
            return [], [], []
        if len(node.value) < 2:
            self.report(node, "models", f"expected two models or more, got {len(node.value)}")
        paths: list[Path | None] = []
        weights: list[float | None] = []
        overrides: list[tuple[dict[str, Any], str]] = []
        bare: list[str] = []
        for index, item in enumerate(node.value):
            where = f"models[{index}]"
            entry = self.mapping(item, where, ("model", "parameters", "arguments"))
            if "model" not in entry and isinstance(item, yaml.MappingNode):
                self.report(item, f"{where}.model", "missing; it is the checkpoint's path")
            path = self.file(entry["model"], f"{where}.model") if "model" in entry else None
            if path is not None and path in paths:
                same = paths.index(path)
                text = f"the same file as models[{same}]; give it a larger weight instead"
                self.report(entry["model"], f"{where}.model", text)
            paths.append(path)
            given, inside = entry.get("arguments"), f"{where}.arguments"
            line = item.start_mark.line + 1 if given is None else given.start_mark.line + 1
            own = {} if given is None else self.names(given, inside)
            overrides.append((own, f"{self.path}:{line}: {inside}"))
            inner = entry.get("parameters")
            parameters = self.mapping(inner, f"{where}.parameters", ("weight",)) if inner else {}
            if "weight" in parameters:
                weights.append(self.number(parameters["weight"], f"{where}.parameters.weight"))
            else:
                bare.append(where)
        if weights and bare:
            text = f"some have a weight, but not {', '.join(bare)}; give all or none"
            self.report(node, "models", text)
        elif weights and not any(w is None or w > 0 for w in weights):
            self.report(node, "models", "all weights are zero; one at least must be larger")
        return paths, weights, overrides

    def _reference(self, node: Node | None, models: list[Path | None]) -> int:
        path = self.file(node, "base_model") if node is not None else None
        if path is None or path in models:
            return 0 if path is None else models.index(path)
        if None not in models and models:  # a broken entry may well be the one that is meant
            assert node is not None
            listed = [str(m) for m in models]
            names = {Path(m).name: m for m in listed}
            hint = did_you_mean(path.name, names)
            self.report(node, "base_model", f"{self.shown(node)} is not one of the models{hint}")
        return 0

    # How to merge --------------------------------------------------------------------------

    def _settings(
        self, method: Node | None, node: Node | None, count: int, own: list[float | None]
    ) -> Settings:
        entry = self.mapping(node, "parameters", _PARAMETERS) if node is not None else {}
        if method is not None:
            entry["method"] = method
        if "ridge" in entry and "gamma" in entry:
            text = "given beside ridge; ridge is relative to the features' variance, gamma absolute"
            self.report(entry["gamma"], TABLE["gamma"].where, text)
        if "weights" in entry and own:
            text = "the models have weights of their own; give one or the other"
            self.report(entry["weights"], TABLE["weights"].where, text)
        found = {name: self._setting(name, inner, count) for name, inner in entry.items()}
        weights = found.get("weights", own)
        if not isinstance(weights, dict):
            weights = _shares(weights, count)
        return Settings(**{**found, "weights": weights, "options": found.get("options") or None})

    def _setting(self, name: str, node: Node, count: int) -> Any:
        """What a node holds; what is wrong is reported, and any value comes in its place."""
        where, kind = TABLE[name].where, TABLE[name].kind
        match kind:
            case Choice():
                return self.choice(node, where, kind.words, None)
            case Flag():
                return self.flag(node, where)
            case Seed():
                return self.seed(node, where)
            case Keywords():
                return self.names(node, where)
            case NumberForEachModel():
                return self._weights(node, where, count)
            case NameOrPatterns():
                return self._names(node, where, kind)
            case Number():
                return self._number(node, where, kind)
            case ChoiceOrFunction():
                return self._function(node, where, kind.words)
            case Budget():
                return self._budget(node, where)
        raise AssertionError(name)

    def _names(self, node: Node, where: str, kind: NameOrPatterns) -> Any:
        def name(node: Node, where: str) -> str | None:
            value = self.value(node, where)
            if isinstance(value, str) and (value in kind.known or FACTORY_PATTERN.fullmatch(value)):
                return value
            hint = did_you_mean(str(value).lower(), kind.known)
            text = f'{", ".join(kind.known)}, or "package.module:function"'
            self.report(node, where, f"expected one of {text}; got {self.shown(node)}{hint}")
            return None

        if isinstance(node, yaml.MappingNode):
            return self.patterns(node, where, name)
        return name(node, where)

    def _number(self, node: Node, where: str, kind: Number) -> Any:
        def number(node: Node, where: str) -> float | None:
            return self.number(node, where, most=kind.most)

        if kind.patterns and isinstance(node, yaml.MappingNode):
            return self.patterns(node, where, number)
        if kind.word and isinstance(node, yaml.ScalarNode) and node.value == kind.word:
            return kind.word
        instead = f", {kind.word}" if kind.word else ""
        instead += " or a mapping of patterns to numbers" if kind.patterns else ""
        return self.number(node, where, most=kind.most, instead=instead)

    def _budget(self, node: Node, where: str) -> bool | str:
        value = self.value(node, where)
        if isinstance(value, bool) or (isinstance(value, str) and limit_of(value)):
            return value
        text = f'expected true, false, or such as "60s" or "5 epochs", got {self.shown(node)}'
        self.report(node, where, text)
        return False

    def _weights(self, node: Node, where: str, count: int) -> Any:
        """A list of numbers, or lists by patterns; None in the place of what is wrong."""
        if isinstance(node, yaml.MappingNode):
            return self.patterns(
                node, where, lambda inner, inside: self._weights_list(inner, inside, count)
            )
        if not isinstance(node, yaml.SequenceNode):
            text = "expected a list of numbers or a mapping of patterns to such lists"
            self.report(node, where, f"{text}, got {self.shown(node)}")
            return []
        return self._weights_list(node, where, count)

    def _weights_list(self, node: Node, where: str, count: int) -> list[float] | None:
        if not isinstance(node, yaml.SequenceNode):
            self.report(node, where, f"expected a list of numbers, got {self.shown(node)}")
            return None
        if len(node.value) != count:
            text = f"expected {count} numbers, one for each model, got {len(node.value)}"
            self.report(node, where, text)
        read = [self.number(item, f"{where}[{i}]") for i, item in enumerate(node.value)]
        numbers = [w for w in read if w is not None]
        if len(numbers) == len(read) == count and not any(numbers):
            self.report(node, where, "all weights are zero; one at least must be larger")
        return numbers

    # Functions -----------------------------------------------------------------------------

    def _factory(self, node: Node | None, where: str) -> Factory | None:
        entry = self.mapping(node, where, _FACTORY) if node is not None else {}
        return self._call(node, where, entry)

    def _call(
        self, node: Node | None, where: str, entry: dict[str, Node], instead: str = ""
    ) -> Factory | None:
        """The function of a mapping and its arguments."""
        if not isinstance(node, yaml.MappingNode):
            return None
        inner = entry.get("arguments")
        arguments = {} if inner is None else self.names(inner, f"{where}.arguments")
        if "factory" not in entry:
            text = f'missing; expected "package.module:function"{instead}'
            self.report(node, f"{where}.factory", text)
            return None
        path = self._function(entry["factory"], f"{where}.factory")
        line = entry["factory"].start_mark.line + 1
        return None if path is None else Factory(path, arguments, f"{self.path}:{line}: {where}")

    def _function(self, node: Node, where: str, names: tuple[str, ...] = ()) -> str | None:
        value = self.value(node, where)
        if isinstance(value, str) and (value in names or FACTORY_PATTERN.fullmatch(value)):
            return value
        known = f"{', '.join(names)} or " if names else ""
        hint = did_you_mean(str(value).lower(), names)
        text = f'expected {known}"package.module:function", got {self.shown(node)}{hint}'
        self.report(node, where, text)
        return None

    # Data ----------------------------------------------------------------------------------

    def _data(
        self, node: Node | None, where: str, model: Path | None, more: tuple[str, ...] = ()
    ) -> tuple[Factory | DataFiles | None, dict[str, Node]]:
        """A function or local files, and all that the mapping has; ``more`` are its other keys."""
        given = [k.value for k, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        keys = [key for key in TABLES if key in given]
        if len(keys) + ("factory" in given) > 1:
            both = [*keys, "factory"] if "factory" in given else keys
            assert node is not None
            self.report(node, where, f"has {' and '.join(both)}; give one of them")
            return None, {}
        if keys:
            known = tuple(name for name in TABLES[keys[0]] if more or name != "labels")
            assert node is not None
            entry = self.mapping(node, where, (keys[0], *known, *more))
            return self._files(node, where, entry, keys[0], model), entry
        known = _FACTORY if "factory" in given or not given else (*_FACTORY, *TABLES)
        entry = self.mapping(node, where, (*known, *more)) if node is not None else {}
        return self._call(node, where, entry, f", or local files: {', '.join(TABLES)}"), entry

    def _files(
        self, node: Node, where: str, entry: dict[str, Node], key: str, model: Path | None
    ) -> DataFiles | None:
        """Local files, and the settings that are given."""
        if key not in entry:  # it has no value, which is reported
            return None
        line = self.lines[f"{where}.{key}"]
        files: list[Path | None] = []
        if key == "text" and isinstance(entry[key], yaml.SequenceNode):
            inner = enumerate(entry[key].value)
            files += [self.file(item, f"{where}.{key}[{place}]") for place, item in inner]
            if not files:
                self.report(entry[key], f"{where}.{key}", "expected one file at least, got none")
        else:
            files.append(self.file(entry[key], f"{where}.{key}"))
        settings = {
            name: self._option(entry[name], f"{where}.{name}", name, key)
            for name in TABLES[key]
            if name in entry
        }
        labelled = where == "evaluation"
        if labelled and key == "arrays" and "labels" not in entry:
            self.report(node, f"{where}.labels", "missing; it is the array of the labels")
        found = tuple(str(file) for file in files if file is not None)
        source = f"{self.path}:{line}: {where}"
        return DataFiles(key, found, settings, model, labelled, source)

    def _option(self, node: Node, where: str, name: str, key: str) -> Any:
        """A setting of local files; what is wrong is reported."""
        kind = TABLES[key][name].kind
        if isinstance(kind, Folder):
            return self.file(node, where)
        value = self.value(node, where)
        if value is MISSING:
            return None
        try:
            return kind.check(value, name, 0)
        except (ValueError, TypeError) as error:
            self.report(node, where, str(error).removeprefix(f"{name} "))
            return None

    def _evaluation(self, node: Node | None, model: Path | None) -> Evaluation | None:
        where = "evaluation"
        data, entry = self._data(node, where, model, _MEASURED)
        if data is None:
            return None
        functions = {
            name: self._function(entry[name], f"{where}.{name}", tuple(METRICS))
            for name in ("metric", "loss")
            if name in entry
        }
        metric = functions.get("metric", "accuracy")
        better = self.choice(entry.get("better"), f"{where}.better", ("higher", "lower"), None)
        usual = METRICS.get(str(metric), "higher")
        if better is not None and metric in METRICS and better != usual:
            self.report(entry["better"], f"{where}.better", f"of {metric} {usual} is better")
        ensemble = self.choice(
            entry.get("ensemble"), f"{where}.ensemble", get_args(Ensemble), "probabilities"
        )
        return Evaluation(
            data,
            metric=metric or "accuracy",
            better=better or usual,
            loss=functions.get("loss") or "cross_entropy",
            ensemble=ensemble,
        )


def _shares(weights: list[float | None] | list[float] | None, count: int) -> tuple[float, ...]:
    """Weights that sum to one; equal ones if none are given, or if they are wrong and reported."""
    given = [w for w in weights or [] if w is not None]
    if len(given) != count or not any(given):
        given = [1.0] * count
    return normalised(given) if given else ()
