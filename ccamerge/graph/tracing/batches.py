"""What a batch of calibration data may look like, and bringing one to where a model is."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge.core.device import moved_tensor

LABELS = ("labels", "label", "label_ids")
"""Keys of a batch that hold the answer; passed to a model only if it cannot do without."""


def split_batch(batch: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword inputs of a model in a batch; labels are left out.

    Where a batch can be read in several ways, the number of positional arguments that
    ``model.forward`` cannot do without decides.

    Parameters
    ----------
    batch : one of

        - a tensor: the one input;
        - keyword inputs by name: a mapping, or a dataclass or named tuple whose fields
          ``model.forward`` takes. Labels and what it does not take are left out. If it cannot do
          without one argument that is not among them, the whole is that argument;
        - a tuple or list ``(inputs, ...)`` of which the first item counts, itself any of these or a
          tuple or list of positional inputs, as torch's default collation makes them
          (``[[x, y], labels]``); if it has another length than the arguments that forward takes,
          and one would do, it is that argument;
        - a tuple or list ``(x, y, ...)`` for a model that cannot do without two or more positional
          arguments: so many of the items count.

        Inputs may be tensors, None, numbers and strings, and tuples, lists, dicts, named tuples and
        dataclasses of them, nested. Other mappings become dicts.
    model : the module the batch is for

    Raises
    ------
    TypeError
        If the batch is none of these, or does not have what the model cannot do without.
    """
    forward = _Forward.of(model)
    found = _call(batch, forward, whole=False)
    if found is None:
        message = (
            "a batch must be a tensor, a tuple or list whose first item is the input, or keyword "
            f"inputs in a dict or dataclass; got {type(batch).__name__} for {forward}"
        )
        raise TypeError(message)
    args, kwargs = found
    named = {**{f"input {i}": x for i, x in enumerate(args)}, **kwargs}
    checked = {name: _checked(value, name) for name, value in named.items()}
    return tuple(list(checked.values())[: len(args)]), {key: checked[key] for key in kwargs}


def labelled(batch: Any, model: nn.Module) -> Any:
    """A batch as ``(inputs, labels, ...)``, if a model takes several of its items as inputs."""
    forward = _Forward.of(model)
    if type(batch) not in (tuple, list) or not batch or _takes_first(batch, forward):
        return batch
    return (tuple(batch[: forward.needed]), *batch[forward.needed :])


@dataclasses.dataclass(frozen=True)
class _Forward:
    """What a forward takes: ``needed`` to ``most`` positional arguments, and names.

    ``required`` are the names without a default; ``anything`` means that it takes any name, and
    ``tensor`` that the first argument is declared as one.
    """

    name: str
    needed: int
    most: float
    names: frozenset[str]
    required: tuple[str, ...]
    anything: bool
    tensor: bool

    @classmethod
    def of(cls, model: nn.Module) -> _Forward:
        parameters = list(inspect.signature(model.forward).parameters.values())
        kinds = {p.kind for p in parameters}
        placed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        most = float("inf") if inspect.Parameter.VAR_POSITIONAL in kinds else len(placed)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return cls(
            f"{type(model).__name__}.forward({', '.join(map(str, parameters))})",
            sum(p.default is p.empty for p in placed),
            most,
            frozenset(p.name for p in named),
            tuple(p.name for p in named if p.default is p.empty),
            inspect.Parameter.VAR_KEYWORD in kinds,
            bool(placed) and placed[0].annotation in (Tensor, "Tensor", "torch.Tensor"),
        )

    def __str__(self) -> str:
        return self.name


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _call(batch: Any, forward: _Forward, *, whole: bool) -> Call | None:
    """A batch, or (``whole``) its inputs, as a call; None if it cannot be one."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if (fields := fields_of(batch)) is not None:
        named = _by_name(fields, forward)
        if named is not None:
            return (), named
        if not isinstance(batch, tuple):
            if forward.needed == 1 and not forward.tensor:
                return (batch,), {}
            missing = [key for key in forward.required if key not in fields]
            message = f"batch has keys {list(fields)}, none of which the model's forward takes"
            if missing:
                message = (
                    f"batch has keys {list(fields)}, but {forward} cannot do without "
                    f"{', '.join(map(repr, missing))}"
                )
            raise TypeError(message)
    if isinstance(batch, (tuple, list)) and batch:
        if whole:
            if forward.needed <= len(batch) <= forward.most:
                return tuple(batch), {}
            return ((batch,), {}) if forward.needed <= 1 <= forward.most else None
        if _takes_first(batch, forward):
            return _call(batch[0], forward, whole=True)
        return tuple(batch[: forward.needed]), {}
    if type(batch) in pytree.SUPPORTED_NODES and batch is not None and forward.needed <= 1:
        return ((batch,), {}) if batch or not isinstance(batch, (tuple, list, dict)) else None
    return None


def _takes_first(batch: Sequence[Any], forward: _Forward) -> bool:
    """Whether the first item of a batch has all inputs of a model."""
    if forward.needed < 2:
        return True
    first = batch[0]
    if (fields := fields_of(first)) is not None and _by_name(fields, forward) is not None:
        return True
    several = isinstance(first, (tuple, list)) and forward.needed <= len(first) <= forward.most
    return several or len(batch) < forward.needed


def fields_of(value: Any) -> Mapping[str, Any] | None:
    """What a mapping, dataclass or named tuple holds, by name."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _by_name(fields: Mapping[str, Any], forward: _Forward) -> dict[str, Any] | None:
    """Those that a forward takes by name; None if they do not suffice."""
    # A model that takes labels computes a loss from them, which is no concern of ours.
    kept = {
        key: value
        for key, value in fields.items()
        if (forward.anything or key in forward.names)
        and (key not in LABELS or key in forward.required)
    }
    return kept if kept and all(key in kept for key in forward.required) else None


