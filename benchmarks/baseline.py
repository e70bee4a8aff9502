"""What the published CCA Merge code does, written in plain torch float32: the side to beat.

Nothing here imports ccamerge. The operations, their order and what is repeated are those of the
authors' code (github.com/shoroi/align-n-merge at 75d7066, for Horoi et al., ICML 2024); the text is
our own. Where that code does more than merging needs, the cheaper reading is taken, so that the
comparison errs in the baseline's favour: half precision, evaluation and printing are left out, and
the reset of the base models' statistics before merging is an option that is off.

Features are kept as ``(C, n)``, a row per channel, models stacked along the rows.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

GAMMA = 0.1
"""The published default of the absolute regulariser."""

GAMMAS = tuple(10.0**e for e in range(7, -7, -1))
"""The fourteen values that the published search goes through."""


def rows_of(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(C, B H W)``, a copy; what each hook does."""
    return x.permute(1, 0, 2, 3).reshape(x.shape[1], -1)


class CovarianceMetric:
    """Running ``E[f f^T]``, ``E[f]`` and the (unused) standard deviation of stacked features."""

    def __init__(self) -> None:
        self.std: Tensor | None = None
        self.mean: Tensor | None = None
        self.outer: Tensor | None = None

    def update(self, batch: int, *features: Tensor) -> None:
        """Add a batch; features ``(C, n)`` of each model."""
        stacked = torch.nan_to_num(torch.cat(features), 0, 0, 0)
        std, mean = stacked.std(dim=1), stacked.mean(dim=1)
        outer = (stacked @ stacked.T) / stacked.shape[1]
        if self.std is None or self.mean is None or self.outer is None:
            self.std, self.mean = torch.zeros_like(std), torch.zeros_like(mean)
            self.outer = torch.zeros_like(outer)
        self.std += std * batch
        self.mean += mean * batch
        self.outer += outer * batch

    def finalize(self, samples: int) -> Tensor:
        """``E[f f^T] - E[f] E[f]^T``, ``(N C, N C)``; ``samples`` is the sum of the batches."""
        assert self.outer is not None
        assert self.mean is not None
        mean = self.mean / samples
        return self.outer / samples - torch.outer(mean, mean)


class MeanMetric:
    """Running mean of absolute features, which the published settings ask for and CCA ignores."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None

    def update(self, batch: int, *features: Tensor) -> None:
        """Add a batch; features ``(C, n)`` of each model."""
        mean = torch.cat(features).abs().mean(dim=1)
        self.mean = (torch.zeros_like(mean) if self.mean is None else self.mean) + mean * batch


class Statistics:
    """Both metrics at one node."""

    def __init__(self) -> None:
        self.covariance, self.mean = CovarianceMetric(), MeanMetric()

    def update(self, batch: int, features: Sequence[Tensor]) -> None:
        """Add a batch; features ``(C, n)`` of each model."""
        self.covariance.update(batch, *features)
        self.mean.update(batch, *features)


def collect_maps(batches: Iterable[Sequence[Tensor]]) -> Tensor:
    """Covariance ``(N C, N C)`` of feature maps ``(B, C, H, W)``, a list of models each batch."""
    statistics, samples = Statistics(), 0
    for features in batches:
        size = features[0].shape[0]
        statistics.update(size, [rows_of(x) for x in features])
        samples += size
    return statistics.covariance.finalize(samples)


def pair_maps(sxx: Tensor, syy: Tensor, sxy: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the map ``(q, p)`` from Y's features to X's and its inverse ``(p, q)``; three SVDs."""
    eye = torch.eye(len(sxx), dtype=sxx.dtype, device=sxx.device)
    sxx, syy = sxx + gamma * eye, syy + gamma * eye
    u, s, v = torch.svd(sxx)
    x_root, x_inverse_root = (u @ torch.diag(s**e) @ v.T for e in (0.5, -0.5))
    u, s, v = torch.svd(syy)
    y_root, y_inverse_root = (u @ torch.diag(s**e) @ v.T for e in (0.5, -0.5))
    u, s, v = torch.svd(x_inverse_root @ sxy @ y_inverse_root)
    return y_inverse_root @ v @ u.T @ x_root.T, x_inverse_root @ u @ v.T @ y_root.T


def all_maps(covariance: Tensor, models: int, gamma: float) -> list[tuple[Tensor, Tensor]]:
    """Map and inverse of every model to the first, from the covariance of stacked features."""
    d = len(covariance) // models
    found = [(torch.eye(d, device=covariance.device),) * 2]
    for i in range(1, models):
        mine = slice(i * d, (i + 1) * d)
        sxx, sxy = covariance[:d, :d], covariance[:d, mine]
        found.append(pair_maps(sxx, covariance[mine, mine], sxy, gamma))
    return found


@dataclasses.dataclass(frozen=True)
class FeatureNode:
    """A place of the network whose features are matched.

    ``at`` is the module whose input (or output, for ``after``) is the feature map; ``writers`` are
    the (convolution, BatchNorm) pairs that end there, ``readers`` the layers that start there. A
    convolution without a BatchNorm has a bias.
    """

    name: str
    at: str
    after: bool
    writers: tuple[tuple[str, str | None], ...]
    readers: tuple[str, ...]


