"""How far the merged network is from the ensemble, beside its members: numbers and a sentence."""

from __future__ import annotations

import dataclasses
import statistics

from ccamerge.core.brief import Brief


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

    @property
    def best(self) -> int:
        """The member that is closest to the ensemble."""
        return min(range(len(self.members)), key=self.members.__getitem__)

    @property
    def disappoints(self) -> bool:
        """Whether there is a merge, but a model is handed over, or what is further than most."""
        merges = any(not c.name.startswith("models[") for c in self.candidates)
        itself = self.chosen.startswith("models[")
        return merges and (itself or self.merged > statistics.fmean(self.members))

    def verdict(self) -> str:
        """Closer to the ensemble than any member, than the mean member, or not, and by how much."""
        best, mean = self.members[self.best], statistics.fmean(self.members)
        name = f"models[{self.best}]"
        own = f"{self.merged:.3g}"
        where = f"({self.unit}; {self.inputs} held-out inputs)"
        if self.chosen.startswith("models["):
            text = f"the network handed over is {self.chosen} itself, {own} from the ensemble"
            others = [c for c in self.candidates if not c.name.startswith("models[")]
            if others:
                found = min(others, key=lambda c: c.distance)
                text += f"; the best merge, {found.name}, came out at {found.distance:.3g}"
            return f"{text} {where}"
        if self.merged < best:
            less = 1 - self.merged / best
            sure = "" if best - self.merged > 2 * self.error else ", within chance"
            return (
                f"closer to the ensemble than any member: {own}, {less:.0%} less than {name}, "
                f"the closest ({best:.3g}){sure} {where}"
            )
        more = self.merged / best - 1 if best > 0 else float("inf")
        if self.merged < mean:
            return (
                f"closer to the ensemble than the mean member: {own} beside {mean:.3g}, but not "
                f"than {name} ({best:.3g}), {more:.0%} more {where}"
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
                f"refined for {epochs:g} epochs in {seconds:.1f} s: from {self.progress[0][2]:.3g} "
                f"to {min(step[2] for step in self.progress):.3g} (last {last:.3g})"
            )
        return found
