"""Calling torch.export, and saying in a line why it could not follow a model."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import io
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import config as fx_config
from torch.utils import _pytree as pytree

Free = Literal["some", "all"]
"""Which axes of the inputs may have other sizes later; see `export`."""

_SEQUENCE = 3
"""Axes of an input that is no image: a table, a graph's edges, sequences of tokens or features."""


def implied_arguments(model: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword inputs without which a model returns more than its outputs.

    A language model of transformers returns its cache unless ``use_cache`` is False.
    """
    cached = getattr(getattr(model, "config", None), "use_cache", None)
    parameters = inspect.signature(model.forward).parameters
    if cached is not True or "use_cache" in kwargs or "use_cache" not in parameters:
        return {}
    return {"use_cache": False}


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free: Free, who: str
) -> Iterator[Any]:
    """Exported programs of a model, one for each way that works, the freest first.

    Parameters
    ----------
    model : in evaluation mode; its forward is replaced
    args, kwargs : example inputs; no tensor among them twice
    free : the axes that may have other sizes: "all", or "some", which leaves out what is not the
        first axis of an image or video: theirs take long to follow, and mostly stay the same
    who : what messages call the model

    Raises
    ------
    ValueError
        If no way works.
    """
    _return_plainly(model)
    # A size of one would be taken for a constant: shape the program by two samples.
    twice = pytree.tree_map(
        lambda x: torch.cat([x, x]) if _is_batched(x) and x.shape[0] == 1 else x, (args, kwargs)
    )
    calls = [(args, kwargs)]
    if next((x.shape[0] for x in pytree.tree_leaves(calls) if _is_batched(x)), 0) == 1:
        calls.insert(0, twice)
    most = {"all": sys.maxsize, "some": _SEQUENCE}[free]
    attempts = [(call, rank) for call in calls for rank in (most, 0)]
    error: Exception | None = None
    found = False
    for call, rank in [*attempts, ((args, kwargs), None)]:
        shapes = torch.export.ShapesCollection()
        for leaf in pytree.tree_leaves(call):
            if _is_batched(leaf) and rank is not None:
                every = range(leaf.dim() if leaf.dim() <= rank else 1)
                free_axes = [axis for axis in every if leaf.shape[axis] > 1]
                shapes[leaf] = dict.fromkeys(free_axes, torch.export.Dim.AUTO)
        try:
            with torch.no_grad(), _quiet(), _brisk():
                exported = torch.export.export(
                    model,
                    *call,
                    strict=False,
                    dynamic_shapes=shapes if rank is not None else None,  # type: ignore[arg-type]
                )
        except _OutputError as caught:
            raise ValueError(str(caught)) from caught
        except Exception as caught:
            error = caught
            continue
        found = True
        yield exported
    if not found:
        assert error is not None
        message = f"torch.export cannot follow {who} ({type(model).__name__}): {_reason(error)}"
        if [type(x) for x in args] != [Tensor] or kwargs:
            message += f"; it was called with {structure(args, kwargs)}"
        raise ValueError(message) from error


class _Star:
    def __repr__(self) -> str:
        return "*"


def structure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A call's inputs as text, with a star for each value."""
    star = _Star()
    shown, named = pytree.tree_map(lambda _: star, (args, dict(kwargs)))
    parts = [*map(repr, shown), *(f"{key}={value!r}" for key, value in named.items())]
    return f"({', '.join(parts)})"


class _OutputError(ValueError):
    """What forward returns cannot be merged, however it is traced."""


_BY_THE_WAY = frozenset(
    {
        *("last_hidden_state", "hidden_states", "attentions", "cross_attentions"),
        *("encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions"),
        *("decoder_hidden_states", "decoder_attentions", "past_key_values"),
        *("text_model_output", "vision_model_output"),
    }
)
"""What models of transformers return beside their logits of the way to these."""


def results_of(value: Any) -> Any:
    """What a model computes, as `as_pytree` has it.

    Where there are logits, hidden states beside them are no results: nothing that reads them is
    known, and to keep their basis would be to align nothing that leads to them.
    """
    if isinstance(value, Mapping) and any("logits" in str(key) for key in value):
        value = {key: item for key, item in value.items() if key not in _BY_THE_WAY}
    return as_pytree(value)


def as_pytree(value: Any) -> Any:
    """What a model returns as tuples, lists, dicts and what torch knows to take apart.

    Raises
    ------
    ValueError
        For an object that cannot be taken apart; the message names its class.
    """
    if value is None or isinstance(value, (Tensor, bool, int, float, complex, str)):
        return value
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(as_pytree, value))
    if type(value) in (tuple, list):
        return type(value)(map(as_pytree, value))
    if type(value) is dict or (isinstance(value, Mapping) and not _is_registered(value)):
        return {key: as_pytree(item) for key, item in value.items()}
    if _is_registered(value):
        leaves, spec = pytree.tree_flatten(value)
        return pytree.tree_unflatten(list(map(as_pytree, leaves)), spec)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: as_pytree(getattr(value, field.name)) for field in fields}
    name = type(value).__name__
    message = (
        f"forward returns a {name} ({type(value).__module__}), which holds no tensors that torch "
        "can find: return tensors in tuples, lists, dicts or dataclasses, or make the class known "
        "with torch.utils._pytree.register_pytree_node"
    )
    if "cache" in name.lower():
        message = (
            f"forward returns a {name}, a cache that cannot be merged: pass use_cache=False with "
            "each batch, or set model.config.use_cache = False"
        )
    raise _OutputError(message)


