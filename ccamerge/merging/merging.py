"""Merging: align, average, repair, and put normalisation back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ccamerge.collection.collecting import FOLDS, device_for, one_pass
from ccamerge.collection.statistics import Collected
from ccamerge.config.settings import (
    DEFAULT_METHOD,
    MethodChoice,
    Mode,
    Norm,
    Repair,
    RidgeChoice,
    Settings,
    Weights,
)
from ccamerge.core import arguments
from ccamerge.core.brief import Brief
from ccamerge.core.device import DeviceLike, memory_of
from ccamerge.core.stopwatch import Stopwatch
from ccamerge.graph.maps import FeatureMap, average, transform
from ccamerge.graph.networks.fingerprints import program_fingerprint, state_fingerprint
from ccamerge.graph.networks.states import folded_state, placed, same_architecture
from ccamerge.graph.networks.widths import shapes_of
from ccamerge.graph.space import ANY_MAP, Effect, Space, Spaces
from ccamerge.graph.tracing.modules import copied, extra_state, tensors_of
from ccamerge.graph.tracing.plain import put_back, take_plain
from ccamerge.merging.checking import check_results, checked, refuse_for_spaces
from ccamerge.merging.paper import reset_statistics, unfolded_spaces
from ccamerge.methods.alignment import Aligned, align, pairs_needed
from ccamerge.methods.weights import shares_of
from ccamerge.repair.repairing import RepairResult, repair_merged
from ccamerge.reporting import plots
from ccamerge.reporting.report import Report, SpaceReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_UNALIGNED = 0.5
"""Share of parameters aligned along no axis from which on a merge warns."""


@dataclasses.dataclass(frozen=True, repr=False)
class MergeResult(Brief):
    """What `merge` returns.

    Attributes
    ----------
    model : the merged network, in evaluation mode
    aligned : the feature maps and how they were found; pass it as ``aligned=`` to merge again with
        other weights, ``t`` or repair
    spaces : the feature spaces that were aligned
    moments : the collected statistics; pass them as ``moments=`` to merge again without data
    report : what happened, as numbers and as text
    """

    model: nn.Module
    aligned: Aligned
    spaces: Spaces
    moments: Collected
    report: Report

    def _parts(self) -> Mapping[str, Any]:
        return {
            "model": self.model,
            "models": len(self.report.weights),
            "weights": self.report.weights,
            "method": self.report.method,
            "mode": self.report.mode,
            "reference": self.report.reference,
            "repair": self.report.repair,
            "samples": self.report.samples,
            "spaces": self.spaces,
            "correlation": {s.name: s.mean_correlation for s in self.report.spaces},
        }

    @property
    def maps(self) -> dict[str, list[FeatureMap]]:
        """For each space, each model's map to the reference."""
        return self.aligned.maps

    def plot(self, folder: str | Path | None = None) -> dict[str, Figure]:
        """Draw the report's pictures; with a folder, write each there as ``<name>.png``, too.

        Returns
        -------
        Matplotlib's figures by name; see `ccamerge.reporting.plots.draw`.

        Raises
        ------
        ImportError
            Without matplotlib; the message says how to get it.
        """
        folder = None if folder is None else arguments.path(folder, "folder")
        figures = plots.draw(self.report)
        if folder is not None:
            plots.save(figures, folder)
        return figures


