"""Parameters among what training loops and wrappers put around them: keys above, prefixes before.

What is found without doubt is read: under the usual keys, and by names that fit a network once what
a usual wrapper put before or into them is taken away. Where names would have to be changed in other
ways, or one of several sets of parameters be chosen, the messages say what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

WRAPPERS = (
    "state_dict",  # PyTorch Lightning, timm
    "model",  # fairseq, torchvision's references
    "model_state_dict",  # the tutorial of PyTorch
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "module",  # DeepSpeed
    "net",
    "network",
    "weights",
    "params",  # BasicSR
    "params_ema",
    "model_state",
)
"""Keys under which files hold a network's parameters."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What data parallelism, torch.compile and Lightning put before names."""

_INFIXES = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_DEPTH = 4  # of mappings in mappings that are looked into

Place = tuple[str, ...]
"""Keys that lead to a mapping, the outermost first."""


def parameter_sets(content: Any) -> dict[Place, Mapping[str, Tensor]]:
    """All sets of parameters in what a file holds: dicts of tensors, by themselves or under keys.

    Sets that are equal in names and values count once.

    Raises
    ------
    ValueError
        If there is none; the message says what there is.
    """
    if not isinstance(content, Mapping):
        message = f"holds a {type(content).__name__}, expected a dict of tensors"
        raise ValueError(message)
    found: dict[Place, Mapping[str, Tensor]] = {}
    for place, candidate in _dicts(content, (), WRAPPERS):
        tensors = all(isinstance(v, Tensor) for v in candidate.values())
        if tensors and not any(_equal(candidate, other) for other in found.values()):
            found[place] = candidate
    if found or not any(True for _, inner in _dicts(content, (), None) if inner):
        return found
    raise ValueError(_nothing_found(content))


def several_sets(found: Mapping[Place, Mapping[str, Tensor]]) -> str:
    """The message for a file with more than one set of parameters."""
    listed = " and ".join(f"{_path(place)} ({len(held)} tensors)" for place, held in found.items())
    return (
        f"holds several sets of parameters, {listed}, and they differ: save the one that you want, "
        f"{_extract(list(found)[-1])}"
    )


def wrapped_in(given: Collection[str], own: Collection[str]) -> str:
    """What usual wrappers put before or into all the names in a file, or some; empty if nothing.

    Without it, all names are the network's own; with it, none is, or not all where it is inside.
    """
    if not given or not own or set(given) <= set(own):
        return ""
    for prefix in _prefixes(given):
        if _usual(prefix) and all(k.startswith(prefix) for k in given):
            fits = {k.removeprefix(prefix) for k in given} <= set(own)
            if fits and not set(given) & set(own):
                return prefix
    for infix in _INFIXES:
        bare = {k.replace(infix, "") for k in given}
        if len(bare) == len(given) and bare <= set(own):
            return infix
    return ""


def _usual(prefix: str) -> bool:
    """Whether a prefix consists of known ones."""
    while known := [p for p in PREFIXES if prefix.startswith(p)]:
        prefix = prefix.removeprefix(known[0])
    return not prefix


def name_hint(given: Collection[str], own: Collection[str]) -> str | None:
    """What to do about the names in a file that does not fit, if a wrapper explains them."""
    if not given or not own or not set(own) - set(given):
        return None
    inside = _common_prefix(given, own)
    if inside:
        return f"every name begins with {inside!r}: {_renamed(inside, filtered=False)}"
    for prefix in _prefixes(given):
        some = {k.removeprefix(prefix) for k in given if k.startswith(prefix)}
        if set(own) <= some:
            count = sum(k.startswith(prefix) for k in given)
            return (
                f"the names that fit begin with {prefix!r} ({count} of {len(given)}): "
                f"{_renamed(prefix, filtered=True)}"
            )
    for prefix in _prefixes(own):
        if {prefix + k for k in given} >= set(own):
            return (
                f"the network's own names begin with {prefix!r}, as if it were wrapped: use "
                f"network.{prefix.rstrip('.')}, the module inside"
            )
    for infix in _INFIXES:
        if set(own) <= {k.replace(infix, "") for k in given}:
            change = f"k.replace({infix!r}, '')"
            return f"names fit without {infix!r} in them: {_saved(change)}"
        if {k.replace(infix, "") for k in own} <= set(given):
            return (
                f"the network's own names have {infix!r} in them, as if parts of it were wrapped: "
                "load into the network before it is wrapped"
            )
    return None


