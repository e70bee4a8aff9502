"""What a configuration holds, once it is read and checked, and as YAML again."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from ccamerge.config.data_files import DataFiles
from ccamerge.config.importing import ConfigError, Factory
from ccamerge.config.settings import Settings

DTYPES = ("float32", "float64", "float16", "bfloat16")
METRICS = {"accuracy": "higher", "cross_entropy": "lower"}
"""Functions of `ccamerge.evaluation.metrics`, and which values are better."""

Ensemble = Literal["probabilities", "outputs", "none"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Labelled batches, and what to measure on them.

    ``metric`` and ``loss`` are names in `METRICS` or "package.module:function" (see
    `ccamerge.evaluate`); ``better`` are the "higher" or the "lower" values of the metric.
    ``ensemble`` says what of the models is averaged.
    """

    data: Factory | DataFiles
    metric: str = "accuracy"
    better: str = "higher"
    loss: str = "cross_entropy"
    ensemble: Ensemble = "probabilities"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network that transformers builds by the ``config.json`` in a checkpoint's folder.

    ``trust_remote_code`` lets code that the folder brings run. ``source`` ("merge.yml:9:
    architecture") begins the messages of its errors.
    """

    folder: Path
    trust_remote_code: bool = False
    source: str = dataclasses.field(default="", compare=False)

    def load(self) -> None:
        """Raise ConfigError unless transformers is there; it is not imported yet."""
        if importlib.util.find_spec("transformers") is None:
            text = "transformers is not installed: pip install 'ccamerge[transformers]'"
            raise ConfigError([f"{self.source}: {text}"])


Architecture = Factory | Pretrained
"""What makes a network."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration. Paths are absolute, weights that are not by patterns sum to one.

    ``reference`` is the index of ``base_model`` among ``models``; ``architectures`` make a network
    for each of them, or there are none, if it is `plain`. ``dtype`` None keeps the models',
    ``device`` None is the CPU.
    """

    source: Path
    models: tuple[Path, ...]
    reference: int
    architectures: tuple[Architecture, ...]
    settings: Settings = Settings()  # noqa: RUF009 it is frozen
    data: Factory | DataFiles | None = None
    evaluation: Evaluation | None = None
    moments: Path | None = None
    dtype: str | None = None
    device: str | None = None
    lines: Mapping[str, int] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def architecture(self) -> Architecture:
        """The reference's, and so that of what is merged; ConfigError if it is not said."""
        if not self.architectures:
            self.fail("architecture", "missing; it says how to build the network")
        return self.architectures[self.reference]

    @property
    def plain(self) -> bool:
        """Whether it asks for the average of the parameters as they stand in the files, alone.

        With data there is more to it: how far the average is from the models' ensemble.
        """
        return self.data is None and self.moments is None and self.settings.plain

    def problem(self, where: str, what: str) -> str:
        """Say that something is wrong with a part ("models[1].model"), with its file and line."""
        return f"{self.place(where)}: {what}"

    def place(self, where: str) -> str:
        """File, line and name of a part, with which messages about it begin."""
        line = self.lines.get(where, self.lines.get(where.split(".")[0], 1))
        return f"{self.source}:{line}: {where}"

    def fail(self, where: str, what: str) -> NoReturn:
        """Raise the error that `problem` words."""
        raise ConfigError([self.problem(where, what)])

    def to_dict(self, relative_to: Path | None = None) -> dict[str, Any]:
        """As in the YAML file; paths relative to a folder (default: the file's own)."""
        folder = self.source.parent if relative_to is None else relative_to

        def shown(path: Path) -> str:
            return Path(os.path.relpath(path, folder)).as_posix()

        def plain(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: plain(v) for k, v in value.items()}
            return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

        def factory(value: Factory | DataFiles) -> dict[str, Any]:
            if isinstance(value, DataFiles):
                files = [shown(Path(file)) for file in value.files]
                own = {
                    k: shown(v) if isinstance(v, Path) else plain(v)
                    for k, v in value.settings.items()
                }
                return {value.key: files if len(files) > 1 else files[0], **own}
            arguments = {"arguments": plain(value.arguments)} if value.arguments else {}
            return {"factory": value.path, **arguments}

        settings = {name: plain(value) for name, value in vars(self.settings).items()}
        method, weights = settings.pop("method"), settings.pop("weights")
        architecture, arguments = self._architecture()
        shape = {"architecture": plain(architecture)} if architecture else {}
        models: list[dict[str, Any]] = []
        for path, own in zip(self.models, arguments, strict=True):
            models.append({"model": shown(path), **({"arguments": plain(own)} if own else {})})
        if isinstance(weights, dict):
            settings["weights"] = weights
        else:
            for entry, weight in zip(models, weights or [], strict=False):
                entry["parameters"] = {"weight": weight}
        content: dict[str, Any] = {
            "merge_method": method,
            "base_model": shown(self.models[self.reference]),
            "models": models,
            **shape,
        }
        if self.data is not None:
            content["data"] = factory(self.data)
        if self.evaluation is not None:
            usual = Evaluation(self.evaluation.data)
            others = {k: v for k, v in vars(self.evaluation).items() if v != getattr(usual, k)}
            content["evaluation"] = {**factory(self.evaluation.data), **others}
        content["parameters"] = {k: v for k, v in settings.items() if v is not None}
        if self.moments is not None:
            content["moments"] = shown(self.moments)
        if self.dtype is not None:
            content["dtype"] = self.dtype
        if self.device is not None:
            content["device"] = self.device
        return content

    def _architecture(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What makes the networks, and the arguments of each model's own."""
        if not self.architectures:
            return {}, [{} for _ in self.models]
        one = self.architecture
        if isinstance(one, Pretrained):
            trusted = {"trust_remote_code": True} if one.trust_remote_code else {}
            return {"transformers": "auto", **trusted}, [{} for _ in self.models]
        every = [a.arguments for a in self.architectures if isinstance(a, Factory)]
        shared = {
            name: value
            for name, value in one.arguments.items()
            if all(name in own and own[name] == value for own in every)
        }
        arguments = {"arguments": shared} if shared else {}
        return (
            {"factory": one.path, **arguments},
            [{k: v for k, v in own.items() if k not in shared} for own in every],
        )

    def to_yaml(self, relative_to: Path | None = None) -> str:
        """YAML that `load_config` reads as the same configuration from a file in that folder."""
        import yaml

        return yaml.safe_dump(self.to_dict(relative_to), sort_keys=False, allow_unicode=True)