def resnet20_nodes() -> list[FeatureNode]:
    """Return the twelve nodes of the published graph of ResNet20, in the network's order.

    The input of each block's second convolution, and the residual stream once a stage: where the
    next stage's projection, or the pooling, reads it.
    """
    nodes = []
    for stage in (1, 2, 3):
        blocks = [f"layer{stage}.{i}" for i in range(3)]
        nodes += [
            FeatureNode(
                f"{b}.inner", f"{b}.conv2", False, ((f"{b}.conv1", f"{b}.bn1"),), (f"{b}.conv2",)
            )
            for b in blocks
        ]
        writers = [(f"{b}.conv2", f"{b}.bn2") for b in blocks]
        readers = [f"{b}.conv1" for b in blocks]
        if stage == 1:
            writers.insert(0, ("conv1", "bn1"))
        else:
            writers.insert(0, (f"{blocks[0]}.shortcut.0", f"{blocks[0]}.shortcut.1"))
            readers.pop(0)
        if stage < 3:
            readers += [f"layer{stage + 1}.0.conv1", f"layer{stage + 1}.0.shortcut.0"]
            at, after = f"layer{stage + 1}.0.shortcut.0", False
        else:
            readers += ["linear"]
            at, after = "layer3", True  # the input of the pooling
        nodes.append(FeatureNode(f"layer{stage}", at, after, tuple(writers), tuple(readers)))
    return nodes


def hook(model: nn.Module, nodes: Sequence[FeatureNode], store: dict[str, Tensor]) -> list:
    """Have every forward pass leave each node's features ``(C, n)`` in ``store``."""

    def before(name: str) -> Callable:
        return lambda module, inputs: store.__setitem__(name, rows_of(inputs[0].detach()))

    def after(name: str) -> Callable:
        return lambda module, inputs, output: store.__setitem__(name, rows_of(output.detach()))

    modules = dict(model.named_modules())
    return [
        modules[n.at].register_forward_hook(after(n.name))
        if n.after
        else modules[n.at].register_forward_pre_hook(before(n.name))
        for n in nodes
    ]


def collect(
    models: Sequence[nn.Module], nodes: Sequence[FeatureNode], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """One pass: the covariance ``(N C, N C)`` at each node."""
    stores: list[dict[str, Tensor]] = [{} for _ in models]
    handles = [h for m, store in zip(models, stores, strict=True) for h in hook(m, nodes, store)]
    statistics = {n.name: Statistics() for n in nodes}
    samples = 0
    with torch.no_grad():
        for x in batches:
            samples += len(x)
            for model in models:
                model.eval()(x)
            for name, node_statistics in statistics.items():
                node_statistics.update(len(x), [store[name] for store in stores])
    for handle in handles:
        handle.remove()
    return {name: s.covariance.finalize(samples) for name, s in statistics.items()}


def transform(model: nn.Module, node: FeatureNode, forward: Tensor, inverse: Tensor) -> None:
    """Put one model's layers around a node into the reference's features, in place."""
    modules = dict(model.named_modules())
    merge, unmerge = forward.T, inverse.T
    for convolution, norm in node.writers:
        weight = modules[convolution].weight
        weight.data = torch.einsum("UO,OIHW->UIHW", merge, weight)
        if norm is None:
            bias = modules[convolution].bias
            bias.data = merge @ bias
            continue
        for name in ("weight", "bias", "running_mean", "running_var"):
            parameter = getattr(modules[norm], name)
            parameter.data = merge @ parameter
    for reader in node.readers:
        weight = modules[reader].weight
        if weight.dim() == 4:
            weight.data = torch.einsum("OIHW,IU->OUHW", weight, unmerge)
        else:
            weight.data = weight @ unmerge


def average(models: Sequence[nn.Module]) -> nn.Module:
    """Return a network with the mean of the parameters."""
    states = [m.state_dict() for m in models]
    merged = copy.deepcopy(models[0])
    merged.load_state_dict({key: sum(s[key] for s in states) / len(states) for key in states[0]})
    return merged


def reset_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate BatchNorm statistics, if there are any, afresh by a pass in training mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    if not norms:
        return
    model.train()
    with torch.no_grad():
        for x in batches:
            model(x)
    model.eval()


def merge(
    models: Sequence[nn.Module],
    nodes: Sequence[FeatureNode],
    batches: Sequence[Tensor],
    gamma: float = GAMMA,
    *,
    reset_bases: bool = False,
) -> nn.Module:
    """Merge as published, from the models to the reset statistics, wherever their parameters are.

    Parameters
    ----------
    models : of one architecture; not modified
    nodes : places where features are matched
    batches : images ``(B, 3, 32, 32)``, gone through once for the features and once for the reset
    gamma : absolute regulariser
    reset_bases : reset the base models' statistics first, as the published scripts do
    """
    models = [copy.deepcopy(m) for m in models]
    with torch.no_grad():
        if reset_bases:
            for model in models:
                reset_statistics(model, batches)
        covariances = collect(models, nodes, batches)
        maps = {name: all_maps(c, len(models), gamma) for name, c in covariances.items()}
        for node in nodes:
            for model, (forward, inverse) in zip(models, maps[node.name], strict=True):
                transform(model, node, forward, inverse)
        merged = average(models)
        reset_statistics(merged, batches)
    return merged


def merge_resnet20(
    models: Sequence[nn.Module],
    batches: Sequence[Tensor],
    gamma: float = GAMMA,
    *,
    reset_bases: bool = False,
) -> nn.Module:
    """`merge` of networks of ``ccamerge.cli.demo.networks.ResNet20``'s layout."""
    return merge(models, resnet20_nodes(), batches, gamma, reset_bases=reset_bases)
