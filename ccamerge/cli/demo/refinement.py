"""What a merge has to be better than: a member trained towards the ensemble on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ccamerge.collection.statistics import Statistics
from ccamerge.config.settings import Mean
from ccamerge.core.device import memory_of, resolve
from ccamerge.fidelity.judging import Judge, predicted
from ccamerge.fidelity.reading import reading_of
from ccamerge.fidelity.refining import Start, Trainer
from ccamerge.graph.networks.network import networks_of
from ccamerge.graph.networks.parameters import same_architecture
from ccamerge.merging.assembling import loaded


def refined_member(
    models: Sequence[nn.Module], statistics: Statistics, ensemble: Mean, seconds: float
) -> nn.Module:
    """The model that is closest to the ensemble, refined as `ccamerge.merge` refines.

    Parameters
    ----------
    models : those of the ensemble, all with equal weight
    statistics : of them; it holds the inputs, those held out for early stopping among them
    ensemble : what the ensemble averages
    seconds : for everything, trials of learning rates included
    """
    known = same_architecture(models)
    every = [statistics.spaces_of(own) for own in known]
    networks = networks_of(known, every, memory_of(resolve(statistics.device)))
    reading = reading_of(networks[0].program, ensemble)
    if reading is None or not statistics.held:
        message = "no inputs are held out to refine by, or the models have no numbers as outputs"
        raise ValueError(message)
    weights = [1 / len(models)] * len(models)
    judge = Judge(networks, statistics.held, reading, weights)
    closest = min(range(len(models)), key=lambda i: float(judge.members[i].mean()))
    examples = [own for own, _ in predicted(networks, statistics.inputs, reading, weights)]
    trainer = Trainer(networks[closest], examples, judge, seed=0, progress=False)
    start = Start(f"models[{closest}]", networks[closest].state)
    trained = trainer.train([start], f"{seconds:.3f} s")
    return loaded(networks, closest, trained.state, statistics).model
