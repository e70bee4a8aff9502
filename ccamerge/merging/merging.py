"""Merging: align, average, repair, and put normalisation back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ccamerge.collection.collecting import FOLDS, device_for
from ccamerge.collection.data_pass import Pass
from ccamerge.collection.statistics import Pairs, Statistics
from ccamerge.config.settings import (
    DEFAULT_METHOD,
    Ensemble,
    MethodChoice,
    Mode,
    Norm,
    Refine,
    Repair,
    RidgeChoice,
    Select,
    Settings,
    Ties,
    Weights,
)
from ccamerge.core import arguments
from ccamerge.core.brief import Brief
from ccamerge.core.device import Device, DeviceLike, memory_of
from ccamerge.core.renamed import renamed
from ccamerge.core.stopwatch import Stopwatch
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.networks.network import Network, networks_of
from ccamerge.graph.networks.parameters import Parameters, same_architecture
from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.batches import model_device, moved
from ccamerge.graph.tracing.untying import keep_untied, tied_heads, untied
from ccamerge.merging.assembling import assembled
from ccamerge.merging.checking import check_results, check_statistics, checked, refuse_for_spaces
from ccamerge.merging.describing import described, warn
from ccamerge.merging.selecting import selected
from ccamerge.methods.agreement import with_agreement
from ccamerge.methods.alignment import Aligned, align, pairs_needed
from ccamerge.methods.weights import Shares, shares_of
from ccamerge.reporting import plots
from ccamerge.reporting.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class MergeResult(Brief):
    """What `merge` returns.

    Attributes
    ----------
    model : the merged network, in evaluation mode
    aligned : the feature maps and how they were found; pass it as ``aligned=`` to merge again with
        other weights, ``t`` or repair
    spaces : the feature spaces that were aligned
    statistics : what was collected; pass it as ``statistics=`` to merge again without data
    report : what happened, as numbers and as text
    """

    model: nn.Module
    aligned: Aligned
    spaces: Spaces
    statistics: Statistics
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
            "R2": {s.name: s.mean_explained for s in self.report.spaces},
            "chosen": None if self.report.fidelity is None else self.report.fidelity.chosen,
        }

    @property
    def moments(self) -> Statistics:
        """The old name of ``statistics``."""
        warnings.warn("moments is called statistics now", DeprecationWarning, stacklevel=2)
        return self.statistics

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


@renamed(moments="statistics")
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
    ties: Ties = "keep",
    select: Select | None = None,
    ensemble: Ensemble | None = None,
    holdout: float | None = None,
    refine: Refine = False,
    statistics: Statistics | None = None,
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
        ``statistics``.
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
        ``{"layer3*": [1, 0]}`` keeps the first model's. Without a dict queries and keys of
        attention are averaged only where the models agree in them, see
        `ccamerge.methods.agreement`.
    t : merge between the reference (0) and the mean of the others (1), instead of equal weights
    repair : "regression" fits each linear operation to the aligned models' mean, on the kept
        inputs; "variance" restores each channel's mean and variance (REPAIR), which takes less time
        and gives lesser networks; "none" does neither. Default "regression", or "none" with
        norm="paper". Both walk the network once over as many of the kept inputs as fit into 2 GiB
        of activations of all networks; the report says how many.
    norm : "fold" folds BatchNorm into the operation before it and puts it back after; "paper" maps
        gamma and beta and resets the statistics, as the published code does
    ties : "keep" leaves heads that share their weight with an embedding so; where a norm with a
        gain comes before them, its features can then only be permuted. "untie" gives them a weight
        of their own, in copies of the models: all is aligned, and the file grows, as the report
        says.
    select : "fidelity", the default, hands over the candidate that is closest to the models'
        ensemble on the held-out inputs: the merge that is asked for, points between the reference
        and it, the plain average, or a model itself where nothing is closer than the reference by
        more than chance. "none", the default for method="average" with repair="none",
        hands over the merge that is asked for, and says how far it is.
    ensemble : what the models' ensemble averages: "probabilities" of classes, or "outputs"; or a
        function of the outputs (as tuples, lists and dicts) that returns the prediction, whose
        mean is the ensemble's. Default: guessed from the last operation, as the report says.
    holdout : share of the inputs that nothing but this judgement sees; default a tenth, of few
        inputs up to a quarter, 1,024 at most. 0 for none; then nothing is judged or chosen.
    refine : whether to train the network towards the ensemble's predictions of the kept inputs,
        without labels, until the held-out ones get no better: True, or for how long, "60s" in all
        or "5 epochs" after the trials of starts and rates. From the best candidates; with
        ``select="none"`` from the merge that is asked for.
    statistics : the ``statistics`` of an earlier result, or what `collect` returned: no data is
        read
    aligned : the ``aligned`` of an earlier result: nothing is solved
    progress : whether to show a progress bar
    seed : of the choice of inputs kept for repair
    prove : whether to try, on two of the inputs, that what is to be aligned may be (see `spaces`).
        What may not is left as it is and named in the report. With ``statistics``, their own
        ``prove`` counts.
    device : where all is computed: "cpu", "cuda", "cuda:N", or "auto" for CUDA where it is usable.
        Default: where ``statistics`` are if they are given, else where the models are. The merged
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

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> def network():
    ...     return torch.nn.Sequential(
    ...         torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ...     )
    >>> models = [network(), network()]  # trained elsewhere
    >>> data = [torch.randn(32, 4) for _ in range(4)]
    >>> result = merge(models, data, progress=False)
    >>> result.model(data[0]).shape
    torch.Size([32, 3])
    >>> [(space.name, space.method) for space in result.report.spaces]
    [('0', 'cca')]
    >>> other = merge(models, statistics=result.statistics, method="permutation", progress=False)
    >>> other.report.samples
    128
    """
    known = same_architecture(models)
    reference = arguments.index(reference, "reference", len(known))
    settings = checked(
        Settings(
            *(method, options, mode, ridge, gamma, weights, t, repair, norm, ties),
            *(select, ensemble, holdout, refine, seed, prove),
        ),
        len(known),
        reference,
    )
    heads = tied_heads(models[reference]) if settings.ties == "untie" else {}
    if heads:
        models = [untied(model, f"models[{index}]") for index, model in enumerate(models)]
        known = same_architecture(models)
    check_results(statistics, aligned)
    progress = arguments.flag(progress, "progress")
    if device is None and statistics is not None:
        device = statistics.device
    where = device_for([own.plain for own in known], device)
    watch = Stopwatch(where)
    with watch("collect"):
        if statistics is None:
            statistics = _collected(known, data, settings, reference, where, progress)
        else:
            statistics = check_statistics(statistics, known, reference, settings).to(where)
        every = [statistics.spaces_of(own) for own in known]
        networks = networks_of(known, every, memory_of(where))
    found = networks[reference].spaces
    shares = shares_of(settings.weights, settings.t, len(known), reference, found)
    with watch("solve"):
        if aligned is None:
            aligned = _aligned(networks, statistics, settings, reference, shares)
        _check_fit(aligned, networks, reference)
    aligned = aligned.to(memory_of(where))
    shares, chosen = _agreed(shares, aligned, found, settings)
    merged = assembled(networks, statistics, aligned, shares, settings, watch)
    merged, fidelity = selected(
        networks, statistics, merged, shares, settings, reference, watch, progress
    )
    report = described(found, statistics, aligned, merged, shares, settings, watch, fidelity)
    report.chosen.update(chosen)
    if heads:
        report.untied.update((key, value.nbytes) for key, value in heads.items())
        _keep_untied(merged.model, statistics)
    warn(report, aligned, merged)
    return MergeResult(merged.model, aligned, found, statistics, report)


