"""What a folder of transformers holds beside parameters, carried along into another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccamerge.checkpoints.files import FOLDER_FILES, CheckpointError
from ccamerge.checkpoints.pretrained import CONFIG, config_of

CARRIED = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("tokenizer.model.v3", "tekken.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "source.spm", "target.spm"),
    *("sentencepiece*.model", "*.tiktoken", "chat_template.jinja", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("LICENSE*", "NOTICE*"),
)
"""Files of tokenizers, processors and generation, and licences: data that are read, not run."""

CODE = ("*.py",)
"""Carried along where the folder's code is trusted."""

_DTYPE = ("dtype", "torch_dtype")
"""What configurations call the dtype of parameters, the newer name first."""


def carried(names: Iterable[str], *, code: bool = False) -> list[str]:
    """Those of some files' names that are carried along."""
    patterns = CARRIED + CODE * code
    return sorted(n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns))


def hub_folder(path: Path) -> Path | None:
    """The folder that a checkpoint is, or is the parameters of, if it is one of transformers.

    A folder that is none may have a ``config.json``, too, which is nobody's business.
    """
    folder = path.parent if path.name in FOLDER_FILES else path
    try:
        config_of(folder)
    except CheckpointError:
        return None
    return folder


def carry(
    base: Path, into: Path, written: Mapping[str, Tensor], *, untied: bool, code: bool = False
) -> None:
    """Copy what belongs to a folder's parameters, with a configuration that fits what was written.

    Parameters
    ----------
    base, into : folders
    written : the parameters in ``into``, or tensors on the meta device like them; where all are of
        one dtype, the configuration says it
    untied : whether a head that the configuration ties has got a weight of its own
    code : whether the folder's code is trusted
    """
    for name in carried((p.name for p in base.iterdir() if p.is_file()), code=code):
        shutil.copyfile(base / name, into / name)
    content = json.loads((base / CONFIG).read_text(encoding="utf-8"))
    dtypes = {value.dtype for value in written.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        _say_dtype(content, dtypes.pop())
    if untied:
        _say_untied(content)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (into / CONFIG).write_text(text, encoding="utf-8")


def _say_dtype(content: dict[str, Any], dtype: torch.dtype) -> None:
    """Let a configuration, and those of parts in it, say a dtype where they say one."""
    name = str(dtype).removeprefix("torch.")
    for part in _parts(content):
        for key in _DTYPE:
            if isinstance(part.get(key), str):
                part[key] = name
    if not any(key in content for key in _DTYPE):
        content[_DTYPE[0]] = name


def _say_untied(content: dict[str, Any]) -> None:
    for part in _parts(content):
        if part is content or "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = False


def _parts(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A configuration and those of parts in it."""
    inner = [
        part for value in content.values() if isinstance(value, dict) for part in _parts(value)
    ]
    return [content, *inner]
