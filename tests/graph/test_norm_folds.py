"""Gains of norms and constants of channels, folded and put back: the function stays."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccamerge
from ccamerge.graph.folding import fold
from ccamerge.graph.folds import NormFold, ScaleFold
from ccamerge.graph.groups import ORTHOGONAL, ORTHOGONAL_FIXING_ONES, PERMUTATION
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.networks.verification import verify
from ccamerge.graph.tracing.program import trace
from ccamerge.graph.transposed import TransposedFold
from ccamerge.merging.loading import load_merged
from ccamerge.merging.paper import unfolded_spaces

WIDTH = 6
GAINS = {
    "usual": (0.5, 1.5, 1.0, 0.8, 1.2, 0.9),
    "zero": (0.5, 0.0, 1.0, 0.8, 0.0, 0.9),
    "negative": (0.5, -1.5, -1.0, 0.8, 1.2, -0.1),
    "huge": (1e6, 1.5, 1.0, 1e-3, 1.2, 0.9),
}


class OnePlus(nn.Module):
    """Gemma's: the gain is one more than its parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * (1 + self.weight)


class Stepwise(nn.Module):
    """LayerNorm as people write it, its gain with axes of one before the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)
        return self.weight * x + self.bias


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "layer without bias": lambda width: nn.LayerNorm(width, bias=False),
    "rms": lambda width: nn.RMSNorm(width, eps=1e-3),
    "one plus": OnePlus,
    "stepwise": Stepwise,
}


class Net(nn.Module):
    """A stream (batch, tokens, features), a norm of it, and what reads the norm."""

    def __init__(self, norm: nn.Module, read: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm, self.read = nn.Linear(4, WIDTH), norm, read
        self.more = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.more(x)
        return self.read(self.norm(x))


class Read(nn.Module):
    """Linear operations of one kind or another on (batch, 5 tokens, features)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        bias = how not in ("no bias", "matmul")
        self.a = nn.Linear(WIDTH, 3, bias=bias)
        self.b = nn.Linear(WIDTH, 3)
        self.wide = nn.Linear(2 * WIDTH, 3)
        padding = 1 if how == "padded" else 0
        self.conv = nn.Conv1d(WIDTH, 4, 3, padding=padding, groups=2 if how == "groups" else 1)
        self.weight = nn.Parameter(torch.randn(WIDTH, 3))

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "linear" | "no bias":
                return self.a(x) * torch.tanh(self.b(x))
            case "moved":
                return self.a(x.reshape(-1, WIDTH)[1:].clone()) + self.b(x[:, 0]).mean(0)
            case "convolution" | "padded" | "groups":
                return self.conv(x.transpose(1, 2))
            case "addmm":
                return torch.addmm(self.a.bias, x.reshape(-1, WIDTH), self.weight)
            case "matmul":
                return torch.cat([x @ self.weight, x @ self.a.weight.T], -1)
            case "mean":
                return self.a(x.mean(1))
            case "flattened":
                return self.wide(F.adaptive_avg_pool1d(x.transpose(1, 2), 2).flatten(1))
            case "negated weight":
                return x @ -self.weight
            case _:
                return torch.cat([self.a(part) for part in x.split(2, 1)[:1]], 1) + self.b(x)[:, :2]


READERS = ("linear", "moved", "convolution", "padded", "groups", "addmm", "matmul", "mean")
READERS = (*READERS, "flattened", "no bias", "split")


def _network(norm: str, read: str, gains: str = "usual") -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    model = Net(NORMS[norm](WIDTH), Read(read)).double()
    chosen = torch.tensor(GAINS[gains], dtype=torch.float64)
    with torch.no_grad():
        weight, bias = model.norm.weight, getattr(model.norm, "bias", None)
        weight.copy_((chosen - float(norm == "one plus")).reshape(weight.shape))
        if bias is not None:
            bias.copy_(torch.randn(WIDTH))
            bias[chosen == 0] = 0.0
    return model, torch.randn(4, 5, 4, dtype=torch.float64)


