"""The whole merge of four ResNet20s beside the published algorithm, forward passes included."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import baseline
import cases
import numpy as np
import torch
from layout import demand, seconds, table, verdict

import ccamerge
from ccamerge.collection.positions import MATCHED, lattice


def check_merges(zoo: cases.Zoo) -> list[str]:
    """Compare both sides' maps on 250 images with what solves the problems in float64.

    The baseline matches a residual stream where the last reader of a stage sees it; ours pools all
    its activations and counts a lattice of large maps. Each is held against a float64 run of the
    networks with its own definition.
    """
    batches = zoo.batches[:1]
    nodes = baseline.resnet20_nodes()
    inner = [n for n in nodes if n.name.endswith("inner")]
    streams = {
        f"layer{s}": [
            baseline.FeatureNode(f"layer{s}.{i}", f"layer{s}.{i}", True, (), ()) for i in range(3)
        ]
        for s in (1, 2, 3)
    }
    # The stem's activation is the input of the first block.
    streams["layer1"].insert(0, baseline.FeatureNode("stem", "layer1.0.conv1", False, (), ()))
    every = inner + [n for row in streams.values() for n in row]
    features: list[dict[str, torch.Tensor]] = []
    with torch.inference_mode():
        for model in zoo.models:
            store: dict[str, torch.Tensor] = {}
            exact = copy.deepcopy(model).double()
            baseline.hook(exact, every, store)
            exact(batches[0].double())
            features.append(store)

    def problem(taps: list[str], i: int, thinned: bool) -> cases.Problem:
        rows = on_lattice if thinned else lambda x, _: x
        x, y = (
            torch.cat([rows(features[m][t], len(batches[0])) for t in taps], 1).numpy()
            for m in (0, i)
        )
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
        return x @ x.T / x.shape[1], y @ y.T / x.shape[1], x @ y.T / x.shape[1]

    def worst(
        maps: dict[str, list[np.ndarray]], taps: dict[str, list[str]], thinned: bool
    ) -> list[float]:
        defects = [
            cases.map_defects(problem(taps[name], i, thinned), baseline.GAMMA, row[i])
            for name, row in maps.items()
            for i in range(1, len(row))
        ]
        return [max(d) for d in zip(*defects, strict=True)]

    covariances = baseline.collect(zoo.models, nodes, batches)
    theirs = {
        name: [t.double().numpy() for t, _ in baseline.all_maps(c, 4, baseline.GAMMA)]
        for name, c in covariances.items()
    }
    last = {n.name: [n.name] for n in inner} | {k: [v[-1].name] for k, v in streams.items()}
    pooled = {n.name: [n.name] for n in inner} | {
        k: [t.name for t in v] for k, v in streams.items()
    }
    result = ccamerge.merge(zoo.models, batches, gamma=baseline.GAMMA, holdout=0.0, progress=False)
    ours = {
        node_of(space, inner, streams): [m.forward.numpy() for m in result.maps[space.name]]
        for space in result.spaces.spaces
    }
    demand(set(ours) == set(last), f"our spaces are {sorted(ours)}, expected {sorted(last)}")
    mine, base = worst(ours, pooled, True), worst(theirs, last, False)
    demand(max(mine) < 1e-4, f"maps of the merge: {mine}")
    demand(max(base) < 0.05, f"baseline's maps of the merge: {base}")
    return [
        (
            "- Maps of all 12 spaces against a float64 run (defect of `T^T Cy T = Cx`; of the "
            f"sum of correlations): ours {mine[0]:.0e}, {mine[1]:.0e}; "
            f"baseline {base[0]:.0e}, {base[1]:.0e}."
        )
    ]


def on_lattice(rows: torch.Tensor, images: int) -> torch.Tensor:
    """What a first batch counts of square feature maps (C, images * side * side)."""
    side = math.isqrt(rows.shape[1] // images)
    maps = rows.unflatten(1, (images, side, side)).transpose(0, 1)
    return maps[lattice(maps.shape, 1, MATCHED)].transpose(0, 1).flatten(1)


def node_of(space: ccamerge.Space, inner: list, streams: dict) -> str:
    """Name the baseline's node of a space, by the parameters around it."""
    around = {slot.parameter for slot in space.slots}
    for stage in streams:
        if {f"{stage}.{i}.conv2.weight" for i in range(3)} <= around:
            return str(stage)
    return next(str(n.name) for n in inner if f"{n.readers[0]}.weight" in around)


def merge_section(quick: bool) -> str:
    """Time the whole merge of four ResNet20s, forward passes included."""
    images = 1000 if quick else 5000
    try:
        zoo = cases.zoo(images)
    except FileNotFoundError as error:
        return f"Not run: {error}"
    notes = check_merges(zoo)
    results: dict[str, torch.nn.Module] = {}
    stages: dict[str, dict[str, float]] = {}

    def ours(name: str, **settings: str) -> Callable[[], None]:
        def call() -> None:
            done = ccamerge.merge(
                zoo.models,
                zoo.batches,
                gamma=baseline.GAMMA,
                holdout=0.0,
                progress=False,
                **settings,
            )
            results[name] = done.model
            stages[name] = done.report.seconds

        return call

    def theirs(reset_bases: bool, name: str) -> Callable[[], None]:
        def call() -> None:
            results[name] = baseline.merge_resnet20(
                zoo.models, zoo.batches, reset_bases=reset_bases
            )

        return call

    names = [
        "ours, variance restored (REPAIR)",
        "ours, operations fitted (the default)",
        "ours, BatchNorm as published",
        "baseline",
        "baseline, base models' statistics reset first, as its scripts do",
    ]
    calls = {
        names[0]: ours(names[0], repair="variance"),
        names[1]: ours(names[1]),
        names[2]: ours(names[2], norm="paper"),
        names[3]: theirs(False, names[3]),
        names[4]: theirs(True, names[4]),
    }
    main = {n: calls.pop(n) for n in (names[0], names[3])}
    times = cases.interleaved(main, 1 if quick else 3, warmups=0)
    times |= cases.interleaved(calls, 1, warmups=0)
    rows = [
        [
            n,
            seconds(times[n]),
            f"{times[names[3]] / times[n]:.2f}",
            f"{zoo.accuracy(results[n]):.1f}",
        ]
        for n in names
    ]
    ratio = times[names[3]] / times[names[0]]
    where = "; ".join(
        f"{name.removeprefix('ours, ')}: "
        + ", ".join(f"{stage} {value:.1f} s" for stage, value in took.items())
        for name, took in stages.items()
    )
    notes += [
        (
            f"- Four ResNet20, {sum(map(len, zoo.batches))} images, "
            f"gamma 0.1; accuracy on {len(zoo.labels)} test images. The first and the baseline "
            "three times in turn, the others once."
        ),
        f"- Ratio {ratio:.2f} (wanted 2: {verdict(ratio >= 2)}). By stage: {where}.",
    ]
    return table(["route", "time", "ratio", "accuracy"], rows) + "\n\n" + "\n".join(notes)
