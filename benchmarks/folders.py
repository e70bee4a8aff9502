"""The plain average of folders of transformers, beside mergekit's linear merge of the same ones.

    python benchmarks/folders.py --mergekit PATH/TO/mergekit-yaml [--out results.json]

Makes random Llama folders in bfloat16, in shards, then runs both commands in turn on all cores,
each in its own process, and takes its wall time and its largest anonymous and file-backed resident
memory, apart: pages of mapped files are the kernel's to drop. The answers are compared with the
mean in double precision. mergekit is not needed by anything else; it wants an environment of its
own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from ccamerge.checkpoints.parts import PartReader, memory_for
from ccamerge.checkpoints.reading import load_shapes
from ccamerge.checkpoints.writing import FolderWriter

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
}
PART = 1 << 20  # elements that are looked at together when answers are compared


def shapes(layers: int) -> dict[str, torch.Tensor]:
    """The parameters of such a network, on the meta device, in the order of its modules."""
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    keys = width // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (CONFIG["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for index in range(layers):
        own = f"model.layers.{index}"
        for name, out, into in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", keys, width),
            ("self_attn.v_proj", keys, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", inner, width),
            ("mlp.up_proj", inner, width),
            ("mlp.down_proj", width, inner),
        ):
            found[f"{own}.{name}.weight"] = (out, into)
        found[f"{own}.input_layernorm.weight"] = (width,)
        found[f"{own}.post_attention_layernorm.weight"] = (width,)
    meta = {"dtype": torch.bfloat16, "device": "meta"}
    return {name: torch.empty(shape, **meta) for name, shape in found.items()}


def make(folder: Path, seed: int, layers: int, shard: int) -> None:
    """A folder with random parameters."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    generator = torch.Generator().manual_seed(seed)
    tensors = shapes(layers)
    with FolderWriter(folder, tensors, shard) as writer:
        for name, value in tensors.items():
            drawn = torch.randn(value.shape, generator=generator).mul_(0.02)
            writer.write(name, (drawn + 1 if "norm" in name else drawn).to(value.dtype))


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Seconds and largest resident bytes of a command; RuntimeError if it fails.

    Seconds of the processors tell more than those of the clock where others are at work, too.
    """
    peak = {"RssAnon": 0, "RssFile": 0, "VmHWM": 0}
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    before, start = _processor(), time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                lines = [line.split() for line in status.read_text().splitlines()]
            except (FileNotFoundError, ProcessLookupError):
                break
            for key, value, *_ in (line for line in lines if len(line) > 1):
                if key.rstrip(":") in peak:
                    peak[key.rstrip(":")] = max(peak[key.rstrip(":")], int(value) * 1024)
            time.sleep(0.005)
        code = process.wait()
    seconds = time.perf_counter() - start
    if code:
        message = f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}"
        raise RuntimeError(message)
    return {
        "seconds": seconds,
        "processor": _processor() - before,
        "anonymous": peak["RssAnon"],
        "file_backed": peak["RssFile"],
        "together": peak["VmHWM"],
    }


def _processor() -> float:
    """Seconds of all cores that ended children have taken, in user code and the kernel."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def furthest(models: list[Path], merged: Path) -> float:
    """How far a merge is from the mean in double precision at most, in units in its last place."""
    readers = [PartReader(path) for path in (merged, *models)]
    memory = [memory_for(PART, {torch.bfloat16}) for _ in readers]
    worst = 0.0
    for name, value in load_shapes(merged).items():
        for start in range(0, value.numel(), PART):
            stop = min(start + PART, value.numel())
            parts = [
                reader.read(name, start, stop, own).double()
                for reader, own in zip(readers, memory, strict=True)
            ]
            mean = torch.stack(parts[1:]).mean(0)
            unit = torch.finfo(torch.bfloat16).eps * torch.exp2(mean.abs().log2().floor())
            off = (parts[0] - mean).abs() / unit.clamp_min(torch.finfo(torch.bfloat16).tiny)
            worst = max(worst, float(off.max()))
    return worst


def commands(args: argparse.Namespace, models: list[Path], work: Path) -> dict[str, list[str]]:
    """What is measured, by name; each writes to the folder of its name."""
    ours = {
        "merge_method": "average",
        "models": [{"model": str(path)} for path in models],
        "parameters": {"repair": "none"},
    }
    theirs = {
        "merge_method": "linear",
        "models": [{"model": str(path), "parameters": {"weight": 1.0}} for path in models],
        "dtype": "bfloat16",
    }
    for name, content in (("ours", ours), ("theirs", theirs)):
        (work / f"{name}.yml").write_text(yaml.safe_dump(content))
    size = f"--out-shard-size={args.shard}MB"
    made = {
        "ccamerge": [
            *(sys.executable, "-m", "ccamerge", "merge", str(work / "ours.yml")),
            *(str(work / "ccamerge"), "--quiet", size),
        ]
    }
    if args.mergekit is not None:
        plain = [
            *(str(args.mergekit), str(work / "theirs.yml"), "NAME", "--quiet"),
            *("--no-copy-tokenizer", f"--out-shard-size={args.shard // 2}M"),  # of parameters
        ]
        for name, more in (
            ("mergekit", []),
            ("mergekit async", ["--async-write", "--write-threads", str(os.cpu_count())]),
        ):
            made[name] = [str(work / name) if word == "NAME" else word for word in plain] + more
    return made


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    models = [work / f"model{index}" for index in range(args.models)]
    for index, path in enumerate(models):
        make(path, index, args.layers, args.shard * 10**6)
    size = sum(p.stat().st_size for p in models[0].iterdir())
    print(f"{args.models} folders of {size / 1e9:.2f} GB", flush=True)
    wanted = commands(args, models, work)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    units = {}
    for _ in range(args.repeats):
        for name, command in wanted.items():
            shutil.rmtree(work / name, ignore_errors=True)
            rows[name].append(measured(command, work / "log"))
            shown = {
                k: round(v / 1e6) if v > 1e5 else round(v, 2) for k, v in rows[name][-1].items()
            }
            print(name, shown, flush=True)
    for name in wanted:
        units[name] = furthest(models, work / name)
    middle: Callable[[str, str], float] = lambda name, key: statistics.median(  # noqa: E731
        row[key] for row in rows[name]
    )
    keys = ("seconds", "processor", "anonymous", "file_backed", "together")
    return {
        "cores": os.cpu_count(),
        "models": args.models,
        "bytes": size,
        "shard_bytes": args.shard * 10**6,
        "repeats": args.repeats,
        "rows": {
            name: {**{key: middle(name, key) for key in keys}, "units_off": units[name]}
            for name in wanted
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mergekit", type=Path, help="the command mergekit-yaml")
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--layers", type=int, default=10, help="10 make 1 GB")
    parser.add_argument("--shard", type=int, default=400, help="MB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where to make the folders (default: temporary)")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        found = run(args, Path(work))
    print("\n              seconds  processor  anonymous MB  file-backed MB  units off")
    for name, row in found["rows"].items():
        print(
            f"{name:14}{row['seconds']:7.2f}  {row['processor']:9.2f}"
            f"  {row['anonymous'] / 1e6:12.0f}"
            f"  {row['file_backed'] / 1e6:14.0f}  {row['units_off']:9.2f}"
        )
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