def _check(model: nn.Module, x: Tensor) -> ccamerge.Spaces:
    """Folded and put back, in the model itself, the function stays, and so does the format."""
    found, expected = spaces(model, x), model(x).detach()
    before = {key: value.shape for key, value in model.state_dict().items()}
    folded = {k: v.clone() for k, v in folded_state(model.state_dict(), found.folds).items()}
    tolerance = {"rtol": 1e-12, "atol": 1e-12 * float(expected.abs().max())}
    torch.testing.assert_close(found.program.run(folded, [x]), expected, **tolerance)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(torch.nan)  # nothing of the old parameters may remain
    load_merged(model, folded, found, {})
    torch.testing.assert_close(model(x).detach(), expected, **tolerance)
    assert {key: value.shape for key, value in model.state_dict().items()} == before
    return found


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_is_folded_into_all_that_reads_it(norm: str, read: str) -> None:
    model, x = _network(norm, read)
    found = _check(model, x)
    (folded,) = [own for own in found.folds if not isinstance(own, TransposedFold)]
    assert isinstance(folded, NormFold)
    has_bias = norm in ("layer", "stepwise")
    assert folded.keeps == (has_bias and read in ("no bias", "padded", "matmul"))
    neutral = torch.full_like(model.norm.weight, 0.0 if norm == "one plus" else 1.0)
    assert torch.equal(model.norm.weight, neutral)
    if has_bias and not folded.keeps:
        assert not model.norm.bias.any()
    centred = ORTHOGONAL_FIXING_ONES if norm.startswith(("layer", "step")) else ORTHOGONAL
    assert found["embed"].group == found["embed"].exact == centred


@pytest.mark.parametrize("gains", GAINS)
@pytest.mark.parametrize("read", ["linear", "no bias"])
@pytest.mark.parametrize("norm", ["layer", "one plus", "stepwise"])
def test_gains_of_any_size(norm: str, read: str, gains: str) -> None:
    model, x = _network(norm, read, gains)
    assert len(_check(model, x).folds) == 1


