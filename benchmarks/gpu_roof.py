"""The roofs of a GPU as measured: what a copy moves and what matrix products compute.

    python benchmarks/gpu_roof.py

Through torch, on random data, TF32 off: bytes read plus bytes written by a copy on the device, and
floating-point operations of square products in each precision, medians by CUDA events.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from gpu_common import arguments, free, measure, ready, save, scaled
from layout import table

ORDERS = (4096, 8192)
DTYPES = ("float64", "float32", "bfloat16", "float16")
COPIES = (1 << 28, 1 << 30, 1 << 32)
"""Bytes of the copied buffers, all well beyond the caches."""


def copy_rate(device: torch.device, size: int, seconds: float) -> float:
    """Bytes a second, read and written."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    timing = measure({"copy": lambda _: target.copy_(source)}, device, seconds=seconds)["copy"]
    return 2 * source.numel() * 4 / timing.queued


def product_rate(device: torch.device, dtype: str, order: int, seconds: float) -> float:
    """Operations a second of a product of two square matrices."""
    kind = getattr(torch, dtype)
    a, b = (torch.randn(order, order, device=device).to(kind) for _ in range(2))
    c = torch.empty_like(a)
    timing = measure({"product": lambda _: torch.mm(a, b, out=c)}, device, seconds=seconds)
    return 2 * order**3 / timing["product"].queued


def measured(device: torch.device, quick: bool) -> dict[str, Any]:
    """Every figure, and the best of each kind as the roof."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    seconds = 0.05 if quick else 0.3
    copies = {size: copy_rate(device, size, seconds) for size in (COPIES[:1] if quick else COPIES)}
    rates: dict[str, dict[int, float]] = {}
    for dtype in DTYPES:
        rates[dtype] = {}
        for order in (512,) if quick else ORDERS:
            rates[dtype][order] = product_rate(device, dtype, order, seconds)
            free(device)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "copies": copies,
        "products": rates,
        "bandwidth": max(copies.values()),
        "rates": {dtype: max(found.values()) for dtype, found in rates.items()},
    }


def roofs(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What an earlier run measured on a device of this name, or a measurement now."""
    file = given.out / "gpu_roof.json"
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        if found["device"] == name and found["quick"] == given.quick:
            return found
    return measured(device, given.quick)


def main() -> None:
    given = arguments(__doc__).parse_args()
    device = ready(given)
    found = measured(device, given.quick)
    rows = [
        [f"copy of {size / 2**20:.0f} MiB, read and written", f"{scaled(rate, 1e12)} TB/s"]
        for size, rate in found["copies"].items()
    ]
    rows += [
        [f"product of order {order}, {dtype}", f"{scaled(rate, 1e12)} TFLOP/s"]
        for dtype, rates in found["products"].items()
        for order, rate in rates.items()
    ]
    save(given, "roof", device, table(["", "rate"], rows), found)


if __name__ == "__main__":
    main()
