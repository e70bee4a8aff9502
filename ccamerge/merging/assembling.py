"""One network out of aligned ones: mapped, averaged, repaired, and loaded into the reference's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ccamerge.collection.statistics import Statistics
from ccamerge.config.settings import Settings
from ccamerge.core.device import resolve
from ccamerge.core.stopwatch import Stopwatch
from ccamerge.graph.maps import MappedParameters, slot_view
from ccamerge.graph.networks.network import Network
from ccamerge.graph.space import Role, Slot, Spaces
from ccamerge.graph.tracing.modules import copied, extra_state, tensors_of
from ccamerge.graph.tracing.plain import put_back, take_plain
from ccamerge.merging.averaging import average
from ccamerge.merging.loading import load_merged, running_statistics
from ccamerge.merging.paper import reset_statistics, unfolded_spaces
from ccamerge.methods.alignment import Aligned
from ccamerge.methods.weights import Shares
from ccamerge.repair.repairing import RepairResult, repair_merged


@dataclasses.dataclass
class Merged:
    """A merged network in evaluation mode, and what became of its parts.

    Attributes
    ----------
    from_reference : what was taken from the reference, and why
    not_held : what the network's reparametrisations cannot hold of the average, and why
    alone : whether it is one of the models, since that has all the weight
    state : parameters of the reference's folded program, where they make the network
    """

    model: nn.Module
    from_reference: dict[str, str]
    not_held: dict[str, str] = dataclasses.field(default_factory=dict)
    repaired: RepairResult = dataclasses.field(default_factory=RepairResult)
    alone: bool = False
    state: dict[str, Tensor] | None = None


def member(networks: Sequence[Network], index: int) -> Merged:
    """One of the models itself."""
    model = copied(networks[index].parameters.model, f"models[{index}]").eval()
    model.zero_grad(set_to_none=True)
    return Merged(model, {}, alone=True)


def loaded(
    networks: Sequence[Network],
    reference: int,
    state: dict[str, Tensor],
    statistics: Statistics,
) -> Merged:
    """A network of the reference's architecture with parameters of its folded program.

    BatchNorms that are put back get their running statistics from the kept inputs.
    """
    network = networks[reference]
    device = resolve(statistics.device)
    running = running_statistics(network.spaces, state, statistics.inputs, device)
    model, not_held = _in_module(network, f"models[{reference}]", state, network.spaces, running)
    return Merged(model, {}, not_held, state=state)


def _in_module(
    network: Network,
    who: str,
    state: dict[str, Tensor],
    spaces: Spaces,
    running: Mapping[str, tuple[Tensor, Tensor]],
    holder: nn.Module | None = None,
) -> tuple[nn.Module, dict[str, str]]:
    """A copy of a network with other parameters, in evaluation mode, and what it cannot hold.

    ``holder`` is a copy of the network as it was given, if there is one that has some already.
    """
    model = copied(network.model, who).eval()
    load_merged(model, state, spaces, running)
    not_held: dict[str, str] = {}
    original = network.parameters.model
    if original is not network.model:
        holder = copied(original, who).eval() if holder is None else holder
        not_held = take_plain(holder, model)
        model = holder
    model.zero_grad(set_to_none=True)  # a trained reference may still carry gradients
    return model, not_held


def _reference_first(reference: int, count: int) -> list[int]:
    return [reference, *(i for i in range(count) if i != reference)]


def plain_average(networks: Sequence[Network], reference: int, shares: Shares) -> dict[str, Tensor]:
    """The mean of the models' parameters as they stand."""
    order = _reference_first(reference, len(networks))
    states = [networks[i].state for i in order]
    first = networks[reference]
    return average(states, lambda _: [shares.default[i] for i in order], _used(first))[0]


def assembled(
    networks: Sequence[Network],
    statistics: Statistics,
    aligned: Aligned,
    shares: Shares,
    settings: Settings,
    watch: Stopwatch,
) -> Merged:
    """Merge networks by the maps between their features.

    A model that has all the weight is the result in its own features, if it has the right widths.
    """
    reference = networks[aligned.reference]
    alone = shares.alone
    if alone is not None and networks[alone].parameters.shapes == reference.parameters.shapes:
        merged = member(networks, alone)
    else:
        merged = _averaged(networks, statistics, aligned, shares, settings, watch)
    merged.from_reference |= _differing_extra_state(networks, aligned.reference)
    return merged


