"""Everything that only a GPU can tell, in one call: build, tests, sanitizers and benchmarks.

    python benchmarks/gpu_all.py                              # all but the training
    python benchmarks/gpu_all.py --steps install train zoo    # and that
    python benchmarks/gpu_all.py --device cpu --quick         # does the script run?

Steps run one after the other, each in a process with a time limit; one that fails or is stopped
does not keep the next from running. Three files under ``$OUT`` (benchmarks/results without it) hold
everything and are written anew after each step: gpu.json, gpu.md with the tables, gpu.log.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CUDA = Path("/usr/local/cuda/bin")
LIMITS = {
    "install": 180,
    "native": 120,
    "tests": 120,
    "roof": 45,
    "moments": 150,
    "solve": 150,
    "merge": 90,
    "memcheck": 150,
    "racecheck": 300,
    "train": 320,
    "zoo": 200,
}
"""Seconds for each step, at most."""
DEFAULT = [name for name in LIMITS if name not in ("train", "zoo")]
NATIVE = Path(tempfile.gettempdir()) / "ccamerge-native"
"""Where the native tests are built: programs without Python, which the sanitizers can watch."""
PROGRAMS = ("test_cuda_moments", "test_cuda_product_jobs", "test_cuda_solve")
RESERVE = 20
"""Seconds before its limit at which a script that has a budget should be done."""


@dataclasses.dataclass
class Done:
    """How a step ended."""

    step: str
    outcome: str
    seconds: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--steps", nargs="+", choices=LIMITS, default=DEFAULT)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small cases, few repetitions")
    parser.add_argument("--total", type=float, default=560.0, help="seconds for all steps")
    parser.add_argument(
        "--limit", nargs="+", default=[], metavar="STEP=SECONDS", help="other limits of steps"
    )
    parser.add_argument(
        "--tests", default="cuda or device", help="pytest -k for the backend's tests"
    )
    parser.add_argument("--wheel", type=Path, help="install this instead of building")
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ccamerge-weights",
        help="folder of trained networks, outside the repository",
    )
    given = parser.parse_args()
    for item in given.limit:
        name, _, value = item.partition("=")
        if name not in LIMITS or not value.isdigit():
            parser.error(f"--limit: expected STEP=SECONDS, got {item}")
        LIMITS[name] = int(value)
    return given


def environment() -> dict[str, str]:
    path = os.environ.get("PATH", "")
    found = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if CUDA.is_dir():
        found["PATH"] = f"{CUDA}{os.pathsep}{path}"
    return found


def pytest(selection: str) -> list[str]:
    """The tests against the installed package: -P keeps the sources off the path."""
    options = ["-q", "-p", "no:cacheprovider", "tests", "-k", selection]
    return [sys.executable, "-P", "-m", "pytest", *options]


def script(*lines: list[str]) -> list[str]:
    """Commands one after the other, as long as they succeed."""
    return ["bash", "-c", " && ".join(shlex.join(line) for line in lines)]


def native_tests() -> list[str]:
    """Build the native tests of the backend, and run them."""
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DCCAMERGE_NATIVE_TESTS=ON", "-DCCAMERGE_CUDA=ON"]
    options += ["-DCMAKE_CUDA_ARCHITECTURES=90-real", f"-DPython_EXECUTABLE={sys.executable}"]
    build = ["cmake", "--build", str(NATIVE), "-j", "--target", *PROGRAMS]
    runs = [[str(NATIVE / "csrc" / "tests" / name)] for name in PROGRAMS]
    return script(["cmake", "-S", ".", "-B", str(NATIVE), *options], build, *runs)


def libraries() -> dict[str, str]:
    """The files of cuBLAS and cuSOLVER that came with torch, for programs without Python."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = {}
    for variable, name in (
        ("CCAMERGE_CUBLAS", "libcublas.so.13"),
        ("CCAMERGE_CUSOLVER", "libcusolver.so.12"),
    ):
        for folder in folders:
            file = Path(folder) / "cu13" / "lib" / name
            if file.exists():
                found[variable] = str(file)
    return found


def sanitizer(tool: str) -> list[str]:
    options = ["--tool", tool, "--error-exitcode", "9"]
    return script(
        *(
            ["compute-sanitizer", *options, str(NATIVE / "csrc" / "tests" / name), "1"]
            for name in PROGRAMS
        )
    )


