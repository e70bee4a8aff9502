"""Ensembles of the zoo: their networks, unlabelled inputs, and how far a network is from them."""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import io
import lzma
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from types import ModuleType
from typing import Any

import cases
import language
import numpy as np
import torch
from ensemble_networks import ANI, ELEMENTS, HARTREE, ANIByElement, Pangolin, element_network
from safetensors.torch import load_file
from torch import Tensor, nn

import ccamerge
from ccamerge.cli.demo.networks import ResNet20

Inputs = Tensor | dict[str, Tensor]
"""Samples first; a dict by the names of a network's arguments."""

Wanted = dict[str, tuple[str, float | str]]

Scores = dict[str, float | list[float]]
"""Of one network on the test inputs; a list has one value for each class."""

MEMBER, AVERAGE = "a member (mean)", "average"
"""Whose scores others may be wanted to reach."""

SMALLEST = 1e-12
"""Probability below which logarithms are not taken."""


def samples(inputs: Inputs) -> int:
    return len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)


def chosen(inputs: Inputs, which: Tensor) -> Inputs:
    if isinstance(inputs, dict):
        return {key: value[which] for key, value in inputs.items()}
    return inputs[which]


def batches(inputs: Inputs, size: int) -> list[Inputs]:
    return [chosen(inputs, which) for which in torch.arange(samples(inputs)).split(size)]


def divergence(probabilities: Tensor, target: Tensor, dim: int) -> Tensor:
    """KL of probabilities from the target's, in nats, mean over everything else."""
    logarithms = [p.clamp_min(SMALLEST).log() for p in (target, probabilities)]
    return (target * (logarithms[0] - logarithms[1])).sum(dim).mean()


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """What an ensemble predicts.

    ``batch`` samples are in a batch of a merge, ``step`` in one of training at the rate ``rate``.
    No choice sees ``test``.
    """

    inputs: Inputs
    test: Inputs
    batch: int
    step: int
    rate: float

    @abc.abstractmethod
    def predict(self, model: nn.Module, batch: Inputs) -> Tensor:
        """What is averaged over the members: the ensemble's prediction is the mean."""

    @abc.abstractmethod
    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number to be small: how far predictions are from the ensemble's."""

    @abc.abstractmethod
    def scores(self, prediction: Tensor, ensemble: Tensor) -> Scores:
        """What users ask of predictions on all test inputs."""

    def merge(self, members: Sequence[nn.Module], **settings: Any) -> nn.Module:
        data = batches(self.inputs, self.batch)
        return ccamerge.merge(members, data, progress=False, **settings).model

    def predictions(self, model: nn.Module, inputs: Inputs) -> Tensor:
        with torch.inference_mode():
            return torch.cat([self.predict(model, part) for part in batches(inputs, self.batch)])


@dataclasses.dataclass(frozen=True)
class Case:
    """An ensemble, and for scores by name what a merged network is wanted to reach.

    What is wanted is said as "least" or "most", and a value or whose value.
    """

    name: str
    task: Task
    members: list[nn.Module]
    wanted: Wanted = dataclasses.field(default_factory=dict)


# --- images ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Images(Task):
    """Probabilities of CIFAR-10's classes, (B, 10)."""

    labels: Tensor
    by_class: bool = False

    def predict(self, model: nn.Module, batch: Inputs) -> Tensor:
        return model(batch).softmax(1)

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return divergence(prediction, target, 1)

    def scores(self, prediction: Tensor, ensemble: Tensor) -> Scores:
        right = (prediction.argmax(1) == self.labels).double()
        found: Scores = {
            "accuracy, %": 100 * right.mean().item(),
            "KL from the ensemble": self.distance(prediction, ensemble).item(),
        }
        if self.by_class:
            classes = range(prediction.shape[1])
            found["by class"] = [100 * right[self.labels == c].mean().item() for c in classes]
        return found


def cifar10() -> ModuleType:
    loader = cases.SHARED / "data" / "cifar10.py"
    spec = importlib.util.spec_from_file_location("cifar10", loader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images(quick: bool, by_class: bool = False) -> Images:
    module = cifar10()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (module.MEAN, module.STD))

    def normalised(split: str, count: int) -> tuple[Tensor, Tensor]:
        x, y = module.load(split, count)
        pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
        return ((pixels - mean) / std).contiguous(), torch.from_numpy(y).long()

    inputs, _ = normalised("train", 1000 if quick else 5000)
    test, labels = normalised("test", 2000 if quick else 10_000)
    return Images(inputs, test, 250, 100, 1e-4, labels, by_class)