@pytest.mark.parametrize("read", ["linear", "no bias", "convolution"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_network_merged_with_itself_stays(norm: str, read: str) -> None:
    model, x = _network(norm, read, "negative")
    result = ccamerge.merge([model, copy.deepcopy(model)], [x], repair="none", progress=False)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-9, atol=1e-9)
    assert result.model.state_dict().keys() == model.state_dict().keys()
    assert not result.report.from_reference.keys() & {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_five_checks(norm: str) -> None:
    checks = verify(*_network(norm, "linear"))
    assert all(check.passed for check in checks), [str(check) for check in checks]


def test_where_the_gain_is_zero_a_bias_cannot_be_kept() -> None:
    model, x = _network("layer", "no bias", "zero")
    found = spaces(model, x)
    with torch.no_grad():
        model.norm.bias.fill_(1.0)
    assert spaces(model, x).folds == ()
    with pytest.raises(ValueError, match=r"'norm\.weight' is zero where the norm's bias is not"):
        folded_state(model.state_dict(), found.folds)
    _check(*_network("layer", "linear", "zero"))


class Other(nn.Module):
    """Norms that must keep their gains."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed = nn.Embedding(7, WIDTH)
        self.more, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.a, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 7, bias=False)
        if how == "tied":
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + self.more(x))
        match self.how:
            case "tied":
                return self.head(x)
            case "function":
                return self.head(torch.relu(x))
            case "sum":
                return self.head(x + self.a(x))
            case "output":
                return torch.cat([self.a(x), x], -1)
            case "weight twice":
                return self.head(self.a(self.a(x)))
            case "norm twice":
                return self.head(self.norm(self.a(x)))
            case "negated":
                return self.head(self.a(-x))
            case "cut":
                return self.head(F.pad(x.unflatten(-1, (2, 3))[..., 0, :], (0, 3)))
            case _:
                return self.head(x.transpose(1, 2).flip(1).transpose(1, 2))


@pytest.mark.parametrize(
    "how",
    [
        "tied",
        "function",
        "sum",
        "output",
        "weight twice",
        "norm twice",
        "negated",
        "cut",
        "reordered",
    ],
)
def test_gains_that_something_else_sees_stay(how: str) -> None:
    model, x = Other(how).double(), torch.randint(7, (4, 5))
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 1.5)
        model.norm.bias.uniform_(-1, 1)
    program, folds = fold(trace(model, (x,)))
    assert folds == ()
    torch.testing.assert_close(program.run(model.state_dict(), [x]), model(x).detach())
    if how == "tied":
        assert spaces(model, x)["embed"].group == PERMUTATION


def test_an_rms_norm_that_keeps_its_gain_allows_changes_of_signs() -> None:
    class PostNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.norm = nn.RMSNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.a(x))
            return self.c(x + self.b(x))

    model, x = PostNorm().double(), torch.randn(8, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 1.5)
    assert spaces(model, x)["a"].exact.name == "signed permutation"
    checks = verify(model, x)
    assert all(check.passed for check in checks), [str(check) for check in checks]


# Constants of channels ---------------------------------------------------------------------


class Scaled(nn.Module):
    """A residual branch whose output is scaled channel by channel."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        shape = {"image": (WIDTH, 1, 1), "leading": (1, 1, WIDTH)}.get(how, (WIDTH,))
        self.gain = nn.Parameter(torch.randn(shape))
        self.stem = nn.Conv2d(3, WIDTH, 1)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=how != "no bias")
        self.up, self.down = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.how == "image":
            x = x + self.gain * self.conv(x)
        elif self.how in ("reshaped", "no bias"):
            x = x + self.conv(x) * self.gain.reshape(1, -1, 1, 1)
        else:
            y = self.down(torch.relu(self.up(x.permute(0, 2, 3, 1))))
            if self.how == "permuted":
                y = y.permute(0, 3, 1, 2) * self.gain[:, None, None]
            else:
                y = (self.gain * y).permute(0, 3, 1, 2)
            x = x + y
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("how", ["image", "reshaped", "no bias", "permuted", "leading", "last"])
def test_constants_of_channels_go_into_what_writes_them(how: str) -> None:
    model, x = Scaled(how).double(), torch.randn(4, 3, 5, 5, dtype=torch.float64)
    result = ccamerge.merge([model, copy.deepcopy(model)], [x], repair="none", progress=False)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-9, atol=1e-9)
    (folded,) = [own for own in _check(model, x).folds if not isinstance(own, TransposedFold)]
    assert isinstance(folded, ScaleFold)
    assert torch.equal(model.gain, torch.ones_like(model.gain))


def test_constants_that_something_else_sees_stay() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
            self.gain = nn.Parameter(torch.randn(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y + torch.relu(self.gain * y))

    assert fold(trace(Read(), (torch.randn(4, 3),)))[1] == ()


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_weight_that_is_negated_takes_in_nothing(norm: str) -> None:
    model, x = _network(norm, "negated weight")
    assert _check(model, x).folds == ()


def test_the_papers_treatment_is_of_batch_norm_alone() -> None:
    """Gains of other norms are folded there too: spaces have the same groups by either."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.batch = nn.Conv1d(3, WIDTH, 1), nn.BatchNorm1d(WIDTH)
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.batch(self.conv(x)).transpose(1, 2)))

    model, data = Both().double().eval(), [torch.randn(8, 3, 5, dtype=torch.float64)]
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 1.5)
    found = spaces(model, data[0])
    unfolded = unfolded_spaces(found)
    assert len(found.folds) == 2
    assert len(unfolded.folds) == 1
    assert [s.name for s in unfolded] == [s.name for s in found]
    state = folded_state(model.state_dict(), unfolded.folds)
    torch.testing.assert_close(unfolded.program.run(state, data), model(data[0]).detach())
    result = ccamerge.merge([model, copy.deepcopy(model)], data, norm="paper", progress=False)
    model.batch.reset_running_stats()
    result.model.batch.load_state_dict(model.batch.state_dict())
    torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=1e-9, atol=1e-9)
