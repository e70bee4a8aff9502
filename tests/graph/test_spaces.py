from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccamerge.cli.demo.networks import ResNet20
from ccamerge.graph.groups import FIXED, GENERAL, ORTHOGONAL, PERMUTATION, POSITIVE, Group
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.space import Role, Spaces
from ccamerge.merging.paper import unfolded_spaces
from tests import models as M

RESNET = {
    "conv1": 16,
    **{f"layer1.{i}.conv1": 16 for i in range(3)},
    **{f"layer2.{i}.conv1": 32 for i in range(3)},
    "layer2.0.conv2": 32,
    **{f"layer3.{i}.conv1": 64 for i in range(3)},
    "layer3.0.conv2": 64,
}
BOTTLENECK = {
    "stem.0": 6,
    "blocks.0.downsample.0": 24,
    "blocks.2.downsample.0": 48,
    **{f"blocks.{i}.conv{j}": 6 if i < 2 else 12 for i in range(4) for j in (1, 2)},
}
VGG = {0: 8, 1: 16, 2: 32, 3: 32, 4: 64, 5: 64, 6: 64, 7: 64}
VGG_PLAIN = {f"0.{i}": VGG[n] for n, i in enumerate((0, 3, 6, 8, 11, 13, 16, 18))} | {"2": 32}
VGG_NORM = {f"0.{i}": VGG[n] for n, i in enumerate((0, 4, 8, 11, 15, 18, 22, 25))} | {"2": 32}
CASES = {
    "mlp": (M.MLP, (2, 12), {"layers.0": 16, "layers.1": 16}, POSITIVE),
    "vgg": (lambda: M.vgg11(False), (2, 3, 32, 32), VGG_PLAIN, POSITIVE),
    "vgg-bn": (lambda: M.vgg11(True), (2, 3, 32, 32), VGG_NORM, POSITIVE),
    "resnet20": (ResNet20, (2, 3, 8, 8), RESNET, POSITIVE),
    "bottleneck": (M.BottleneckResNet, (2, 3, 8, 8), BOTTLENECK, POSITIVE),
    "depthwise": (M.DepthwiseSeparable, (2, 3, 8, 8), {"stem.0": 8, "expand.0": 16}, PERMUTATION),
    "dense": (
        M.DenseBlockNet,
        (2, 3, 8, 8),
        {"stem": 12, "convs.0": 6, "convs.1": 6, "convs.2": 6, "transition": 15},
        PERMUTATION,
    ),
}


def _slots(found: Spaces, name: str) -> set[tuple[str, int, Role, int, int]]:
    return {(s.parameter, s.dim, s.role, s.outer, s.inner) for s in found[name].slots}


@pytest.mark.parametrize("name", CASES)
def test_expected_spaces(name: str) -> None:
    build, shape, sizes, exact = CASES[name]
    model = build()
    found = spaces(model, torch.randn(shape))
    assert {s.name: s.size for s in found} == sizes
    assert {s.exact for s in found} == {exact}
    groups = {s.name: s.group for s in found}
    expected = dict.fromkeys(sizes, GENERAL)
    if name == "depthwise":
        expected["expand.0"] = PERMUTATION  # the depthwise kernel scales channel by channel
    assert groups == expected
    # The unfolded program, which the paper's treatment transforms, must have the very same spaces.
    assert {s.name: s.size for s in unfolded_spaces(found)} == sizes
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(found.folds) == (0 if name == "dense" else norms)


def test_residual_stream_is_one_space_with_all_its_taps() -> None:
    found = spaces(ResNet20(), torch.randn(2, 3, 8, 8))
    writers = {s.parameter for s in found["conv1"].slots if s.role is Role.WRITE}
    assert {p.split(":")[0] for p in writers} == {
        "conv1.weight",
        *(f"layer1.{i}.conv2.weight" for i in range(3)),
    }
    readers = {s.parameter for s in found["conv1"].slots if s.role is Role.READ}
    assert readers == {
        *(f"layer1.{i}.conv1.weight" for i in range(3)),
        "layer2.0.conv1.weight",
        "layer2.0.shortcut.0.weight",
    }
    activations = [t for t in found["conv1"].taps if t.kind == "activation"]
    assert len(activations) == 4


def test_flatten_of_channels_height_width() -> None:
    found = spaces(M.vgg11(False), torch.randn(2, 3, 32, 32))
    assert ("2.weight", 1, Role.READ, 1, 4) in _slots(found, "0.18")  # C x (2 x 2)


