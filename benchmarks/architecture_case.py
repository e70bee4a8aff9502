"""What is asked of one architecture: its spaces, the five checks, and three merges."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from families import Case, doubled
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import ccamerge
from ccamerge import Spaces
from ccamerge.graph.attention.probing import NORMALISED, UNSEEN
from ccamerge.graph.groups import PERMUTATION
from ccamerge.graph.maps import transform
from ccamerge.graph.networks.parameters import parameters_of
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.space import Role
from ccamerge.graph.tracing.batches import split_batch
from ccamerge.graph.tracing.exporting import results_of
from ccamerge.graph.tracing.plain import take_plain
from ccamerge.merging.loading import load_merged

Row = dict[str, Any]

BATCHES = 4
LARGEST = 8_000_000
"""Parameters up to which a network is looked at in double precision."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Change of outputs on new inputs, over how much they vary, beyond which a function has changed."""

RIGHTFUL = {
    "output": r"network output|no output depends on it",
    "vocabulary": r"vocabulary",
    "kernel": r"position in the kernel|one channel a group",
    "single element": r"a single element|one feature repeated by \S+|one for many in \S+",
    "positions": r"(positions (of|in)|pooled over by|Fourier transform along it in) \S+",
    "unseen": UNSEEN,
    "normalised": NORMALISED,
}
"""Why an axis may keep its basis in a network that is aligned as far as can be, as the package
words it: nothing of the network is free along it.

Gains of norms of queries and keys that all heads share are rightly pinned where positions rotate
what was normalised: products of queries and keys are then left by signs of whole planes at most,
which move no gain, and by scales that one gain takes from the other, which match no features.
Where one order of features in all heads would do, the package says `ALIKE`, which does not count;
nor does `SHARED`, as heads of all attentions that share a table might be permuted as one; nor what
keeps experts in their order, as they might change places with what routes to them; nor features
that lie between parameters and are never computed.
"""
INPUT = r"\S+: meets a fixed axis"
"""Rightful along axes that only read, which are the network's inputs, or that are its outputs too:
of a weight that is tied."""
OF_TABLE = (
    r"written by no parameter|chosen from by \S+|reordered by \S+|cut apart by \S+"
    r"|one feature alone in \S+|padded by \S+|indices of \S+|\S+: a view cuts its features apart"
    rf"|{INPUT}"
)
"""Rightful along the axes of a table of positions, or of learned tokens."""
TABLES = r"pos|rel_|relative|bias_table|bias_index|attention_bias|token|latents|queries"
"""In the names of such tables."""


def wrongly_pinned(found: Spaces) -> dict[str, list[str]]:
    """The axes that a network which is fully aligned within its exact groups would not have pinned.

    A network is fully aligned if at least one space is open, and every axis of every parameter is
    in an open space or pinned for what cannot be otherwise: `RIGHTFUL`, `INPUT` and `OF_TABLE`. Of
    several reasons each must be one of these. An axis of one element never counts.

    Returns
    -------
    By reason, without the names of nodes, the axes that it pins.
    """
    writes = {
        (slot.parameter, slot.dim)
        for space in found.fixed
        for slot in space.slots
        if slot.role is not Role.READ
    }
    shapes = found.program.parameter_shapes
    wrong: dict[str, list[str]] = {}
    for (key, dim), why in found.pinned.items():
        reasons = why.split("; ")
        if shapes[key][dim] == 1:
            continue
        allowed = [*RIGHTFUL.values()]
        if (key, dim) not in writes or "network output" in reasons:
            allowed.append(INPUT)
        if re.search(TABLES, key):
            allowed.append(OF_TABLE)
        for reason in reasons:
            if not any(re.fullmatch(pattern, reason) for pattern in allowed):
                wrong.setdefault(_general(reason), []).append(f"{key} axis {dim}")
    return wrong


def _general(reason: str) -> str:
    """A reason without the number of its node, or the name of its parameter."""
    reason = re.sub(r"^\S+ (reaches it along axis) \d+", r"a parameter \1", reason)
    reason = re.sub(r"^[\w.]+\.(weight|bias): ", "", reason)
    return re.sub(r"\b([a-z_]+?)(_default)?_?\d+\b", r"\1", reason)


def randomised(case: Case, seed: int) -> nn.Module:
    """A case's network in which everything matters, as in one that was trained.

    Zero biases and gains of one vary, weights that start near zero are raised, and BatchNorm has
    the statistics of a batch, without which a deep network answers everything alike.
    """
    model, generator = case.model, torch.Generator().manual_seed(seed)

    def noise(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator).to(value)

    with torch.no_grad():
        for parameter in {id(p): p for p in model.parameters()}.values():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if parameter.dim() < 2 or bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * noise(parameter))
            elif (
                size := float(parameter[0].numel() ** 0.5 * parameter.square().mean().sqrt())
            ) < 0.5:
                parameter.div_(size)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the mean over all batches: of one
            norm.reset_running_stats()
        if norms:
            outputs(model.train(), case.sample(16, generator))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.add_(0.1 * noise(norm.running_mean) * norm.running_var.sqrt())
                norm.running_var.mul_(1 + 0.3 * noise(norm.running_var).tanh())
    return model.eval()


