"""Tokenizers from local folders, and how many tokens the models beside them take."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from ccamerge.core import arguments
from ccamerge.data.files import DataError, Paths, fingerprint_of

_FILES = ("tokenizer*.json", "*.model", "vocab.*", "merges.txt", "*.tiktoken")
"""Names in a folder that has a tokenizer."""

_ENDLESS = 10**9
"""Where a tokenizer says more, it means that it does not know."""


class Tokenizer:
    """A tokenizer of transformers.

    Parameters
    ----------
    given : a folder that `save_pretrained` wrote, a ``tokenizer.json``, or a tokenizer

    Raises
    ------
    DataError
        If there is none, or it cannot be loaded.
    ImportError
        If it is a path and transformers is not installed.
    """

    def __init__(self, given: Paths | Any) -> None:
        self.folder: Path | None = None
        self.fingerprint: dict[str, Any] = {"class": type(given).__name__}
        if isinstance(given, (str, os.PathLike)):
            path = arguments.path(given, "tokenizer").expanduser()
            self._own, files = _loaded(path)
            self.folder = path if path.is_dir() else path.parent
            self.fingerprint = fingerprint_of(files)
            self.name = str(path)
        elif callable(given) and hasattr(given, "convert_ids_to_tokens"):
            self._own, self.name = given, type(given).__name__
            self.fingerprint["tokens"] = len(given)
        else:
            expected = "a folder, a tokenizer.json or a tokenizer of transformers"
            message = str(arguments.wrong("tokenizer", expected, given))
            raise TypeError(message)

    @property
    def end(self) -> int | None:
        """The token that ends a text, if it has one."""
        found: int | None = self._own.eos_token_id
        return found

    @property
    def padding(self) -> int:
        """A token to fill sequences up with, which a mask leaves out: any will do."""
        own = self._own.pad_token_id
        return next((token for token in (own, self.end) if token is not None), 0)

    def tokens(self, texts: list[str], most: int | None = None) -> list[list[int]]:
        """The tokens of texts, with those that the tokenizer puts around each; ``most`` of each."""
        short = {} if most is None else {"truncation": True, "max_length": most}
        found: list[list[int]] = self._own(texts, verbose=False, **short)["input_ids"]
        return found

    def most(self) -> int | None:
        """How many tokens the tokenizer, or the model in its folder, takes; None if none says."""
        said = [self._own.model_max_length, _positions(self.folder)]
        return min((n for n in said if n is not None and n < _ENDLESS), default=None)

    def check(self, model: nn.Module, largest: int, length: int) -> None:
        """Raise DataError unless a model takes all tokens, and sequences of this length."""
        rows = _embedding(model)
        if rows is not None and (self._own.vocab_size > rows or largest >= rows):
            token = self._own.convert_ids_to_tokens(largest)
            message = (
                f"tokenizer {self.name}: it knows {len(self._own)} tokens (the data has {token!r}, "
                f"number {largest}), but the model's embedding {rows}: is it another model's?"
            )
            raise DataError(message)
        most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if isinstance(most, int) and 0 < most < length:
            message = f"length must be at most {most}, which is what the model takes; got {length}"
            raise DataError(message)


def _loaded(path: Path) -> tuple[Any, list[Path]]:
    """The tokenizer at a path, and its files."""
    if not path.exists():
        message = f"tokenizer: no such folder {path} (it is read from local files, never a hub)"
        raise DataError(message)
    files = [path]
    if path.is_dir():
        files = sorted({file for pattern in _FILES for file in path.glob(pattern)})
        if not files:  # transformers would make an empty one of some classes
            message = (
                f"tokenizer: there is none in {path}: expected tokenizer.json, tokenizer.model, "
                "vocab.json or the like; give the folder of another as tokenizer"
            )
            raise DataError(message)
    try:
        import transformers
    except ImportError as error:
        message = (
            f"tokenizers are read by transformers: pip install 'ccamerge[transformers]' ({error})"
        )
        raise ImportError(message) from error
    try:
        if path.is_dir():
            auto: Any = transformers.AutoTokenizer
            never = {"local_files_only": True, "trust_remote_code": False}
            return auto.from_pretrained(path, **never), files
        fast: Any = transformers.PreTrainedTokenizerFast
        return fast(tokenizer_file=str(path)), files
    except Exception as error:  # the formats are many, and so are their errors
        text = str(error).strip().split("\n")[0]
        message = f"tokenizer {path}: cannot be loaded: {type(error).__name__}: {text}"
        raise DataError(message) from error


def _positions(folder: Path | None) -> int | None:
    """How many positions a model has, by the ``config.json`` in its folder."""
    try:
        content = json.loads((folder / "config.json").read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return None
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(content, dict) and isinstance(found := content.get(name), int) and found > 0:
            return found
    return None


def _embedding(model: nn.Module) -> int | None:
    """How many tokens a model of transformers has vectors for."""
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
        return int(found.weight.shape[0])
    except (AttributeError, NotImplementedError, TypeError):
        return None
