"""What the benchmarks on a GPU share: arguments, clocks, and where results go.

Everything also runs with ``--device cpu --quick``, which shows that the scripts run and measures
nothing worth keeping: CUDA's clocks and the library's CUDA backend are the only things left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layout
import torch
from torch import Tensor

import ccamerge

HERE = Path(__file__).resolve().parent
RESULTS = Path(os.environ.get("OUT", HERE / "results"))

_SAMPLE = 2e-3
"""Seconds that one sample should last at least, by several calls in a row."""
_MOST_CALLS = 20
"""In a row: with more, the queue of launches may fill up, and the host would have to wait."""
_LONGEST_SLEEP = 5e-3
_CLOCK = 2e9
"""Cycles a second, at most, of the GPUs that this is for: only sleeps depend on it."""


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small cases, few repetitions")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    return parser


def ready(given: argparse.Namespace) -> torch.device:
    """The device asked for; ends with a message where it is not there."""
    if given.device == "cuda" and not torch.cuda.is_available():
        message = f"no CUDA device: {ccamerge.cuda_status()}; --device cpu --quick tries the script"
        raise SystemExit(message)
    if given.device == "cpu":
        torch.set_num_threads(layout.cases.THREADS)
        ccamerge.set_num_threads(layout.cases.THREADS)
    else:
        print(f"# {ccamerge.cuda_status()}", flush=True)
    return torch.device(given.device)


def options(device: torch.device) -> dict[str, Any]:
    """What the library's functions are told: nothing where they compute on the CPU."""
    return {"device": device.type} if device.type == "cuda" else {}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def free(device: torch.device) -> None:
    """Give cached memory back, for those who do not allocate through torch."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if "cupy" in sys.modules:
            sys.modules["cupy"].get_default_memory_pool().free_all_blocks()


def wall(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of one call, until the device has done it, and what it returned."""
    synchronize(device)
    start = time.perf_counter()
    found = call()
    synchronize(device)
    return time.perf_counter() - start, found


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median seconds of a call, and the quartiles' distance from each other over the median.

    ``called`` includes what the host does where the device waits for it; ``queued`` does not.
    """

    called: float
    queued: float
    spread: float

    def to_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def measure(
    sides: dict[str, Callable[[int], Any]],
    device: torch.device,
    *,
    seconds: float = 0.15,
    rounds: int = 2,
) -> dict[str, Timing]:
    """Time calls in turns, by CUDA events; each call gets a number that counts up.

    Two figures on CUDA: as the calls come from Python, and with the launches queued up behind a
    sleeping kernel, so that the device runs them without gaps. The latter is what replays of a
    graph would show, and asks nothing of the calls: those that synchronise simply gain nothing.

    Parameters
    ----------
    sides : by name; to use its number for rotating among inputs is the call's business
    device : where to measure; on a CPU both figures are the clock's
    seconds : that all samples of one side and figure should take in a round, at least three samples
    rounds : turns that the sides take
    """
    called: dict[str, list[float]] = {name: [] for name in sides}
    queued: dict[str, list[float]] = {name: [] for name in sides}
    for turn, (name, call) in itertools.product(range(rounds), sides.items()):
        counter = itertools.count(turn)
        for _ in range(2):
            call(next(counter))
        once, _ = wall(lambda c=call, k=counter: c(next(k)), device)
        inner = max(1, min(_MOST_CALLS, math.ceil(_SAMPLE / once)))
        samples = max(3, min(50, int(seconds / (inner * once))))
        for _ in range(samples):
            called[name].append(_sample(call, counter, inner, device, 0.0))
        if device.type == "cuda" and once < 5 * _LONGEST_SLEEP:  # else the host is long ahead
            sleep = min(_LONGEST_SLEEP, 1.5 * inner * once)
            for _ in range(samples):
                queued[name].append(_sample(call, counter, inner, device, sleep))
    return {
        name: Timing(
            statistics.median(times),
            statistics.median(queued[name] or times),
            _quartiles(times),
        )
        for name, times in called.items()
    }


def _sample(
    call: Callable[[int], Any],
    counter: itertools.count[int],
    inner: int,
    device: torch.device,
    sleep: float,
) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(inner):
            call(next(counter))
        return (time.perf_counter() - start) / inner
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if sleep:
        torch.cuda._sleep(int(sleep * _CLOCK))
    begin.record()
    for _ in range(inner):
        call(next(counter))
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / inner


def _quartiles(times: list[float]) -> float:
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def as_tensor(value: Any, device: torch.device) -> Tensor:
    """An array or tensor of wherever, as float64 on the device."""
    return torch.as_tensor(value).to(device, torch.float64)


def scaled(value: float, unit: float) -> str:
    return f"{value / unit:.3g}"


def command_line() -> str:
    """How this was called, without the places of one machine."""
    words = list(sys.argv[1:])
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    words = [Path(word).name if word.startswith(os.sep) else word for word in words]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def place(device: torch.device) -> list[str]:
    """On what and with what figures were taken, and the settings that decide on rates."""
    if device.type == "cpu":
        return layout.surroundings(command_line()).splitlines()
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
        version = driver.stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        version = "unknown"
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return [
        (
            f"- {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"{properties.multi_processor_count} multiprocessors, L2 of "
            f"{properties.L2_cache_size / 2**20:.0f} MiB; driver {version}"
        ),
        f"- {layout.processor()}, {layout.len_cores()} cores",
        f"- CUDA {torch.version.cuda}, {layout.versions()}",
        (
            f"- TF32 in torch's matrix products {matmul.allow_tf32}, in its convolutions "
            f"{cudnn.allow_tf32}; cudnn.benchmark {cudnn.benchmark}"
        ),
        f"- `{command_line()}`",
    ]


def save(
    given: argparse.Namespace,
    name: str,
    device: torch.device,
    text: str,
    data: dict[str, Any],
    *,
    done: bool = True,
) -> None:
    """Write ``gpu_<name>.json`` and ``.md``; print the text when all is there.

    Called after every row, too (``done`` false), so that a run that is stopped leaves what it has.
    """
    given.out.mkdir(parents=True, exist_ok=True)
    lines = place(device)
    data = {"complete": done, "place": lines, "quick": given.quick, **data}
    text += "\n\nTaken on:\n" + "\n".join(lines) + "\n"
    if not done:
        text += "\n**Not complete.**\n"
    for suffix, content in (("json", json.dumps(data, indent=1) + "\n"), ("md", text)):
        file = given.out / f"gpu_{name}.{suffix}"
        part = file.with_suffix(".part")
        part.write_text(content)
        part.replace(file)
    if done:
        print("\n" + text, flush=True)


def finish(failures: list[str]) -> None:
    """End with an error if an answer was wrong or something did not run."""
    for line in failures:
        print(f"FAILED: {line}", flush=True)
    if failures:
        raise SystemExit(1)


def brief(error: BaseException) -> str:
    """One line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"
