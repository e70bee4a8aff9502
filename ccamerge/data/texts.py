"""Sequences of tokens from text files."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.config.data_files import checked
from ccamerge.core import arguments
from ccamerge.data.documents import TEXT_KINDS, documents_of
from ccamerge.data.files import DataError, Paths, files_of
from ccamerge.data.local import LocalData, log
from ccamerge.data.sampling import sample
from ccamerge.data.tokenizing import Tokenizer

LENGTH, COUNT = 512, 256
"""What is usual: as many tokens as a few thousand images have pixels, and no more time."""

_CHARACTERS = 8
"""At most so many does a token stand for, in most texts; where it is more, they are read again."""

_TOGETHER = 64  # passages tokenized in one call

IGNORED = -100
"""The label of what has no next token."""


class Texts(LocalData):
    """Batches of token sequences from local text files, as ``{"input_ids": (n, length), ...}``.

    Documents are drawn by the seed, in a random order, each as likely as any other; a long one in
    passages of some sequences' length, which are drawn for themselves: a book does not fill all
    sequences. That takes one pass over the files, which are never read whole into memory; what is
    drawn is kept, as tokens.

    Parameters
    ----------
    files : a file, a folder, a pattern or several: JSON Lines (``.jsonl``, ``.ndjson``, ``.json``:
        an object a line), plain UTF-8 text (``.txt``, ``.text``, ``.md``: a file is one document),
        each also as ``.gz``, ``.xz`` or ``.bz2``; ``.parquet``
    tokenizer : the folder of a tokenizer or of a model with one, a ``tokenizer.json``, or a
        tokenizer of transformers
    field : of JSON Lines and Parquet, which has the text
    length : tokens of a sequence; default 512, or what the tokenizer or the model in its folder
        takes if that is less
    count : sequences; default 256, or as many as there are. If there are fewer than are asked for,
        a warning says how many.
    batch_size : sequences of a batch
    pack : True joins documents and cuts what comes of them into sequences, a token that ends a text
        between them if the tokenizer has one. So all tokens count, all sequences are equally long,
        and positions are used as in pretraining, which packs as well. False makes a sequence of
        each document, cut off at ``length``; shorter ones are filled up at their end to the
        longest, and ``attention_mask`` says which tokens count: for encoders of sentences, and
        wherever one document must not see another.
    seed : of the choice
    labels : whether batches have ``labels``, the next token at each position (-100: none), as
        `ccamerge.evaluate` wants them

    Raises
    ------
    DataError
        If files, the field or the tokenizer are not there, a line cannot be read, or there is not
        one whole sequence. What concerns the files' contents is raised when they are first needed.
    ImportError
        If transformers, or pyarrow for Parquet, is not installed.

    Examples
    --------
    ::

        data = ccamerge.data.Texts("corpus/*.jsonl", "runs/first", length=1024)
        result = ccamerge.merge(models, data)
    """

    def __init__(
        self,
        files: Paths | Sequence[Paths],
        tokenizer: Paths | Any,
        *,
        field: str | None = None,
        length: int | None = None,
        count: int | None = None,
        batch_size: int | None = None,
        pack: bool | None = None,
        seed: int | None = None,
        labels: bool = False,
    ) -> None:
        given = {"field": field, "length": length, "count": count, "batch_size": batch_size}
        settings = checked("text", {**given, "pack": pack, "seed": seed})
        settings["labels"] = arguments.flag(labels, "labels")
        found = files_of(files, "files", TEXT_KINDS)
        if any(path.name.lower().endswith(".parquet") for path in found):
            _need_pyarrow()
        self._tokenizer = Tokenizer(tokenizer)
        if length is None:
            settings["length"] = min(self._tokenizer.most() or LENGTH, LENGTH)
        settings["tokenizer"] = self._tokenizer.fingerprint
        super().__init__(found, settings)
        self._drawn: tuple[Tensor, Tensor] | None = None

    def check(self, model: nn.Module | None = None) -> None:
        """Draw the sequences, and compare them with what a model takes; see `LocalData`."""
        tokens, _ = self._sequences()
        if model is not None:
            self._tokenizer.check(model, int(tokens.max()), self.settings["length"])

    def _samples(self) -> int:
        return len(self._sequences()[0])

    def _batch(self, places: range) -> dict[str, Tensor]:
        tokens, lengths = (part[places.start : places.stop] for part in self._sequences())
        tokens = tokens.long()
        inputs = tokens[:, :-1] if self.settings["labels"] else tokens
        batch = {"input_ids": inputs}
        place = torch.arange(tokens.shape[1])
        if not self.settings["pack"]:
            batch["attention_mask"] = (place[: inputs.shape[1]] < lengths[:, None]).long()
        if self.settings["labels"]:
            known = place[1:] < lengths[:, None]
            batch["labels"] = tokens[:, 1:].where(known, IGNORED)
        return batch

    def _sequences(self) -> tuple[Tensor, Tensor]:
        """Tokens (count, width), int32, and how many of each sequence count; drawn once."""
        if self._drawn is None:
            # A label more than inputs, so that the last of these has one
            width = self.settings["length"] + self.settings["labels"]
            self._drawn = self._packed(width) if self.settings["pack"] else self._padded(width)
        return self._drawn

    def _packed(self, width: int) -> tuple[Tensor, Tensor]:
        count = self.settings["count"]
        wanted, characters = width * (count or COUNT), _CHARACTERS
        while True:
            passages, all_of_them = self._passages(wanted * characters, len, first=False)
            stream = self._stream(passages, wanted)
            if len(stream) >= wanted or all_of_them:
                break
            characters *= 2
        there = len(stream) // width
        if there == 0:
            message = (
                f"{self._names()}: {len(stream)} tokens in all, too few for one sequence of "
                f"{width}; give a smaller length, or pack: false"
            )
            raise DataError(message)
        if count is not None and there < count:
            self._fewer(count, there, f"{len(stream)} tokens")
        whole = torch.frombuffer(stream, dtype=torch.int32)[: there * width]
        return whole.view(there, width), torch.full((there,), width)

    def _stream(self, passages: Sequence[str], wanted: int) -> array[int]:
        """Tokens of passages, ends of text between them, until there are enough."""
        stream, end = array("i"), self._tokenizer.end
        for start in range(0, len(passages), _TOGETHER):
            for tokens in self._tokenizer.tokens(list(passages[start : start + _TOGETHER])):
                stream.extend(tokens)
                if tokens and end is not None and tokens[-1] != end:
                    stream.append(end)
            if len(stream) >= wanted:
                return stream[:wanted]
        return stream

    def _padded(self, width: int) -> tuple[Tensor, Tensor]:
        count = self.settings["count"]
        passages, _ = self._passages(count or COUNT, lambda _: 1, first=True)
        least = 1 + self.settings["labels"]  # a label is the token after an input
        found = self._tokenizer.tokens(passages, width) if passages else []
        rows = [row for row in found if len(row) >= least]
        if not rows:
            message = f"{self._names()}: no document has a text of {least} token or more"
            raise DataError(message)
        if count is not None and len(rows) < count:
            self._fewer(count, len(rows), f"{len(rows)} documents with text")
        lengths = torch.tensor([len(row) for row in rows])
        whole = torch.full((len(rows), int(lengths.max())), self._tokenizer.padding)
        for place, row in enumerate(rows):
            whole[place, : len(row)] = torch.tensor(row)
        return whole.int(), lengths

    def _passages(self, wanted: int, weight: Any, first: bool) -> tuple[list[str], bool]:
        size = _CHARACTERS * self.settings["length"]
        documents = (
            document
            for path in self.files
            for document in documents_of(path, self.settings["field"], size)
        )
        return sample(documents, wanted, weight, random.Random(self.settings["seed"]), first)

    def _fewer(self, wanted: int, there: int, because: str) -> None:
        text = "%s: %s, so there are %d sequences of the %d that were asked for"
        log.warning(text, self._names(), because, there, wanted)

    def _names(self) -> str:
        more = f" and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def _need_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        message = f"Parquet is read by pyarrow: pip install 'ccamerge[data]' ({error})"
        raise ImportError(message) from error
