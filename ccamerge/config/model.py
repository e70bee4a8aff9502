"""The YAML that says what to merge: read, checked line by line, written back."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn

from ccamerge.config.settings import Settings

METHODS = ("cca", "permutation", "procrustes", "average", "weight_matching", "ot", "zipit")
DTYPES = ("float32", "float64", "float16", "bfloat16")
METRICS = {"accuracy": "higher", "cross_entropy": "lower"}
"""Functions of `ccamerge.evaluation.metrics`, and which values are better."""

Ensemble = Literal["probabilities", "outputs", "none"]


class ConfigError(ValueError):
    """A configuration is wrong; ``problems`` has one "file:line: where: what" an entry."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclasses.dataclass(frozen=True)
class Factory:
    """A function to be imported, "package.module:name", and the arguments to call it with.

    ``source`` ("merge.yml:9: data") begins the messages of its errors.
    """

    path: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = dataclasses.field(default="", compare=False)

    def load(self) -> Callable[..., Any]:
        """Import the function and check that it takes the arguments, without calling it.

        Raises
        ------
        ConfigError
            See `import_function`.
        """
        return import_function(self.path, self.source, **self.arguments)

    def __call__(self) -> Any:
        """Import the function and call it.

        Raises
        ------
        ConfigError
            As `load`, or if the function itself fails.
        """
        function = self.load()
        with current_folder_importable():
            try:
                return function(**self.arguments)
            except Exception as error:  # the user's code can raise anything
                _fail(self.source, f"{self.path} failed: {_describe(error)}", error)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Labelled batches, and what to measure on them.

    ``metric`` and ``loss`` are names in `METRICS` or "package.module:function" (see
    `ccamerge.evaluate`); ``better`` are the "higher" or the "lower" values of the metric.
    ``ensemble`` says what of the models is averaged.
    """

    data: Factory
    metric: str = "accuracy"
    better: str = "higher"
    loss: str = "cross_entropy"
    ensemble: Ensemble = "probabilities"


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration. Paths are absolute, weights that are not by patterns sum to one.

    ``reference`` is the index of ``base_model`` among ``models``; ``architectures`` make a network
    for each of them. ``dtype`` None keeps the models', ``device`` None is the CPU.
    """

    source: Path
    models: tuple[Path, ...]
    reference: int
    architectures: tuple[Factory, ...]
    settings: Settings = Settings()  # noqa: RUF009 it is frozen
    data: Factory | None = None
    evaluation: Evaluation | None = None
    moments: Path | None = None
    dtype: str | None = None
    device: str | None = None
    lines: Mapping[str, int] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def architecture(self) -> Factory:
        """The reference's, and so that of what is merged."""
        return self.architectures[self.reference]

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

        def factory(value: Factory) -> dict[str, Any]:
            arguments = {"arguments": plain(value.arguments)} if value.arguments else {}
            return {"factory": value.path, **arguments}

        settings = {name: plain(value) for name, value in vars(self.settings).items()}
        method, weights = settings.pop("method"), settings.pop("weights")
        shared = {
            name: value
            for name, value in self.architecture.arguments.items()
            if all(name in a.arguments and a.arguments[name] == value for a in self.architectures)
        }
        models: list[dict[str, Any]] = []
        for path, made in zip(self.models, self.architectures, strict=True):
            own = {k: plain(v) for k, v in made.arguments.items() if k not in shared}
            models.append({"model": shown(path), **({"arguments": own} if own else {})})
        if isinstance(weights, dict):
            settings["weights"] = weights
        else:
            for entry, weight in zip(models, weights or [], strict=False):
                entry["parameters"] = {"weight": weight}
        content: dict[str, Any] = {
            "merge_method": method,
            "base_model": shown(self.models[self.reference]),
            "models": models,
            "architecture": factory(Factory(self.architecture.path, shared)),
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

    def to_yaml(self, relative_to: Path | None = None) -> str:
        """YAML that `load_config` reads as the same configuration from a file in that folder."""
        import yaml

        return yaml.safe_dump(self.to_dict(relative_to), sort_keys=False, allow_unicode=True)


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file.

    Weights are normalised to sum to one; all models count equally if none has a weight. Relative
    paths are relative to the file's folder. Files it names are not opened, nothing is imported.

    Raises
    ------
    ConfigError
        With every problem found, each naming file, line and key.
    """
    from ccamerge.config.reader import read  # PyYAML is imported when it is needed

    return read(Path(path))


def parse_value(text: str) -> Any:
    """One value as a configuration would have it: 2 is a number, two a string.

    Raises
    ------
    ConfigError
        If it is no YAML.
    """
    from ccamerge.config.reader import parse_text

    return parse_text(text)


FACTORY_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def import_function(path: str, source: str, /, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Import "package.module:name" and check that it takes the arguments, without calling it.

    Parameters
    ----------
    path : of the function; modules in the current folder are found, too
    source : with which messages begin, such as "merge.yml:9: data"
    args, kwargs : that it will be called with; only how many and their names matter

    Raises
    ------
    ConfigError
        If there is no such module or name, it cannot be called, or not with these arguments.
    """
    module_name, _, attribute = path.partition(":")
    with current_folder_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            package = str(error.name)
            if module_name == package or module_name.startswith(f"{package}."):
                what = (
                    f"there is no module {package!r} (searched: installed packages and the "
                    f"current folder {Path.cwd()})"
                )
                _fail(source, what, error)
            _fail(source, f"importing {module_name} failed: {error}", error)
        except Exception as error:  # the module's own code can raise anything
            _fail(source, f"importing {module_name} failed: {_describe(error)}", error)
    for name in attribute.split("."):
        if not hasattr(found, name):
            owner = getattr(found, "__name__", module_name)
            _fail(source, f"{owner} has no {name!r}" + did_you_mean(name, dir(found)))
        found = getattr(found, name)
    if not callable(found):
        _fail(source, f"{path} is a {type(found).__name__}, expected a function")
    try:
        signature = inspect.signature(found)
    except (ValueError, TypeError):  # written in C: the call itself will tell
        return found  # type: ignore[no-any-return]
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        _fail(source, f"{path}{signature} cannot be called so: {error}", error)
    return found  # type: ignore[no-any-return]


def _fail(source: str, what: str, cause: BaseException | None = None) -> NoReturn:
    raise ConfigError([f"{source}: {what}" if source else what]) from cause


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Let a user's modules in the current folder be imported; nothing else changes.

    Processes that are started meanwhile, such as a DataLoader's workers, can import them, too.
    """
    try:
        folder = str(Path.cwd())
    except OSError:  # it has been removed
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def did_you_mean(word: str, known: Iterable[Any]) -> str:
    """Return the end of a message about an unknown word."""
    close = get_close_matches(word, [k for k in known if isinstance(k, str)], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