def _is_registered(value: Any) -> bool:
    return type(value) in pytree.SUPPORTED_NODES


def _return_plainly(model: nn.Module) -> None:
    forward = model.forward

    @functools.wraps(forward)
    def plainly(*args: Any, **kwargs: Any) -> Any:
        return results_of(forward(*args, **kwargs))

    if not isinstance(model, torch.jit.ScriptModule):
        model.forward = plainly


def _is_batched(leaf: Any) -> bool:
    """Whether an input has a first axis."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings and its pages about what went wrong, of which we say a line.

    What else is written to the standard error stream comes after, if nothing did.
    """
    pages = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("torch", "torch.fx", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(pages):
            warnings.simplefilter("ignore")
            yield
        sys.stderr.write(pages.getvalue())
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _brisk() -> Iterator[None]:
    """Without what an export spends a fifth of its time on: stack traces and garbage collection.

    Nothing here reads the stack trace of a node. The graph is one large heap of cycles that live to
    its end, which the collector would walk again and again.
    """
    collects, traced = gc.isenabled(), getattr(fx_config, "do_not_emit_stack_traces", None)
    gc.disable()
    if traced is not None:
        fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        if traced is not None:
            fx_config.do_not_emit_stack_traces = traced
        if collects:
            gc.enable()


def _reason(error: Exception) -> str:
    """What went wrong in a line, where in the user's code, and what helps."""
    text = str(error).strip()
    line = next((x.strip() for x in text.splitlines() if x.strip()), "")
    kind = type(error).__name__
    cure = ""
    if "data-dependent" in text:
        line = "forward decides by the values of a tensor (an if, a loop, int() or .item())"
        cure = "compute both sides and choose with torch.where, or decide by shapes"
    elif "numpy()" in text:
        cure = "use torch in place of NumPy in forward"
    elif "Unsupported input type" in text or "unsupported type" in text.lower():
        cure = "pass tensors in tuples, lists, dicts or dataclasses"
    place = _place(error)
    parts = [f"{kind}: {line[:300]}", f"at {place}" if place else "", cure]
    return "; ".join(part for part in parts if part)


def _place(error: BaseException) -> str:
    """The last line of the traceback that is neither torch's nor ours."""
    own = [Path(torch.__file__).parent, Path(__file__).parent]
    # torch raises some errors anew, from the one that has the traceback.
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            path = Path(frame.filename)
            if path.is_file() and not any(folder in path.parents for folder in own):
                return f"{path.name}:{frame.lineno} in {frame.name}"
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return ""