def resnet(name: str) -> nn.Module:
    model = ResNet20()
    file = cases.SHARED / "zoo" / f"resnet20-w1-{name}.safetensors"
    missing, unexpected = model.load_state_dict(load_file(file), strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert not unexpected
    return model.eval()


def seeds(quick: bool) -> Iterator[Case]:
    task = images(quick)
    for count in (2, 4):
        members = [resnet(f"s{seed}") for seed in range(count)]
        wanted: Wanted = {"accuracy, %": ("least", 84.4)}
        yield Case(f"ResNet20, {count} seeds", task, members, wanted)


def split(quick: bool) -> Iterator[Case]:
    members = [resnet(f"split{half}") for half in range(2)]
    wanted: Wanted = {"accuracy, %": ("least", 76.5)}
    yield Case("ResNet20, class-skewed halves", images(quick, by_class=True), members, wanted)


# --- molecules ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Potentials(Task):
    """Energies of all atoms (B, A) in kcal/mol; what users ask for is a molecule's, their sum."""

    def predict(self, model: nn.Module, batch: Inputs) -> Tensor:
        assert isinstance(model, ANI)
        assert isinstance(batch, dict)
        return HARTREE * model.atoms(batch["species"], batch["aevs"])

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).sum(1).square().mean()

    def scores(self, prediction: Tensor, ensemble: Tensor) -> Scores:
        assert isinstance(self.test, dict)
        off = prediction - ensemble
        found: Scores = {"a molecule, kcal/mol": off.sum(1).square().mean().sqrt().item()}
        for index, element in enumerate(ELEMENTS):
            own = off[self.test["species"] == index]
            found[f"an atom of {element}"] = own.square().mean().sqrt().item()
        return found


@dataclasses.dataclass(frozen=True)
class Elements(Potentials):
    """The networks of the elements merged one by one, each from its own atoms."""

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().sum(1).mean()

    def merge(self, members: Sequence[nn.Module], **settings: Any) -> nn.Module:
        assert isinstance(self.inputs, dict)
        merged = {}
        for index, element in enumerate(ELEMENTS):
            networks = [member.get_submodule(f"networks.{element}") for member in members]
            atoms = self.inputs["aevs"][self.inputs["species"] == index]
            done = ccamerge.merge(networks, atoms.split(500), progress=False, **settings)
            merged[element] = done.model
        return ANI(merged).eval()


def unpacked(name: str) -> dict[str, np.ndarray]:
    packed = (cases.SHARED / "data" / f"{name}.npz.xz").read_bytes()
    with np.load(io.BytesIO(lzma.decompress(packed))) as pack:
        return {key: pack[key] for key in pack.files}


def molecules(name: str) -> dict[str, Tensor]:
    """All molecules of a file, padded to the largest."""
    pack = unpacked(name)
    owner = np.concatenate([pack[f"molecule_{element}"] for element in ELEMENTS])
    aevs = np.concatenate([pack[f"aev_{element}"] for element in ELEMENTS])
    kinds = np.concatenate(
        [np.full(len(pack[f"molecule_{e}"]), index) for index, e in enumerate(ELEMENTS)]
    )
    order = np.argsort(owner, kind="stable")
    owner, aevs, kinds = owner[order], aevs[order], kinds[order]
    sizes = np.bincount(owner)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    species = torch.full((len(sizes), int(sizes.max())), -1)
    features = torch.zeros(*species.shape, aevs.shape[1])
    species[owner, place] = torch.from_numpy(kinds)
    features[owner, place] = torch.from_numpy(aevs).float()
    return {"species": species, "aevs": features}


def potential(index: int, form: type[ANI] = ANI) -> ANI:
    state = load_file(cases.SHARED / "zoo" / "ani-1ccx" / f"network{index}.safetensors")
    networks = {}
    for element in ELEMENTS:
        weights = [state[f"{element}.{layer}.weight"] for layer in (0, 2, 4, 6)]
        widths = [weights[0].shape[1], *(len(weight) for weight in weights)]
        networks[element] = element_network(widths)
    model = form(networks)
    model.load_state_dict({f"networks.{key}": value for key, value in state.items()})
    return model.eval()


def potentials(quick: bool) -> Iterator[Case]:
    """One module that takes molecules: dense, and as users run it."""
    yield from _potentials(Potentials, "one module", (2, 8) if quick else (2, 4, 8), ANI)
    yield from _potentials(Potentials, "atoms picked by element", (2,), ANIByElement)


def elements(quick: bool) -> Iterator[Case]:
    yield from _potentials(Elements, "elements apart", (2, 8) if quick else (2, 4, 8), ANI)


def _potentials(
    kind: type[Potentials], name: str, counts: Sequence[int], form: type[ANI]
) -> Iterator[Case]:
    task = kind(molecules("ani-calibration"), molecules("ani-test"), 100, 50, 1e-4)
    for count in counts:
        members: list[nn.Module] = [potential(index, form) for index in range(count)]
        wanted: Wanted = {}
        if count == 8 and kind is Elements:
            wanted = {f"an atom of {element}": ("most", MEMBER) for element in ELEMENTS}
        elif count == 8:
            wanted = {"a molecule, kcal/mol": ("most", 1.0)}
        yield Case(f"ANI-1ccx, {name}, N = {count}", task, members, wanted)


# --- DNA ------------------------------------------------------------------------------------------

WINDOW, INNER = 15_000, 5_000
SITE = 0.5
"""Probability of the ensemble from which a position is one of its sites."""