def _keep_untied(model: nn.Module, statistics: Statistics) -> None:
    """Let a model's configuration say that its head is not tied; warn where it cannot."""
    args, kwargs = statistics.call(statistics.inputs[0])
    device = model_device(model)
    call = moved((args, kwargs), device)
    if not keep_untied(model, lambda own: own(*call[0], **call[1])):
        message = (
            "the merged network's head is not tied any more, but its forward does something else "
            "if its configuration says so: save its state_dict, since from_pretrained would tie it"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def _collected(
    models: Sequence[Parameters],
    data: Iterable[Any] | None,
    settings: Settings,
    reference: int,
    device: Device | None,
    progress: bool,
) -> Statistics:
    if data is None:
        message = "data is needed: pass calibration batches, or moments of an earlier merge"
        raise ValueError(message)
    pairs: Pairs = pairs_needed(settings.method, settings.mode)

    def check(every: Sequence[Spaces]) -> None:
        refuse_for_spaces(settings, every, reference)

    seed, prove = settings.seed, settings.prove
    share = settings.holdout or 0.0
    one = Pass(models, [], pairs, reference, FOLDS, device, seed, prove, check, share)
    return one.over(arguments.batches(data), progress)


def _aligned(
    networks: Sequence[Network],
    statistics: Statistics,
    settings: Settings,
    reference: int,
    shares: Shares,
) -> Aligned:
    found = networks[reference].spaces
    own = None if settings.t is not None else {s.name: shares.of_space(s.name) for s in found}
    return align(
        found,
        statistics,
        [network.state for network in networks],
        method=settings.method,
        options=settings.options,
        mode=settings.mode,
        ridge=settings.ridge,
        gamma=settings.gamma,
        reference=reference,
        weights=own,
    )


def _agreed(
    shares: Shares, aligned: Aligned, found: Spaces, settings: Settings
) -> tuple[Shares, dict[str, str]]:
    """Shares in which queries and keys count where the models agree, and where they do not."""
    if isinstance(settings.weights, Mapping):
        return shares, {}
    unmoved = frozenset(name for name, own in aligned.methods.items() if own == "average")
    return with_agreement(shares, found.attention, aligned.solutions, aligned.reference, unmoved)


def _check_fit(aligned: Aligned, networks: Sequence[Network], reference: int) -> None:
    """ValueError unless there is a map of the right sizes for each space and model."""
    every = [network.widths() for network in networks]
    sizes = {name: [(own[name], size) for own in every] for name, size in every[reference].items()}
    found = {name: [tuple(m.forward.shape) for m in row] for name, row in aligned.maps.items()}
    if aligned.reference != reference or sizes != found:
        message = f"aligned is of other spaces, or of reference {aligned.reference}"
        raise ValueError(message)