def _checked(value: Any, name: str) -> Any:
    """An input of which torch.export can find the tensors; TypeError if it cannot."""
    if value is None or isinstance(value, (Tensor, bool, int, float, complex, str)):
        return value
    if isinstance(value, np.ndarray):
        message = f"{name} of a batch is a NumPy array: convert it with torch.from_numpy"
        raise TypeError(message)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        make_known(type(value))
        return type(value)(*(_checked(item, name) for item in value))
    if type(value) in (tuple, list):
        return type(value)(_checked(item, name) for item in value)
    if type(value) not in pytree.SUPPORTED_NODES:
        if isinstance(value, Mapping):
            return {key: _checked(item, f"{name}[{key!r}]") for key, item in value.items()}
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            if isinstance(value, (torch.dtype, torch.device)):
                return value
            message = (
                f"{name} of a batch is a {type(value).__name__}, in which torch cannot find "
                "tensors: pass them in tuples, lists, dicts or dataclasses, or make the class "
                "known with torch.utils._pytree.register_pytree_node"
            )
            raise TypeError(message)
        make_known(type(value))
    leaves, spec = pytree.tree_flatten(value, is_leaf=lambda x: x is not value)
    return pytree.tree_unflatten([_checked(leaf, name) for leaf in leaves], spec)


def make_known(kind: type) -> None:
    """Let torch take named tuples or dataclasses of a class apart, and write down how."""
    name = f"{kind.__module__}:{kind.__qualname__}"
    if dataclasses.is_dataclass(kind) and kind not in pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(kind, serialized_type_name=name)
    elif kind not in pytree.SUPPORTED_NODES:
        pytree._register_namedtuple(kind, serialized_type_name=name)


def structure_of(spec: Any) -> str:
    """A call's structure as text.

    Raises
    ------
    ValueError
        If it holds objects that have no form in text; the message names the class.
    """
    try:
        return pytree.treespec_dumps(spec)
    except (NotImplementedError, TypeError) as error:
        message = (
            f"the structure of a batch cannot be kept: {error}; pass dicts, lists or tuples, or "
            "register the class with a serialized_type_name"
        )
        raise ValueError(message) from error


def structure_from(text: str) -> Any:
    """The structure that `structure_of` wrote.

    Named tuples and dataclasses are looked for in the modules that are imported already.

    Raises
    ------
    ValueError
        If a class is not there; the message names it.
    """
    waiting = [json.loads(text)[1]]
    while waiting:
        part = waiting.pop()
        waiting += part["children_spec"]
        module, _, name = str(part["type"] or "").partition(":")
        found: Any = sys.modules.get(module)
        for step in name.split(".") if name else ():
            found = getattr(found, step, None)
        if name and isinstance(found, type):
            make_known(found)
    try:
        return pytree.treespec_loads(text)
    except NotImplementedError as error:
        message = f"the batches hold a class that is not imported here: {error}"
        raise ValueError(message) from error


def batch_size(*inputs: Any) -> int:
    """The number of samples in a call's inputs: the length of most tensors' first axis.

    Of several such lengths the largest; one if no tensor has axes.
    """
    sizes = Counter(
        int(leaf.shape[0])
        for leaf in pytree.tree_leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.dim() > 0
    )
    return max(sizes, key=lambda size: (sizes[size], size), default=1)


def model_device(model: nn.Module) -> torch.device:
    """Where a model's parameters and buffers are; the CPU if it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def moved(value: Any, device: torch.device) -> Any:
    """A batch, or a part of one, with its tensors on a device; itself if they are there.

    See `moved_tensor`.
    """
    if isinstance(value, Tensor):
        return moved_tensor(value, device)
    if type(value) in pytree.SUPPORTED_NODES:
        items, spec = pytree.tree_flatten(value, is_leaf=lambda x: x is not value)
        there = [moved(item, device) for item in items]
        unchanged = all(a is b for a, b in zip(items, there, strict=True))
        return value if unchanged else pytree.tree_unflatten(there, spec)
    if (fields := fields_of(value)) is not None:
        parts = {name: moved(item, device) for name, item in fields.items()}
        if all(parts[name] is item for name, item in fields.items()):
            return value
        if isinstance(value, Mapping):
            return parts
        if isinstance(value, tuple):
            return type(value)(*parts.values())
        changed = copy.copy(value)
        for name, item in parts.items():
            object.__setattr__(changed, name, item)  # also of a frozen one
        return changed
    return value