def _common_prefix(given: Collection[str], own: Collection[str]) -> str:
    """The prefix of all given names without which most of them fit; else a known one of all."""
    shared = [p for p in _prefixes(given) if all(k.startswith(p) for k in given)]
    fits = {p: len({k.removeprefix(p) for k in given} & set(own)) for p in ("", *shared)}
    best = max(fits, key=lambda p: fits[p])
    if best:
        return best
    known = [p for p in shared if p in PREFIXES and not any(k.startswith(p) for k in own)]
    return known[0] if known else ""


def _prefixes(names: Collection[str]) -> list[str]:
    """Beginnings of names that end in a dot, up to three parts, in the order of the names."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")[:-1][:3]
        found.update(dict.fromkeys(".".join(parts[:i]) + "." for i in range(1, len(parts) + 1)))
    return list(found)


def _renamed(prefix: str, *, filtered: bool) -> str:
    return _saved(f"k.removeprefix({prefix!r})", f" if k.startswith({prefix!r})" * filtered)


def _saved(change: str, only: str = "") -> str:
    """Code that saves parameters under other names."""
    return (
        "save them under the network's names, "
        f"save_state({{{change}: v for k, v in load_state(path).items(){only}}}, new_path), with "
        "both functions of ccamerge.checkpoints"
    )


def _extract(place: Place) -> str:
    """Code that saves what is under some keys by itself."""
    return f'torch.save(torch.load(path, weights_only=True){_path(place)}, "model.pt")'


def _path(place: Place) -> str:
    return "".join(f"[{key!r}]" for key in place)


def _dicts(
    node: Mapping[Any, Any], place: Place, keys: Collection[str] | None
) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Mappings in mappings, under some keys or any, that hold something but no such mapping."""
    wanted = {
        key: inner
        for key, inner in node.items()
        if isinstance(inner, Mapping) and (keys is None or key in keys)
    }
    if node and all(isinstance(v, Tensor) for v in node.values()):
        yield place, node
    elif wanted and len(place) < _DEPTH:
        for key, inner in wanted.items():
            yield from _dicts(inner, (*place, key), keys)
    elif node:
        yield place, node


def _nothing_found(content: Mapping[Any, Any]) -> str:
    """What is there instead of a set of parameters."""
    elsewhere = {
        place: inner
        for place, inner in _dicts(content, (), None)
        if place and all(isinstance(v, Tensor) for v in inner.values())
    }
    text = f"holds no dict of tensors, by itself or under {', '.join(map(repr, WRAPPERS[:3]))}"
    if elsewhere:
        listed = [f"{_path(place)} ({len(inner)})" for place, inner in elsewhere.items()]
        largest = max(elsewhere, key=lambda place: len(elsewhere[place]))
        return (
            f"{text} or another usual key; there are tensors under {shorten(listed)}: if these are "
            f"the parameters, {_extract(largest)}"
        )
    inner = next(d for _, d in _dicts(content, (), WRAPPERS))
    others = [f"{k} ({type(v).__name__})" for k, v in inner.items() if not isinstance(v, Tensor)]
    return f"{text} or another usual key; not tensors: {shorten(others)}"


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether two sets have the same names and values; without values they count as different."""
    return one.keys() == two.keys() and all(
        one[k].device.type != "meta"
        and one[k].dtype == two[k].dtype
        and one[k].layout == two[k].layout == torch.strided
        and torch.equal(one[k], two[k])
        for k in one
    )


def shorten(names: list[str], shown: int = 5) -> str:
    """The first few names and how many more there are."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"
