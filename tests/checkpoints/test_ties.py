"""Values for names that share memory: what would be lost is refused, whatever the view."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ccamerge.checkpoints.reading import CheckpointError, check_file, load_into, save_state
from ccamerge.checkpoints.ties import conflicts, tied_pairs, written


class Views(nn.Module):
    """A base with a slice, a transpose and a part of another shape; and one parameter apart."""

    def __init__(self) -> None:
        super().__init__()
        base = torch.zeros(4, 6)
        self.register_buffer("base", base)
        self.register_buffer("rows", base[1:3])
        self.register_buffer("turned", base.T)
        self.register_buffer("flat", base.view(24)[20:])
        self.apart = nn.Parameter(torch.zeros(3))


def _values() -> dict[str, Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    return {"base": base, "rows": base[1:3], "turned": base.T, "flat": base.view(24)[20:]}


def test_which_names_share_memory() -> None:
    own = Views().state_dict()
    pairs = {frozenset(pair) for pair in tied_pairs(own, own)}
    with_base = {frozenset(("base", name)) for name in ("rows", "turned", "flat")}
    assert with_base <= pairs
    assert frozenset(("rows", "flat")) not in pairs
    assert not any("apart" in pair for pair in pairs)


def test_values_that_agree_are_no_conflict() -> None:
    assert conflicts(Views().state_dict(), _values()) == []
    nan = {"base": torch.full((4, 6), torch.nan), "rows": torch.full((2, 6), torch.nan)}
    assert conflicts(Views().state_dict(), nan) == []


@pytest.mark.parametrize("name", ["rows", "turned", "flat"])
def test_one_other_element_is_a_conflict(name: str) -> None:
    values = {key: value.clone() for key, value in _values().items() if key in ("base", name)}
    values[name][(-1,) * values[name].dim()] += 1
    assert conflicts(Views().state_dict(), values) == [("base", name)]


def test_what_is_written_through_others() -> None:
    own = Views().state_dict()
    every = {"base", "rows", "turned", "flat"}
    assert written(own, {"base"}) == every
    assert written(own, {"turned"}) == every
    assert written(own, {"rows"}) == {"rows"}
    assert written(own, {"rows", "flat"}) == {"rows", "flat"}
    halves = nn.Module()
    memory = torch.zeros(6)
    for name, part in (("first", memory[:3]), ("second", memory[3:]), ("all", memory)):
        halves.register_buffer(name, part)
    assert written(halves.state_dict(), {"first", "second"}) == {"first", "second", "all"}


def test_neighbours_in_one_storage_are_not_tied() -> None:
    """As weights of recurrent layers lie on a GPU: one piece of memory, nothing shared."""
    memory = torch.zeros(10)
    own = {"a": memory[:4], "b": memory[4:]}
    assert tied_pairs(own, own) == []
    interleaved = {"even": memory[::2], "odd": memory[1::2]}
    assert tied_pairs(interleaved, interleaved) == [("even", "odd")]  # as far as extents tell
    assert conflicts(interleaved, {"even": torch.ones(5), "odd": torch.zeros(5)}) == []


def test_a_file_for_a_network_with_views(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    values = {**_values(), "apart": torch.ones(3)}
    save_state(values, path)
    target = Views()
    load_into(target, path)
    assert torch.equal(target.turned, values["turned"])  # type: ignore[arg-type]
    save_state({"turned": values["turned"], "apart": torch.ones(3)}, path)
    load_into(target, path)
    save_state({"rows": values["rows"], "apart": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="missing: base, turned, flat"):
        load_into(target, path)
    save_state({**values, "rows": torch.zeros(2, 6)}, path)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    for check in (lambda: load_into(target, path), lambda: check_file(path, target)):
        with pytest.raises(CheckpointError, match=r"tied in the network.*base and rows") as caught:
            check()
        assert "turned and flat" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_three_names_of_one_parameter(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(2, 2, bias=False) for _ in range(3))
            self.b.weight = self.c.weight = self.a.weight

    one, other = torch.ones(2, 2), torch.zeros(2, 2)
    torch.save({"a.weight": one, "b.weight": one, "c.weight": other}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError) as caught:
        load_into(Shared(), tmp_path / "m.pt")
    assert "a.weight and c.weight, b.weight and c.weight" in str(caught.value)
    torch.save({"b.weight": other}, tmp_path / "m.pt")
    net = Shared()
    load_into(net, tmp_path / "m.pt")
    assert torch.equal(net.c.weight, other)
