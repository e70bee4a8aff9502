"""Data from local files, as a configuration names them, without torch: `ccamerge.data` reads them.

Here alone stand the names, kinds and defaults of their settings. `TABLES` has them by the key that
names the files: the classes of `ccamerge.data` check their arguments by it, the reader its keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccamerge.config.importing import ConfigError, import_function
from ccamerge.config.kinds import Count, Flag, Folder, Kind, Lengths, Name, Seed
from ccamerge.config.kinds import NumberForEachChannel as Channels


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting of such data: what it may be, and what it is if it is not given.

    ``None`` as a default stands for what the class itself says there.
    """

    kind: Kind
    default: Any = None


TABLES: dict[str, dict[str, Option]] = {
    "text": {
        "field": Option(Name(), "text"),
        "tokenizer": Option(Folder()),
        "length": Option(Count()),
        "count": Option(Count()),
        "batch_size": Option(Count(), 8),
        "pack": Option(Flag(), True),
        "seed": Option(Seed(), 0),
    },
    "images": {
        "processor": Option(Folder()),
        "size": Option(Lengths()),
        "mean": Option(Channels()),
        "std": Option(Channels(positive=True)),
        "count": Option(Count()),
        "batch_size": Option(Count(), 64),
        "seed": Option(Seed(), 0),
    },
    "arrays": {
        "key": Option(Name(several=True)),
        "labels": Option(Name()),
        "count": Option(Count()),
        "batch_size": Option(Count(), 64),
        "seed": Option(Seed(), 0),
    },
}

CLASSES = {"text": "Texts", "images": "Images", "arrays": "Arrays"}
"""Of `ccamerge.data`, by the key that names their files."""

_FOLDERS = {"text": "tokenizer", "images": "processor"}
"""Which setting is a model's folder, by default that of ``base_model``."""


def checked(key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a table with what is given in place of their defaults.

    Raises
    ------
    ValueError, TypeError
        For what one cannot be; the message names it.
    """
    return {
        name: option.default if given.get(name) is None else option.kind.check(given[name], name, 0)
        for name, option in TABLES[key].items()
    }


@dataclasses.dataclass(frozen=True)
class DataFiles:
    """Batches from local files, as a configuration asks for them.

    Attributes
    ----------
    key : "text", "images" or "arrays"
    files : absolute paths and patterns
    settings : those that are given; paths are absolute
    model : ``base_model``: its folder may have a tokenizer, or say how images are prepared
    labelled : whether batches have labels, as an evaluation needs them
    source : with which messages begin ("merge.yml:9: data")
    """

    key: str
    files: tuple[str, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: Path | None = dataclasses.field(default=None, compare=False)
    labelled: bool = False
    source: str = dataclasses.field(default="", compare=False)

    @property
    def path(self) -> str:
        """What messages call it."""
        return ", ".join(self.files)

    def load(self) -> None:
        """Check that there are such files, and the packages to read them; nothing is read.

        Raises
        ------
        ConfigError
            If there are not.
        """
        self()

    def __call__(self) -> Any:
        """An object of `ccamerge.data`, which reads the files when batches are asked for.

        Raises
        ------
        ConfigError
            As `load`.
        """
        arguments = dict(self.settings)
        if self.key in _FOLDERS and self.model is not None:
            folder = self.model if self.model.is_dir() else self.model.parent
            arguments.setdefault(_FOLDERS[self.key], folder)
        if self.key != "arrays":
            arguments["labels"] = self.labelled
        files = list(self.files) if self.key == "text" else self.files[0]
        path = f"ccamerge.data:{CLASSES[self.key]}"
        made = import_function(path, self.source, files, **arguments)
        with self._told():
            return made(files, **arguments)

    def check(self, made: Any, model: Any) -> None:
        """Read what is needed to know that there are batches, and that a network takes them.

        Parameters
        ----------
        made : what calling this has returned
        model : the network

        Raises
        ------
        ConfigError
            If there are none, or it does not.
        """
        with self._told():
            made.check(model)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors within say where the configuration has the data."""
        try:
            yield
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise ConfigError([f"{self.source}: {error}"]) from error
