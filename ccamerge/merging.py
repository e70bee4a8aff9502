"""Merging: align, average, repair, and put normalisation back."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from ccamerge.apply import FeatureMap, average, transform
from ccamerge.collecting import Collected, collect, program_fingerprint, state_fingerprint
from ccamerge.graph.spaces import Group, Space, Spaces
from ccamerge.graph.states import folded_state, same_architecture
from ccamerge.methods import METHODS, AlignmentProblem, Solution
from ccamerge.paper import reset_statistics, unfolded_spaces
from ccamerge.repair import RepairResult, repair_merged
from ccamerge.report import Report, SpaceReport

if TYPE_CHECKING:
    from collections.abc import Iterator

Repair = Literal["variance", "regression", "none"]
Norm = Literal["fold", "paper"]

DEFAULT_RIDGE = 0.3


@dataclasses.dataclass(frozen=True)
class MergeResult:
    """What `merge` returns.

    Attributes
    ----------
    model : the merged network, in evaluation mode
    maps : for each space, each model's map to the reference
    spaces : the feature spaces that were aligned
    moments : the collected statistics; pass them as ``moments=`` to merge again without data
    report : what happened, as numbers and as text
    """

    model: nn.Module
    maps: dict[str, list[FeatureMap]]
    spaces: Spaces
    moments: Collected
    report: Report


def merge(
    models: Sequence[nn.Module],
    data: Iterable[Any] | None = None,
    *,
    method: str = "cca",
    ridge: float | None = None,
    gamma: float | None = None,
    reference: int = 0,
    weights: Sequence[float] | None = None,
    repair: Repair = "variance",
    norm: Norm = "fold",
    moments: Collected | None = None,
    progress: bool = True,
    seed: int = 0,
) -> MergeResult:
    """Merge trained networks of one architecture into one network of the same size.

    Parameters
    ----------
    models : two or more ``torch.nn.Module``; never modified
    data : iterable of calibration batches, read once: tensors; tuples or lists whose first item is
        the input; or dicts of keyword inputs. Labels are never looked at. Not needed with
        ``moments``.
    method : "cca", "permutation", "procrustes", "average", or one that was registered
    ridge : dimensionless regulariser of CCA, ``gamma = ridge * trace(S) / d``; default 0.3
    gamma : absolute regulariser, as in the paper; instead of ``ridge``
    reference : the model whose features the others are mapped to
    weights : of the models in the average, normalised to sum to one; default equal
    repair : "variance" restores each channel's mean and variance (REPAIR); "regression" fits each
        linear operation to the mean of the aligned models' outputs, on the kept inputs, which takes
        longer and gives better networks; "none" does neither
    norm : "fold" folds BatchNorm into the operation before it and puts it back after; "paper" maps
        gamma and beta and resets the statistics, as the published code does
    moments : the ``moments`` of an earlier result or of `collect`: no data is read
    progress : whether to show a progress bar
    seed : of the choice of inputs kept for repair

    Returns
    -------
    MergeResult

    Raises
    ------
    ValueError, TypeError
        For arguments that make no sense, models that do not belong together or data that does not
        fit them; the message names the argument, the model, the space or the batch.
    numpy.linalg.LinAlgError
        If a space cannot be aligned with this ridge; the message names it and the cure.
    """
    models = same_architecture(models)
    _check(method, ridge, gamma, reference, repair, norm, len(models))
    shares = _shares(weights, len(models))
    watch = _Stopwatch()
    with watch("collect"):
        collected, found = _statistics(models, data, moments, reference, progress, seed)
    if ridge is None and gamma is None:
        ridge = DEFAULT_RIDGE
    with watch("solve"):
        solutions = _align(found, collected, method, ridge, gamma, reference, len(models))
    maps = {name: [s.feature_map for s in row] for name, row in solutions.items()}
    repaired = RepairResult()
    with watch("apply"):
        applied = unfolded_spaces(found) if norm == "paper" else found
        states = [folded_state(model, applied) for model in models]
        mapped = [
            transform(state, applied.spaces, {n: row[i] for n, row in maps.items()})
            for i, state in enumerate(states)
        ]
        order = [reference, *(i for i in range(len(models)) if i != reference)]
        merged = average([mapped[i] for i in order], [shares[i] for i in order])
    with watch("repair"):
        if norm == "paper":
            reset_statistics(merged, applied.program, collected.inputs)
        elif repair != "none":
            teachers = states if repair == "regression" else []
            repaired = repair_merged(merged, found, collected, maps, shares, teachers)
    result = copy.deepcopy(models[reference]).eval()
    result.zero_grad(set_to_none=True)  # a trained reference may still carry its last gradients
    load_merged(result, merged, applied, repaired.statistics)
    report = Report(
        method=method,
        ridge=ridge,
        gamma=gamma,
        reference=reference,
        weights=shares,
        repair=repair if norm == "fold" else "none",
        norm=norm,
        samples=collected.samples,
        seconds=watch.seconds,
        spaces=[
            _space_report(space, method, solutions[space.name], reference) for space in found.spaces
        ],
        repaired=repaired.repaired,
        fitted=repaired.fitted,
        fixed={space.name: list(space.notes) for space in found.fixed},
        pinned={f"{key} axis {dim}": why for (key, dim), why in found.pinned.items()},
    )
    return MergeResult(result, maps, found, collected, report)


class _Stopwatch:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def _check(
    method: str,
    ridge: float | None,
    gamma: float | None,
    reference: int,
    repair: str,
    norm: str,
    count: int,
) -> None:
    for name, value, known in (
        ("method", method, tuple(METHODS)),
        ("repair", repair, get_args(Repair)),
        ("norm", norm, ("fold", "paper")),
    ):
        if value not in known:
            message = f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}"
            raise ValueError(message)
    if norm == "paper" and repair == "regression":
        message = (
            "repair='regression' needs norm='fold': the paper's norm resets statistics instead"
        )
        raise ValueError(message)
    if ridge is not None and gamma is not None:
        message = "give ridge (dimensionless) or gamma (absolute), not both"
        raise ValueError(message)
    for name, number in (("ridge", ridge), ("gamma", gamma)):
        if number is not None and not (math.isfinite(number) and number >= 0):
            message = f"{name} must be a finite number >= 0, got {number}"
            raise ValueError(message)
    if not 0 <= reference < count:
        message = f"reference must be in 0..{count - 1}, got {reference}"
        raise ValueError(message)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    values = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(values) != count:
        message = f"weights must hold one number a model ({count}), got {len(values)}"
        raise ValueError(message)
    if not all(math.isfinite(w) and w >= 0 for w in values) or sum(values) <= 0:
        message = f"weights must be finite, not negative and not all zero, got {values}"
        raise ValueError(message)
    return [w / sum(values) for w in values]


def _statistics(
    models: Sequence[nn.Module],
    data: Iterable[Any] | None,
    moments: Collected | None,
    reference: int,
    progress: bool,
    seed: int,
) -> tuple[Collected, Spaces]:
    if moments is None:
        if data is None:
            message = "data is needed: pass calibration batches, or moments of an earlier merge"
            raise ValueError(message)
        collected = collect(models, data, reference=reference, progress=progress, seed=seed)
    else:
        collected = moments
        if collected.models != len(models):
            message = f"moments are of {collected.models} models, but {len(models)} were given"
            raise ValueError(message)
        if collected.pairs != "all" and collected.reference != reference:
            message = (
                f"moments were collected with reference {collected.reference}, not {reference}; "
                "collect with pairs='all' to be free in the choice"
            )
            raise ValueError(message)
    found = collected.spaces_of(models[0])
    if moments is not None:
        for index, model in enumerate(models):
            if state_fingerprint(model.state_dict()) != collected.fingerprint["models"][index]:
                message = f"moments belong to other parameters than those of models[{index}]"
                raise ValueError(message)
        if program_fingerprint(found.program) != collected.fingerprint["program"]:
            message = "moments belong to another architecture than that of models[0]"
            raise ValueError(message)
    return collected, found


def _align(
    found: Spaces,
    collected: Collected,
    method: str,
    ridge: float | None,
    gamma: float | None,
    reference: int,
    count: int,
) -> dict[str, list[Solution]]:
    """Maps of every model in every space, each method's problems solved in one call."""
    batches: dict[str, list[tuple[Space, int, AlignmentProblem]]] = {}
    for space in found.spaces:
        pooled = collected.pooled(space)
        kind = _method_of(space, method)
        own = pooled.cov(reference)
        for index in range(count):
            if index != reference:
                problem = AlignmentProblem(
                    f"space {space.name!r}, models[{index}]",
                    own,
                    pooled.cov(index),
                    pooled.cov(reference, index),
                )
                batches.setdefault(kind, []).append((space, index, problem))
    solutions = {
        space.name: [Solution(FeatureMap.identity(space.size)) for _ in range(count)]
        for space in found.spaces
    }
    for kind, batch in batches.items():
        solved = METHODS[kind]([p for _, _, p in batch], ridge=ridge, gamma=gamma)
        for (space, index, _), solution in zip(batch, solved, strict=True):
            solutions[space.name][index] = solution
    return solutions