SPLICE = 1
"""The channel that index 0 is used through, of the first head's two."""


@dataclasses.dataclass(frozen=True)
class Splicing(Task):
    """Probabilities of the first head, (B, 2, positions)."""

    def predict(self, model: nn.Module, batch: Inputs) -> Tensor:
        return model(batch)[:, :2]

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return divergence(prediction, target, 1)

    def scores(self, prediction: Tensor, ensemble: Tensor) -> Scores:
        found, wanted = prediction[:, SPLICE].double(), ensemble[:, SPLICE].double()
        sites = wanted >= SITE
        both = torch.stack([found.flatten(), wanted.flatten()])
        return {
            "correlation": torch.corrcoef(both)[0, 1].item(),
            "error at sites": (found - wanted)[sites].abs().mean().item(),
            "KL from the ensemble": self.distance(prediction, ensemble).item(),
        }


def windows(split: str) -> Tensor:
    """All windows of both strands, (n, 4, WINDOW), that an inner part of a sequence fills."""
    channels = np.zeros((256, 4), np.float32)
    channels[[ord(base) for base in "ACGT"]] = np.eye(4)
    found = []
    for key, sequence in unpacked("dna").items():
        if not key.startswith(split):
            continue
        known = channels[sequence].T
        inner = -(-known.shape[1] // INNER)
        around = (WINDOW - INNER) // 2
        ends = (around, around + inner * INNER - known.shape[1])
        padded = np.pad(known, ((0, 0), ends))
        for start in range(0, inner * INNER, INNER):
            strand = padded[:, start : start + WINDOW]
            found += [strand, strand[::-1, ::-1]]  # the complement is the alphabet turned round
    return torch.from_numpy(np.stack(found))


def pangolin(quick: bool) -> Iterator[Case]:
    """Every set of replicates of index 0 that the zoo has."""
    generator = torch.Generator().manual_seed(0)

    def some(split: str, count: int | None) -> Tensor:
        every = windows(split)
        return every[torch.randperm(len(every), generator=generator)[:count]]

    inputs, test = (
        some("calibration", 6 if quick else 20),
        some("test", 10 if quick else None),
    )
    task = Splicing(inputs, test, 2, 1, 1e-4)
    sets: dict[str, list[nn.Module]] = {}
    for file in sorted((cases.SHARED / "zoo" / "pangolin").glob("index0*-replicate*.safetensors")):
        model = Pangolin()
        model.load_state_dict(load_file(file))
        sets.setdefault(file.name.partition("-replicate")[0], []).append(model.eval())
    for name, members in sets.items():
        wanted: Wanted = {"correlation": ("least", 0.990)}
        yield Case(f"Pangolin {name}, N = {len(members)}", task, members, wanted)


# --- characters -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Characters(Task):
    """Probabilities of the next character, (B, T, V)."""

    following: Tensor

    def predict(self, model: nn.Module, batch: Inputs) -> Tensor:
        return model(batch).logits.softmax(-1)

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return divergence(prediction, target, -1)

    def scores(self, prediction: Tensor, ensemble: Tensor) -> Scores:
        right = prediction.gather(-1, self.following.unsqueeze(-1))
        return {
            "loss, nats": -right.clamp_min(SMALLEST).log().mean().item(),
            "KL from the ensemble": self.distance(prediction, ensemble).item(),
        }


def characters(text: language.Text, quick: bool) -> Characters:
    shrunk = 4 if quick else 1
    inputs = torch.cat(text.calibration(language.CALIBRATION // shrunk))
    pairs = text.validation(language.WINDOWS // shrunk)
    test, following = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return Characters(inputs, test, language.BATCH, 16, 3e-4, following)


def llama(quick: bool) -> Iterator[Case]:
    text = language.shakespeare()
    names = [name for name in language.zoo_names() if name.startswith("llama")]
    models = [member.model for member in language.members(names, text)]
    task = characters(text, quick)
    for pair in list(combinations(range(len(models)), 2))[: 1 if quick else None]:
        name = " + ".join(names[index] for index in pair)
        yield Case(name, task, [models[index] for index in pair], {"loss, nats": ("most", 1.545)})


def tuned(quick: bool) -> Iterator[Case]:
    """Copies of one checkpoint, each trained further on its own third of the text."""
    text = language.shakespeare()
    (ancestor,) = language.members(["llama-s0"], text)
    steps = 30 if quick else language.STEPS
    members = [
        language.fine_tuned(ancestor.model, part, steps, seed)
        for seed, part in enumerate(text.train.chunk(language.COPIES))
    ]
    wanted: Wanted = {"loss, nats": ("most", AVERAGE)}
    yield Case(f"llama-s0, {len(members)} fine-tunes", characters(text, quick), members, wanted)


PARTS: dict[str, Callable[[bool], Iterator[Case]]] = {
    "pangolin": pangolin,
    "ani": potentials,
    "ani-elements": elements,
    "seeds": seeds,
    "split": split,
    "llama": llama,
    "tuned": tuned,
}
"""Cases by the name of a part; True for fewer and smaller ones."""
