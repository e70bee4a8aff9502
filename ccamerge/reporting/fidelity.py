"""How far the merged network is from the ensemble, beside its members: numbers and a sentence."""

from __future__ import annotations

import dataclasses
import math
import statistics

from ccamerge.core.brief import Brief

_SAME = 1e-4
"""Relative difference of distances that is rounding; its square is that of distances of nothing."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network that might have been handed over.

    ``distance`` is its mean distance from the ensemble; ``t`` says of a point between the reference
    (0) and the merge that was asked for (1) where it lies.
    """

    name: str
    distance: float
    t: float | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Fidelity(Brief):
    """Mean distances from the ensemble of the models, on inputs held out of the merge.

    Attributes
    ----------
    unit : of the distances
    reading : how outputs are read as predictions, and where that comes from
    inputs : the number of inputs
    members : of each model
    average : of the plain average of the models' parameters; None if they differ in shape
    merged : of the network that is handed over
    error : standard error of the difference between that and the closest member
    reference : which model's features the merged network has
    chosen : its name among the candidates
    candidates : what was chosen among, the merge that was asked for included
    doubt : why these inputs do not tell enough; empty if they do
    progress : of a refinement: epochs, seconds and distance of each step
    trained : the number of inputs that a refinement used: those whose predictions fit into memory
    """

    unit: str
    reading: str
    inputs: int
    members: list[float]
    average: float | None
    merged: float
    error: float
    reference: int
    chosen: str
    candidates: list[Candidate]
    doubt: str = ""
    progress: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)
    trained: int = 0

    @property
    def best(self) -> int:
        """The member that is closest to the ensemble."""
        return min(range(len(self.members)), key=self.members.__getitem__)

    @property
    def disappoints(self) -> bool:
        """Whether there is a merge, but a model is handed over, or what is further than most."""
        merges = any(not is_model(c.name) for c in self.candidates)
        further = self.merged > statistics.fmean(self.members) and not self._as_close
        return merges and (is_model(self.chosen) or further)

    @property
    def _as_close(self) -> bool:
        """Whether the network is as close as the closest member, but for rounding."""
        return math.isclose(self.merged, self.members[self.best], rel_tol=_SAME, abs_tol=1e-7)

    def verdict(self) -> str:
        """Closer to the ensemble than any member, than the mean member, or not, and by how much."""
        best, mean = self.members[self.best], statistics.fmean(self.members)
        name = f"models[{self.best}]"
        own = f"{self.merged:.3g}"
        where = f"({self.unit}; {self.inputs} held-out inputs)"
        if is_model(self.chosen):
            text = f"the network handed over is {self.chosen} itself, {own} from the ensemble"
            others = [c for c in self.candidates if not is_model(c.name)]
            if others:
                found = min(others, key=lambda c: c.distance)
                text += f"; the best merge, {found.name}, came out at {found.distance:.3g}"
            return f"{text} {where}"
        if self._as_close:
            return f"as close to the ensemble as {name}, the closest: {own} {where}"
        if self.merged < best:
            less = 1 - self.merged / best
            sure = "" if best - self.merged > 2 * self.error else ", within chance"
            return (
                f"closer to the ensemble than any member: {own}, {less:.0%} less than {name}, "
                f"the closest ({best:.3g}){sure} {where}"
            )
        if self.merged < mean:
            more = f", {self.merged / best - 1:.0%} more" if best > 0 else ""
            return (
                f"closer to the ensemble than the mean member: {own} beside {mean:.3g}, but not "
                f"than {name} ({best:.3g}){more} {where}"
            )
        return (
            f"FURTHER from the ensemble than the mean member: {own} beside {mean:.3g}; {name} is "
            f"closest with {best:.3g} {where}"
        )

    def lines(self) -> list[str]:
        """What a report says, a line each."""
        found = [f"fidelity: {self.verdict()}"]
        if self.doubt:
            found.append(f"fidelity is in doubt: {self.doubt}")
        shown = sorted(self.candidates, key=lambda c: c.distance)
        if shown:
            listed = ", ".join(f"{c.name} {c.distance:.3g}" for c in shown)
            found.append(f"chosen: {self.chosen}, of {listed}")
        found.append(f"outputs are read as {self.reading}")
        if self.progress:
            epochs, seconds, last = self.progress[-1]
            found.append(
                f"refined for {epochs:g} epochs of {self.trained} inputs in {seconds:.1f} s: "
                f"from {self.progress[0][2]:.3g} to {min(step[2] for step in self.progress):.3g} "
                f"(last {last:.3g})"
            )
        if is_model(self.chosen) and any(not is_model(c.name) for c in self.candidates):
            found.append("what else is said here is of the merge, which is not handed over")
        return found


def is_model(name: str) -> bool:
    """Whether a candidate is one of the models, as it was given."""
    return name.startswith("models[") and name.endswith("]")