def _averaged(
    networks: Sequence[Network],
    statistics: Statistics,
    aligned: Aligned,
    shares: Shares,
    settings: Settings,
    watch: Stopwatch,
) -> Merged:
    first, who = aligned.reference, f"models[{aligned.reference}]"
    order = _reference_first(first, len(networks))
    repaired = RepairResult()
    holder: nn.Module | None = None
    not_held: dict[str, str] = {}

    def ordered(key: str) -> list[float]:
        return [shares.of_parameter(key)[i] for i in order]

    with watch("apply"):
        applied = _unfolded(networks) if settings.norm == "paper" else networks
        target = applied[first].spaces
        states = [_mapped(applied[i], aligned, i, applied[first]) for i in order]
        merged, from_reference = average(states, ordered, _used(applied[first]))
        _by_spaces(merged, states, target, shares, order)
        original = networks[first].parameters.model
        if original is not networks[first].model:
            holder = copied(original, who).eval()
            # What a limited tensor can hold is known before the repair, which leaves it alone.
            limited = {key: merged[key] for key in target.program.limits if key in merged}
            originals = [networks[i].parameters.model for i in order]
            held, not_held = put_back(holder, limited, originals, ordered)
            merged |= {key: value.to(merged[key]) for key, value in held.items()}
    with watch("repair"):
        if settings.norm == "paper":
            device = resolve(statistics.device)
            reset_statistics(merged, target.program, statistics.inputs, device)
        elif settings.repair != "none":
            teachers = networks if settings.repair == "regression" else []
            repaired = repair_merged(
                merged,
                networks[first].spaces,
                statistics,
                aligned.maps,
                shares,
                [(network.program, network.state) for network in teachers],
            )
    model, lost = _in_module(networks[first], who, merged, target, repaired.statistics, holder)
    not_held |= lost
    state = None if settings.norm == "paper" else merged
    return Merged(model, from_reference, not_held, repaired, state=state)


def _by_spaces(
    merged: dict[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    spaces: Spaces,
    shares: Shares,
    order: Sequence[int],
) -> None:
    """Average parts of parameters by the weights of the space that they write, where these differ.

    A parameter may write several spaces, as those of queries, keys and values.
    """
    parts: dict[str, list[tuple[Slot, int, tuple[float, ...]]]] = {}
    for space in spaces.spaces:
        row = shares.of_space(space.name)
        for slot in space.slots:
            if slot.role is not Role.READ and row != shares.of_parameter(slot.parameter):
                parts.setdefault(slot.parameter, []).append((slot, space.size, row))
    for key, own in parts.items():
        values = [state[key] for state in states]
        total = merged[key].double()
        for slot, size, row in own:
            view = slot_view(total, slot, size)
            view.zero_()
            for value, model in zip(values, order, strict=True):
                view.add_(slot_view(value.double(), slot, size), alpha=row[model])
        merged[key] = total.to(merged[key].dtype)


def _mapped(network: Network, aligned: Aligned, index: int, into: Network) -> Mapping[str, Tensor]:
    """A model's parameters in the features of the reference."""
    maps = {name: row[index] for name, row in aligned.maps.items()}
    spaces, there = network.spaces.spaces, into.spaces.spaces
    return MappedParameters(network.state, spaces, maps, into=there)


def _unfolded(networks: Sequence[Network]) -> list[Network]:
    """The same networks with their normalisation as it is; those of equal widths share spaces."""
    there = {id(own): unfolded_spaces(own) for own in (network.spaces for network in networks)}
    return [dataclasses.replace(network, spaces=there[id(network.spaces)]) for network in networks]


def _used(network: Network) -> set[str]:
    """Parameters of the program, under all names by which they are tied."""
    names = set(network.program.parameters.values())
    tensors = tensors_of(network.model, keep_vars=True)
    known = {id(tensors[key]) for key in names if key in tensors}
    return names | {key for key, tensor in tensors.items() if id(tensor) in known}


def _differing_extra_state(networks: Sequence[Network], reference: int) -> dict[str, str]:
    """Extra state that models do not agree in, as far as it can be compared."""
    every = [extra_state(network.model) for network in networks]
    differing = {}
    for key, value in every[reference].items():
        try:
            same = all(bool(own.get(key) == value) for own in every)
        except (TypeError, ValueError, RuntimeError):
            same = False
        if not same:
            differing[key] = "extra state, which differs"
    return differing