def moved(model: nn.Module, found: Spaces, exact: bool, seed: int) -> nn.Module | None:
    """The same function with features mapped: all permuted where they may be, or by any element.

    None where a reparametrisation cannot hold it, such as a mask of pruned weights.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = found.random_maps(generator)
    if not exact:
        sizes = {space.name: space.size for space in found.spaces}
        for heads in found.attention:
            own = heads.permuting()
            maps |= own.maps(own.random(generator), sizes)
        for space in found.spaces:
            if space.exact >= PERMUTATION and not space.group.joint:
                maps[space.name] = PERMUTATION.random(space.size, generator)
    plain = parameters_of(model, "the model").plain
    other = copy.deepcopy(plain)
    state = folded_state(plain.state_dict(), found.folds)
    load_merged(other, dict(transform(state, found.spaces, maps)), found, {})
    if plain is model:
        return other
    holder = copy.deepcopy(model)
    return None if take_plain(holder, other) else holder


def away(before: list[Tensor], after: list[Tensor]) -> float:
    """How far outputs are from the former ones, over how much these vary among the samples.

    Of an output that does not vary, over its own size.
    """
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if not a.is_floating_point() or not a.numel():
            continue
        finite = a.isfinite()
        if a.shape != b.shape or not torch.equal(finite, b.isfinite()):
            return float("inf")
        a, b = (x.where(finite, 0).double() for x in (a, b))
        spread = (a - a.mean(0)).norm() if a.dim() else a.norm()
        scale = spread if spread > 1e-9 * a.norm() else a.norm()
        worst = max(worst, float((b - a).norm() / scale.clamp_min(1e-300)))
    return worst


def outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    args, kwargs = split_batch(batch, model)
    with torch.inference_mode():
        found = results_of(model(*args, **kwargs))  # hidden states beside logits are none
    return [x for x in pytree.tree_leaves(found) if isinstance(x, Tensor)]


Tell = Callable[[Row], None]


class _Stages:
    """Runs one stage after the other, tells what each found, and which failed how."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.failed = False

    @contextmanager
    def stage(self, name: str) -> Iterator[Row]:
        row: Row = {}
        self.tell({"stage": name})
        start = time.process_time()
        try:
            yield row
        except Exception as error:
            self.failed = True
            lines = str(error).strip().splitlines() or [""]
            row.setdefault("errors", {})[name] = f"{type(error).__name__}: {lines[0][:400]}"
        row.setdefault("seconds", {})[name] = round(time.process_time() - start, 2)
        self.tell(row)


def _runs_in_double(case: Case) -> bool:
    """Some operations, as of grouped products, know single precision only."""
    batch = doubled(case.sample(2, torch.Generator().manual_seed(0)))
    try:
        outputs(copy.deepcopy(case.model).double().eval(), batch)
    except RuntimeError:
        return False
    return True


def examine(build: Callable[[], Case], tell: Tell) -> None:
    """Look at one architecture; ``tell`` gets what is found, piece by piece."""
    stages = _Stages(tell)
    with stages.stage("build") as row:
        models = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            case = build()
            models.append(randomised(case, seed))
        count = sum(p.numel() for p in models[0].parameters())
        double = count <= LARGEST and _runs_in_double(case)
        models = [model.double() for model in models] if double else models
        generator = torch.Generator().manual_seed(0)

        def batch(size: int) -> Any:
            found = case.sample(size, generator)
            return doubled(found) if double else found

        example, new = batch(4), batch(16)
        data = [batch(case.samples) for _ in range(BATCHES)]
        before = outputs(models[0], new)
        other = outputs(models[0], batch(16))
        row |= {"parameters": count, "double": double}
        if away(before, other) < 1e-3:
            message = "the network answers all inputs alike"
            raise ValueError(message)
    if stages.failed:
        return
    with stages.stage("spaces") as row:
        found = ccamerge.spaces(models[0], example)
        shares = found.aligned_shares()
        row |= {"spaces": len(found), "shares": shares, "wrong": wrongly_pinned(found)}
        row["pinned"] = sorted(set(found.pinned.values()))
    if stages.failed:
        return
    with stages.stage("verify") as row:
        checks = ccamerge.verify(models[0], example)
        row["verify"] = {check.name: check.passed for check in checks}
        row["faults"] = [str(check) for check in checks if not check.passed]
    with stages.stage("merge") as row:
        row |= _merges(models, found, data, new, before)


def _merges(
    models: list[nn.Module], found: Spaces, data: list[Any], new: Any, before: list[Tensor]
) -> Row:
    """How far outputs on new inputs are from the model's, relatively, after merges that owe it."""
    model, other = models
    row: Row = {"off": {}}
    every = [model, other]
    for kind, exact in (("permuted", False), ("mapped", True)):
        if (copied := moved(model, found, exact, len(every))) is not None:
            row["off"][kind] = away(before, outputs(copied, new))
            every.append(copied)
    collected = ccamerge.collect(every, data, progress=False, holdout=0.0)

    def off(indices: list[int], **settings: Any) -> float:
        chosen = [every[index] for index in indices]
        merged = ccamerge.merge(
            chosen, statistics=collected.subset(indices, 0), progress=False, **settings
        )
        return away(before, outputs(merged.model, new))

    row["off"]["itself"] = off([0, 1], weights=[1, 0])
    if "mapped" not in row["off"]:
        return row
    row["off"]["copy"] = off([0, 2])
    row["off"]["copy, no repair"] = off([0, 2], repair="none")
    try:  # nothing is owed where data do not determine the maps, and these are singular
        row["undone"] = off([0, 3], repair="none", ridge=0.0)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        row["undone"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row
