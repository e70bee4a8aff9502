"""A network of one's own: three that have each hardly seen a third of the digits, merged.

python benchmarks/examples/mlp.py    (some seconds; pip install "ccamerge[demo]")
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ccamerge


class MLP(nn.Module):
    """Two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.classes = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.classes(torch.relu(self.second(h)))


def trained(seed: int, x: Tensor, y: Tensor) -> MLP:
    torch.manual_seed(seed)
    network = MLP()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(20):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval()


def main() -> None:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(digits.data).float()[order] / 16
    y = torch.from_numpy(digits.target).long()[order]
    networks = []
    for seed in range(3):  # each is shown a tenth of three or four digits, and all of the rest
        shown = (y[:1200] % 3 != seed) | (torch.arange(1200) % 10 == 0)
        networks.append(trained(seed, x[:1200][shown], y[:1200][shown]))

    calibration = x[:1200].split(200)  # no labels are needed to merge
    average = ccamerge.merge(networks, calibration, method="average", repair="none", select="none")
    merged = ccamerge.merge(networks, calibration, ensemble="outputs")  # here, of logits
    print(merged.report)

    test = [(x[1200:], y[1200:])]
    rows: dict[str, Any] = {f"network {seed}": network for seed, network in enumerate(networks)}
    rows |= {"ensemble": networks, "average": average.model, "merged": merged.model}
    for name, row in rows.items():
        print(f"{name:10} {ccamerge.evaluate(row, test):6.1%}")


if __name__ == "__main__":
    main()