def load_merged(
    model: nn.Module,
    merged: dict[str, Tensor],
    spaces: Spaces,
    statistics: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """Put merged parameters into a module, BatchNorm unfolded."""
    state = dict(merged)
    for fold in spaces.folds:
        mean, variance = statistics.get(fold.node, (None, None))
        if mean is not None:
            mean = mean - state[fold.folded].to(mean)  # of the output before the folded bias
        fold.unapply(state, mean, variance)
    used = set(spaces.unfolded.parameters.values())
    targets = model.state_dict(keep_vars=True)
    owner: dict[int, str] = {}  # a parameter tied under several names is aligned under one of them
    for key, target in targets.items():
        if id(target) not in owner or key in used:
            owner[id(target)] = key
    with torch.no_grad():
        for key in owner.values():
            if targets[key].is_floating_point():
                targets[key].copy_(state[key])


def _method_of(space: Space, method: str) -> str:
    """The method asked for, or permutation where parameters can carry nothing more general."""
    if space.group is Group.PERMUTATION and method != "average":
        return "permutation"
    return method


def _space_report(
    space: Space, method: str, solutions: Sequence[Solution], reference: int
) -> SpaceReport:
    others = [s for i, s in enumerate(solutions) if i != reference]
    return SpaceReport(
        name=space.name,
        size=space.size,
        method=_method_of(space, method),
        exact=space.exact,
        notes=list(space.notes),
        correlations=[
            [] if s.correlations is None else [float(c) for c in s.correlations] for s in others
        ],
        details=[s.details for s in others],
    )
