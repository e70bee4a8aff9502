"""Functions that a configuration names, "package.module:name", and errors that say where."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

FACTORY_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


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