def command(
    step: str, given: argparse.Namespace, work: Path, limit: float
) -> tuple[list[str], dict[str, str]]:
    """What to run for a step, and what to add to its environment."""
    if step == "install":
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
        if given.wheel:
            return [*pip, "--force-reinstall", str(given.wheel.resolve())], {}
        cuda = {"CCAMERGE_CUDA": "ON", "CUDAARCHS": "90-real"}
        return [*pip, "--no-build-isolation", "."], cuda
    if step == "tests":
        return pytest(given.tests), {}
    if step == "native":
        return native_tests(), libraries()
    if step in ("memcheck", "racecheck"):
        return sanitizer(step), libraries()
    line = [sys.executable, str(HERE / f"gpu_{step}.py"), "--device", given.device]
    line += ["--out", str(work)]
    if given.quick:
        line.append("--quick")
    if step in ("train", "zoo"):
        line += [str(given.weights.resolve()), "--seconds", str(max(10.0, limit - RESERVE))]
    if step == "merge" and given.weights.is_dir():
        line += ["--zoo", str(given.weights.resolve())]
    if step == "train" and given.quick:
        line += ["--networks", "resnet20-w1", "--seeds", "2"]
    return line, {}


def skipped(step: str, given: argparse.Namespace) -> str:
    """Why a step makes no sense here; empty if it does."""
    if step in ("install", "native", "memcheck", "racecheck") and given.device == "cpu":
        return "needs CUDA"
    if step in ("memcheck", "racecheck"):
        path = environment()["PATH"]
        if shutil.which("compute-sanitizer", path=path) is None:
            return "no compute-sanitizer on the path"
    return ""


def execute(line: list[str], extra: dict[str, str], log: Path, limit: float) -> tuple[str, float]:
    """Run with output to a file; the outcome in words, and seconds."""
    start = time.monotonic()
    with log.open("w") as output:
        output.write(f"$ {' '.join(line)}\n")
        output.flush()
        try:
            process = subprocess.Popen(
                line,
                cwd=ROOT,
                env={**environment(), **extra},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            output.write(f"{error}\n")
            return "failed: could not start", time.monotonic() - start
        try:
            code = process.wait(limit)
            outcome = "ok" if code == 0 else f"failed: exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit:.0f} s"
            stop(process)
    return outcome, time.monotonic() - start


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a step with all that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(5)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def gather(out: Path, work: Path, done: list[Done]) -> None:
    """Write everything so far as three files."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"steps": [dataclasses.asdict(d) for d in done]}
    tables, logs = [], []
    for item in done:
        for suffix in ("json", "md"):
            file = work / f"gpu_{item.step}.{suffix}"
            if file.exists() and suffix == "json":
                found[item.step] = json.loads(file.read_text())
            elif file.exists():
                tables.append(f"## {item.step}\n\n{file.read_text()}")
        log = work / f"{item.step}.log"
        if log.exists():
            logs.append(f"===== {item.step}: {item.outcome}\n{log.read_text(errors='replace')}")
    for name, content in (
        ("gpu.json", json.dumps(found, indent=1) + "\n"),
        ("gpu.md", "\n".join(tables)),
        ("gpu.log", "\n".join(logs)),
    ):
        part = out / f"{name}.part"
        part.write_text(content)
        part.replace(out / name)


def verdicts(work: Path, step: str) -> list[str]:
    """The lines of a step's text that say what was wanted; of networks and merges the tables."""
    file = work / f"gpu_{step}.md"
    if not file.exists():
        return []
    lines = file.read_text().splitlines()
    if step in ("train", "zoo"):
        return [line for line in lines if line.startswith("|")]
    return [line for line in lines if line.startswith("- ") and "wanted" in line]


def last_lines(log: Path, count: int) -> list[str]:
    if not log.exists():
        return []
    return [line[:200] for line in log.read_text(errors="replace").splitlines()[-count:]]


def main() -> None:
    given = arguments()
    out = Path(os.environ.get("OUT", HERE / "results"))
    end = time.monotonic() + given.total
    done: list[Done] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for step in given.steps:
            log = work / f"{step}.log"
            limit = min(LIMITS[step], end - time.monotonic())
            why = skipped(step, given)
            if why or limit < 10:
                done.append(Done(step, f"skipped: {why or 'no time left'}", 0.0))
            else:
                line, extra = command(step, given, work, limit)
                print(f"== {step} (at most {limit:.0f} s)", flush=True)
                done.append(Done(step, *execute(line, extra, log, limit)))
            print(f"== {step}: {done[-1].outcome}, {done[-1].seconds:.1f} s", flush=True)
            if not done[-1].outcome.startswith(("ok", "skipped")):
                print("\n".join(last_lines(log, 25)), flush=True)
            gather(out, work, done)
        print()
        for item in done:
            print(f"{item.step:10} {item.seconds:6.1f} s  {item.outcome}")
            if item.step == "tests":
                print("\n".join(f"    {line}" for line in last_lines(work / "tests.log", 1)))
            for line in verdicts(work, item.step):
                print(f"    {line}")
    if not all(item.outcome.startswith(("ok", "skipped")) for item in done):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