def merge(
    models: Sequence[nn.Module],
    data: Iterable[Any] | None = None,
    *,
    method: MethodChoice = DEFAULT_METHOD,
    options: Mapping[str, Any] | None = None,
    mode: Mode = "reference",
    ridge: RidgeChoice | None = None,
    gamma: float | None = None,
    reference: int = 0,
    weights: Weights | None = None,
    t: float | None = None,
    repair: Repair | None = None,
    norm: Norm = "fold",
    moments: Collected | None = None,
    aligned: Aligned | None = None,
    progress: bool = True,
    seed: int = 0,
    prove: bool = True,
    device: DeviceLike | None = None,
) -> MergeResult:
    """Merge trained networks of one architecture into one network of the reference's size.

    Networks may differ in width, not in depth, inputs or outputs: the maps are then rectangular, by
    the methods that can do that ("cca", "procrustes", "ot" and "zipit"). It makes sense to bring
    what a wider network knows into a reference that is wide enough for the task: of the wider
    one's features it keeps what correlates with its own, and the rest is lost. A narrower network
    only contributes the directions that it has, and dilutes the others: a wide reference gains
    nothing from one much smaller, nor does one too small for its task from a large one. Then choose
    ``t`` below one half, and ``repair="regression"`` in any case.

    Parameters
    ----------
    models : two or more ``torch.nn.Module``; never modified
    data : iterable of calibration batches, read once: tensors; tuples or lists whose first item is
        the input; or dicts of keyword inputs. Labels are never looked at. Not needed with
        ``moments``.
    method : a name in `METHODS`, or names by patterns over the spaces' names, such as
        ``{"layer1*": "permutation"}``; the first that matches counts, other spaces get "cca".
        "average" leaves a space as it is.
    options : keyword parameters of the methods, such as ``{"alpha": 0.3}`` for "zipit"
    mode : "reference" aligns each model with the reference; "universe" all models with each other,
        so that maps compose
    ridge : dimensionless regulariser of CCA, ``gamma = ridge * trace(S) / d``; default 0.3. "auto"
        chooses one for each space from held-out data; a dict gives them by patterns.
    gamma : absolute regulariser, as in the paper; instead of ``ridge``
    reference : the model whose features the others are mapped to
    weights : of the models in the average, normalised to sum to one; default equal. A dict gives
        lists by patterns over the names of spaces, and of parameters that write none:
        ``{"layer3*": [1, 0]}`` keeps the first model's.
    t : merge between the reference (0) and the mean of the others (1), instead of equal weights
    repair : "regression" fits each linear operation to the aligned models' mean, on the kept
        inputs; "variance" restores each channel's mean and variance (REPAIR), which takes less time
        and gives lesser networks; "none" does neither. Default "regression", or "none" with
        norm="paper". Both walk the network once over as many of the kept inputs as fit into 2 GiB
        of activations of all networks; the report says how many.
    norm : "fold" folds BatchNorm into the operation before it and puts it back after; "paper" maps
        gamma and beta and resets the statistics, as the published code does
    moments : the ``moments`` of an earlier result or of `collect`: no data is read
    aligned : the ``aligned`` of an earlier result: nothing is solved
    progress : whether to show a progress bar
    seed : of the choice of inputs kept for repair
    prove : whether to try, on two of the inputs, that what is to be aligned may be (see `spaces`).
        What may not is left as it is and named in the report. With ``moments``, their own ``prove``
        counts.
    device : where all is computed: "cpu", "cuda", "cuda:N", or "auto" for CUDA where it is usable.
        Default: where ``moments`` are if they are given, else where the models are. The merged
        network is where the reference is. Methods that know the CPU only solve there; the report
        names them.

    Returns
    -------
    MergeResult

    Raises
    ------
    ValueError, TypeError
        For arguments that make no sense, models that do not belong together or data that does not
        fit them; the message names the argument, the model, the space or the batch.
    ImportError
        If the method needs a package that is not there.
    numpy.linalg.LinAlgError
        If a space cannot be aligned with this ridge; the message names it and the cure.
    RuntimeError
        If the device cannot be used, or has too little memory.
    """
    originals = arguments.modules(models)
    models = same_architecture(originals)
    reference = arguments.index(reference, "reference", len(models))
    given = Settings(method, options, mode, ridge, gamma, weights, t, repair, norm, seed, prove)
    given = checked(given, len(models), reference)
    options, ridge, gamma, weights = given.options, given.ridge, given.gamma, given.weights
    t, repair, seed = given.t, given.repair or "none", given.seed
    check_results(moments, aligned)
    progress = arguments.flag(progress, "progress")
    pairs = pairs_needed(method, mode)
    if device is None and moments is not None:
        device = moments.device
    where = device_for(models, device)
    memory = memory_of(where)
    watch = Stopwatch(where)
    with watch("collect"):
        if moments is None:
            if data is None:
                message = "data is needed: pass calibration batches, or moments of an earlier merge"
                raise ValueError(message)
            moments = one_pass(
                models,
                arguments.batches(data),
                (),
                where,
                reference=reference,
                pairs=pairs,
                folds=FOLDS,
                progress=progress,
                seed=seed,
                prove=given.prove,
                check=lambda own: refuse_for_spaces(given, own, reference),
            )
        else:
            _check_moments(moments, models, reference, pairs)
            moments = moments.to(where)
            refuse_for_spaces(given, [moments.spaces_of(m) for m in models], reference)
        derived = [moments.spaces_of(model) for model in models]
        distinct = {id(own): own for own in derived}  # models of equal widths share theirs
        there = {key: placed(own, memory) for key, own in distinct.items()}
        every = [there[id(own)] for own in derived]
        found = every[reference]
    shares = shares_of(weights, t, len(models), reference, found)
    with watch("solve"):
        states = [
            folded_state(model, own, memory) for model, own in zip(models, every, strict=True)
        ]
        if aligned is None:
            aligned = align(
                found,
                moments,
                states,
                method=method,
                options=options,
                mode=mode,
                ridge=ridge,
                gamma=gamma,
                reference=reference,
                weights=None if t is not None else {s.name: shares.of_space(s.name) for s in found},
            )
        elif aligned.reference != reference or not _fit(aligned, every, found):
            message = f"aligned is of other spaces, or of reference {aligned.reference}"
            raise ValueError(message)
    aligned = aligned.to(memory)
    # All weight on one model: it is the result, in its own features, if it has the right widths.
    alone = shares.alone
    if alone is not None and shapes_of(models[alone]) != shapes_of(models[reference]):
        alone = None
    maps = aligned.maps
    repaired = RepairResult()
    from_reference: dict[str, str] = {}
    lost: dict[str, str] = {}
    if alone is not None:
        result = copied(originals[alone], f"models[{alone}]").eval()
    else:
        with watch("apply"):
            applied, unmapped = every, states
            if norm == "paper":
                unfolded = {key: unfolded_spaces(own) for key, own in there.items()}
                applied = [unfolded[id(own)] for own in derived]
                unmapped = [
                    folded_state(m, own, memory) for m, own in zip(models, applied, strict=True)
                ]
            target = applied[reference]
            mapped = [
                transform(
                    state, own.spaces, {n: row[i] for n, row in maps.items()}, into=target.spaces
                )
                for i, (state, own) in enumerate(zip(unmapped, applied, strict=True))
            ]
            order = [reference, *(i for i in range(len(models)) if i != reference)]

            def ordered(key: str) -> list[float]:
                return [shares.of_parameter(key)[i] for i in order]

            merged, from_reference = average(
                [mapped[i] for i in order], ordered, _used(models[reference], target)
            )
            holder: nn.Module | None = None
            if models[reference] is not originals[reference]:
                holder = copied(originals[reference], f"models[{reference}]").eval()
                # What a limited tensor can hold is known before the repair, which leaves it alone.
                limited = {key: merged[key] for key in target.program.limits if key in merged}
                held, lost = put_back(holder, limited, [originals[i] for i in order], ordered)
                merged |= {key: value.to(merged[key]) for key, value in held.items()}
        with watch("repair"):
            if norm == "paper":
                reset_statistics(merged, target.program, moments.inputs, where)
            elif repair != "none":
                walked = zip((own.program for own in every), states, strict=True)
                teachers = list(walked) if repair == "regression" else []
                repaired = repair_merged(merged, found, moments, maps, shares, teachers)
        result = copied(models[reference], f"models[{reference}]").eval()
        load_merged(result, merged, target, repaired.statistics)
        if holder is not None:
            lost |= take_plain(holder, result)
            result = holder
    result.zero_grad(set_to_none=True)  # a trained reference may still carry its last gradients
    from_reference |= _differing_extra_state(models, reference)
    used_data = set(aligned.methods.values()) != {"average"} and alone is None
    report = Report(
        method=aligned.method if isinstance(aligned.method, str) else dict(aligned.method),
        options=dict(aligned.options),
        mode=aligned.mode,
        gamma=aligned.gamma,
        reference=reference,
        weights=list(shares.default),
        repair=repair if norm == "fold" else "none",
        norm=norm,
        samples=moments.samples,
        seconds=watch.seconds,
        spaces=[_space_report(space, aligned) for space in found.spaces],
        repaired=repaired.repaired,
        fitted=repaired.fitted,
        skipped=repaired.skipped,
        walked=repaired.walked,
        kept=repaired.kept,
        fixed={space.name: list(space.notes) for space in found.fixed},
        pinned={f"{key} axis {dim}": why for (key, dim), why in found.pinned.items()},
        peak_bytes=watch.peak_bytes,
        device="cpu" if where is None else where.title,
        on_cpu=list(aligned.on_cpu),
        aligned=list(found.aligned_shares()),
        from_reference=from_reference,
        few=_few(found, moments) if used_data else {},
        proved=moments.proved,
        not_held=lost,
    )
    if unused := [key for key, why in from_reference.items() if "traced call" in why]:
        message = (
            f"{_listed(unused)} differ between the models, and the traced call does not use them: "
            f"they are those of models[{reference}], whose features the merged network has"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    if lost:
        message = f"the merged network cannot hold the average of {_listed(lost)} (see the report)"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    if report.aligned[2] > _UNALIGNED and used_data:
        warnings.warn(f"{report.aligned_line()} (see the report)", RuntimeWarning, stacklevel=2)
    return MergeResult(result, aligned, found, moments, report)


def _listed(names: Collection[str]) -> str:
    """The first few names."""
    return ", ".join(map(repr, list(names)[:3])) + (" and others" if len(names) > 3 else "")


def _few(found: Spaces, moments: Collected) -> dict[str, int]:
    """Spaces of which fewer samples were counted than a model has features, and how many."""
    counted = {space.name: moments.matched[space.name] for space in found.spaces}
    return {
        name: count
        for name, folds in counted.items()
        if (count := sum(m.count for m in folds)) < max(folds[0].dims)
    }


def _used(model: nn.Module, spaces: Spaces) -> set[str]:
    """Parameters of the program, under all names by which they are tied."""
    names = set(spaces.program.parameters.values())
    tensors = tensors_of(model, keep_vars=True)
    known = {id(tensors[key]) for key in names if key in tensors}
    return names | {key for key, tensor in tensors.items() if id(tensor) in known}


def _differing_extra_state(models: Sequence[nn.Module], reference: int) -> dict[str, str]:
    """Extra state that models do not agree in, as far as it can be compared."""
    every = [extra_state(model) for model in models]
    differing = {}
    for key, value in every[reference].items():
        try:
            same = all(bool(own.get(key) == value) for own in every)
        except (TypeError, ValueError, RuntimeError):
            same = False
        if not same:
            differing[key] = "extra state, which differs"
    return differing


def _check_moments(
    collected: Collected, models: Sequence[nn.Module], reference: int, pairs: str
) -> None:
    """Raise ValueError unless the statistics are of these models and suffice."""
    if collected.models != len(models):
        message = f"moments are of {collected.models} models, but {len(models)} were given"
        raise ValueError(message)
    if collected.pairs != "all" and collected.reference != reference:
        message = (
            f"moments were collected with reference {collected.reference}, not {reference}; "
            "collect with pairs='all' to be free in the choice"
        )
        raise ValueError(message)
    if pairs == "all" and collected.pairs != "all" and len(models) > 2:
        message = "this mode or method needs moments of all pairs; collect with pairs='all'"
        raise ValueError(message)
    for index, model in enumerate(models):
        if state_fingerprint(tensors_of(model)) != collected.fingerprint["models"][index]:
            message = f"moments belong to other parameters than those of models[{index}]"
            raise ValueError(message)
        program = collected.spaces_of(model).program
        if program_fingerprint(program) != collected.fingerprint["programs"][index]:
            message = f"moments belong to another architecture than that of models[{index}]"
            raise ValueError(message)


def _fit(aligned: Aligned, every: Sequence[Spaces], found: Spaces) -> bool:
    """Whether there is a map of the right sizes for each space and model."""
    sizes = {s.name: [(own[s.name].size, s.size) for own in every] for s in found.spaces}
    return sizes == {
        name: [tuple(m.forward.shape) for m in row] for name, row in aligned.maps.items()
    }


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
    targets = tensors_of(model, keep_vars=True)
    owner: dict[int, str] = {}  # a parameter tied under several names is aligned under one of them
    for key, target in targets.items():
        if id(target) not in owner or key in used:
            owner[id(target)] = key
    with torch.no_grad():
        for key in owner.values():
            targets[key].copy_(state[key])


def _space_report(space: Space, aligned: Aligned) -> SpaceReport:
    others = [s for i, s in enumerate(aligned.solutions[space.name]) if i != aligned.reference]
    return SpaceReport(
        name=space.name,
        size=space.size,
        method=aligned.methods[space.name],
        ridge=aligned.ridges[space.name],
        exact=space.exact,
        notes=list(space.notes),
        correlations=[
            [] if s.correlations is None else [float(c) for c in s.correlations] for s in others
        ],
        details=[s.details for s in others],
        widths=[len(s.feature_map.forward) for s in aligned.solutions[space.name]],
        approximate=_approximate(space, [s.feature_map for s in others]),
    )


def _approximate(space: Space, maps: Sequence[FeatureMap]) -> str:
    """Why mapping a model changes its function; empty if it does not."""
    used = [feature_map.forward for feature_map in maps]
    if others := sorted({len(m) for m in used} - {space.size}):
        return f"maps lead from {', '.join(map(str, others))} to {space.size} features"
    if space.exact == ANY_MAP:
        return ""
    single = all((m != 0).sum(dim).eq(1).all() for m in used for dim in (0, 1))
    if single and space.exact == Effect.POSITIVE.value and all((m >= 0).all() for m in used):
        return ""
    if single and all((m[m != 0] == 1).all() for m in used):
        return ""
    return f"maps mix features, but only {space.exact} would be exact"