def test_flatten_after_moving_channels_last() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(36, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))

    found = spaces(Last(), torch.randn(2, 3, 3, 3))
    assert ("fc.weight", 1, Role.READ, 9, 1) in _slots(found, "conv")


def test_grouped_convolution_splits_by_group() -> None:
    found = spaces(M.GroupedConv(), torch.randn(2, 3, 8, 8))
    assert {s.name: s.size for s in found} == {"a": 4, "a#2": 4, "b": 4, "b#2": 4, "c": 8}
    rows = [s.rows for s in found["a#2"].slots if s.role is Role.READ]
    assert rows == [(4, 8)]


def test_tied_parameter_allows_orthogonal_maps_only() -> None:
    found = spaces(M.TiedAutoencoder(), torch.randn(4, 10))
    (space,) = found
    assert (space.name, space.size, space.group) == ("encode", 6, ORTHOGONAL)
    assert any("tied" in note for note in space.notes)
    # A module used twice joins what it reads to what it writes.
    assert {("middle.weight", 0), ("middle.weight", 1)} <= {
        (s.parameter, s.dim) for s in space.slots
    }


def test_layer_norm_and_group_norm() -> None:
    found = spaces(M.NormedMLP(), torch.randn(4, 12))
    sizes = {s.name: s.size for s in found}
    assert sizes == {"first": 16, "second": 4, "second#2": 4, "second#3": 4, "second#4": 4}
    assert {s.group for s in found} == {PERMUTATION}


def test_unknown_operation_is_pinned_with_its_reason() -> None:
    found = spaces(M.UnknownOp(), torch.randn(4, 6))
    assert [s.name for s in found] == ["b"]
    assert "no rule for aten.logcumsumexp" in found.pinned["a.weight", 0]
    assert ("b.weight", 1) in found.pinned
    (fixed,) = (s for s in found.fixed if s.name == "a")
    assert fixed.group is FIXED
    assert "logcumsumexp" in str(found)


class _Pieces(nn.Module):
    """Concatenation, split, chunk and slice of features."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 6)
        self.whole, self.part, self.out = nn.Linear(10, 8), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.whole(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], dim=-1)))
        if self.how == "split":
            p, q = h.split([4, 4], dim=1)
        elif self.how == "chunk":
            p, q = h.chunk(2, dim=-1)
        else:
            p, q = h[:, :4], h[:, 4:]
        return self.out(F.relu(self.part(p)) + q)


@pytest.mark.parametrize("how", ["split", "chunk", "slice"])
def test_pieces_of_an_axis(how: str) -> None:
    found = spaces(_Pieces(how), torch.randn(2, 5))
    assert {s.name: s.size for s in found} == {"a": 4, "b": 6, "whole": 4, "whole#2": 4}
    starts = {s.start for name in "ab" for s in found[name].slots if s.parameter == "whole.weight"}
    assert starts == {0, 4}
    # The second half is added to part's output, and so shares its basis.
    assert "part.weight" in {s.parameter for s in found["whole#2"].slots if s.role is Role.WRITE}
    assert all(s.group is GENERAL for s in found)


def test_functional_and_module_activations_agree() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    (one,), (two,) = spaces(module, torch.randn(2, 4)), spaces(Functional(), torch.randn(2, 4))
    assert [(t.kind, t.dim, t.size) for t in one.taps] == [
        (t.kind, t.dim, t.size) for t in two.taps
    ]
    assert (one.exact, one.group) == (two.exact, two.group)


@pytest.mark.parametrize(
    ("activation", "exact"),
    [(nn.ReLU(), POSITIVE), (nn.LeakyReLU(), POSITIVE), (nn.GELU(), PERMUTATION),
     (nn.Tanh(), PERMUTATION), (nn.Identity(), GENERAL),
     (nn.Dropout(), GENERAL)],
)  # fmt: skip
def test_exact_group_of_an_activation(activation: nn.Module, exact: Group) -> None:
    model = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 3))
    (space,) = spaces(model, torch.randn(2, 4))
    assert (space.exact, space.group) == (exact, GENERAL)


def test_lookup_by_an_unknown_name() -> None:
    found = spaces(M.MLP(), torch.randn(2, 12))
    with pytest.raises(KeyError, match=r"no space named 'nope'; there are layers\.0, layers\.1"):
        found["nope"]


def test_deriving_does_not_touch_the_model() -> None:
    model = M.vgg11(True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    spaces(model, torch.randn(2, 3, 32, 32))
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
