"""Folders of transformers: the network that a ``config.json`` describes, and its parameters.

Nothing here asks a network for anything. Code that a folder brings runs only where it is trusted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.checkpoints.files import CheckpointError
from ccamerge.checkpoints.reading import load_shapes
from ccamerge.checkpoints.ties import tied_pairs, written
from ccamerge.checkpoints.wrappings import shorten

CONFIG = "config.json"

_AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModel",
)
"""What a configuration that names no class is built by: the first that knows its kind."""


def config_of(folder: Path) -> dict[str, Any]:
    """What a folder's ``config.json`` holds.

    Raises
    ------
    CheckpointError
        If it is no folder, or there is no such file in it that can be read.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "no such folder"
        message = f"{folder}: {what}; transformers builds a network from a folder with {CONFIG}"
        raise CheckpointError(message)
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"{folder}: has no {CONFIG}, which says what network to build"
        raise CheckpointError(message) from None
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read: {error}"
        raise CheckpointError(message) from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        message = f"{path}: names no model_type, so transformers cannot build a network by it"
        raise CheckpointError(message)
    return content


def load(
    folder: Path, *, trust_remote_code: bool = False, dtype: torch.dtype | None = None
) -> nn.Module:
    """The network in a folder, in evaluation mode, with exactly the folder's parameters.

    It is made without memory of its own, and takes each tensor as it is read.

    Parameters
    ----------
    folder : with ``config.json`` and the parameters in safetensors files
    trust_remote_code : whether code that the folder brings may run
    dtype : of its floating-point parameters; default: the widest in the folder's files

    Raises
    ------
    CheckpointError
        As `config_of`, or if transformers does not know such a network, or it and the files do not
        fit.
    """
    kind, config = _class_of(folder, trust_remote_code)
    dtype = widest(load_shapes(folder)) if dtype is None else dtype
    try:
        with _without_bars():
            found: dict[str, Any]
            model: nn.Module
            model, found = kind.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                output_loading_info=True,
            )
    except Exception as error:  # transformers', and the code in the folder, can raise anything
        message = f"{folder}: transformers cannot load it as {kind.__name__}: {error}"
        raise CheckpointError(message) from error
    problems = [
        f"{title} {shorten(sorted(map(str, found[key])))}"
        for title, key in (("missing:", "missing_keys"), ("unexpected:", "unexpected_keys"))
        if found[key]
    ]
    if problems:
        message = f"{folder}: does not fit {type(model).__name__}: {'; '.join(problems)}"
        raise CheckpointError(message)
    return model.eval()


def check(folder: Path, *, trust_remote_code: bool = False) -> dict[str, Tensor]:
    """Check as `load` what can be checked without reading values.

    Returns
    -------
    As `ccamerge.checkpoints.reading.load_shapes`.

    Raises
    ------
    CheckpointError
        As `load`; names are left to it, since transformers loads from older names, too.
    """
    kind, config = _class_of(folder, trust_remote_code)
    shapes = load_shapes(folder)
    make = getattr(kind, "_from_config", None) or kind.from_config  # the latter is Auto's
    trusted = {"trust_remote_code": trust_remote_code} if hasattr(kind, "from_config") else {}
    try:
        with torch.device("meta"):
            own = make(config, **trusted).state_dict()
    except Exception as error:
        message = f"{folder}: transformers cannot build {kind.__name__} by {CONFIG}: {error}"
        raise CheckpointError(message) from error
    wrong = [
        f"{key} has shape {tuple(shapes[key].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key in shapes and shapes[key].shape != value.shape
    ]
    if wrong:
        message = f"{folder}: does not fit its {CONFIG}: wrong shape: {shorten(wrong)}"
        raise CheckpointError(message)
    return shapes


def as_filed(
    model: nn.Module, state: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, Tensor]:
    """A network's state as its folder's files have it: under their names, in their order.

    Of tensors that share memory those are left out that the files leave out.

    Parameters
    ----------
    model : whose state it is; one of transformers may have other names than its files
    state : tensors by the model's names
    names : in the files; a state has more where a head that was tied has a weight of its own
    """
    own: Any = model
    if not set(names) <= state.keys() and hasattr(own, "all_tied_weights_keys"):
        from transformers.core_model_loading import revert_weight_conversion

        tied = {name for pair in tied_pairs(state, state) for name in pair}
        twice = tied & set(own.all_tied_weights_keys)
        once = {key: value for key, value in state.items() if key not in twice}
        state = revert_weight_conversion(own, once)
    kept = [name for name in names if name in state]
    there = written(state, set(kept))
    return {name: state[name] for name in (*kept, *(k for k in state if k not in there))}


def widest(shapes: Mapping[str, Tensor]) -> torch.dtype:
    """The floating-point dtype that holds all of those in a checkpoint; float32 without any."""
    found: torch.dtype | None = None
    for value in shapes.values():
        if value.is_floating_point():
            found = value.dtype if found is None else torch.promote_types(found, value.dtype)
    return torch.float32 if found is None else found


def check_not_quantised(path: Path) -> None:
    """Raise CheckpointError for a folder whose parameters are codes of numbers."""
    if not (path / CONFIG).is_file():
        return
    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path / CONFIG}: cannot be read: {error}"
        raise CheckpointError(message) from error
    if isinstance(content, dict) and content.get("quantization_config") is not None:
        message = (
            f"{path}: its parameters are quantised ({CONFIG} has a quantization_config): merge "
            "the models before they are quantised, or dequantise them"
        )
        raise CheckpointError(message)


def _class_of(folder: Path, trusted: bool) -> tuple[Any, Any]:
    """The class of a folder's network and its configuration."""
    content = config_of(folder)
    check_not_quantised(folder)
    transformers = _transformers()
    own = content.get("auto_map") or {}
    known = content["model_type"] in transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if not known and not (own and trusted):
        why = (
            "it brings code of its own for that, which runs only with trust_remote_code: true "
            "beside transformers: auto"
            if own
            else f"transformers {transformers.__version__} does not know it"
        )
        message = f"{folder}: is of model_type {content['model_type']!r}; {why}"
        raise CheckpointError(message)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trusted
        )
    except Exception as error:  # a configuration can hold anything
        message = f"{folder / CONFIG}: transformers cannot read it: {error}"
        raise CheckpointError(message) from error
    named = content.get("architectures") or []
    for name in named:
        if isinstance(found := getattr(transformers, str(name), None), type):
            return found, config
    if own and trusted:
        for auto in _AUTO:
            if auto in own:
                return getattr(transformers, auto), config
    if named:
        message = f"{folder / CONFIG}: transformers has no {shorten([str(n) for n in named])}"
        raise CheckpointError(message)
    for auto in _AUTO:
        if type(config) in (found := getattr(transformers, auto))._model_mapping:
            return found, config
    message = f"{folder / CONFIG}: names no architectures, and none is known for it"
    raise CheckpointError(message)


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        message = "folders of transformers need it: pip install 'ccamerge[transformers]'"
        raise ImportError(message) from error
    return transformers


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Let transformers show no progress bars of its own."""
    logging = _transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
