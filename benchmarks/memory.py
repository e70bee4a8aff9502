"""Memory of merges by the number of models, with and without `ccamerge.memory_limit`.

    python benchmarks/memory.py                       # the table
    python benchmarks/memory.py --layers 4 --width 256 --models 2 4
    python benchmarks/memory.py --record              # and into README.md

Random Llamas in bfloat16, whose tensors are mapped from safetensors files, are merged by the
defaults, each merge in a process of its own. What lies in no file (``RssAnon``) is looked at every
few milliseconds from outside, and so are pages of mapped files (``RssFile`` and ``RssShmem``),
which the system may drop or write out when others want memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from layout import record, surroundings, table
from torchvision_import import import_torchvision

VOCABULARY, LENGTH, BATCH, BATCHES = 8000, 64, 4, 8


def network(layers: int, width: int) -> Any:
    """A random Llama."""
    import_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def written(path: Path, layers: int, width: int, seed: int) -> int:
    """Write a network to a file; its bytes."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    save_file(network(layers, width).to(torch.bfloat16).state_dict(), path)
    return path.stat().st_size


def mapped(path: Path, layers: int, width: int) -> Any:
    """The network of a file, whose tensors are pages of that."""
    from safetensors.torch import load_file

    model = network(layers, width).to(torch.bfloat16)
    model.load_state_dict(load_file(path), assign=True)
    return model.eval()


def merge(args: argparse.Namespace) -> None:
    """In a process of its own: merge some networks, under a limit or not."""
    import ccamerge

    torch.set_num_threads(1)
    ccamerge.set_num_threads(1)
    models = [mapped(path, args.layers, args.width) for path in args.files]
    torch.manual_seed(9)
    data = [{"input_ids": torch.randint(0, VOCABULARY, (BATCH, LENGTH))} for _ in range(BATCHES)]
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    with ccamerge.memory_limit(args.limit, args.scratch if args.limit else None):
        result = ccamerge.merge(models, data, progress=False)
    seconds = time.perf_counter() - start
    every = result.statistics
    moments = [m for folds in every.matched.values() for m in folds]
    moments += [m for taps in every.outputs.values() for m in taps.values()]
    size = sum(value.nbytes for m in moments for value in m.state_dict().values())
    print(json.dumps({"seconds": seconds, "statistics": size}), flush=True)


def resident(process: int) -> tuple[int, int]:
    """Bytes of a process in no file, and in mapped files."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except (OSError, ProcessLookupError):
        return 0, 0
    kinds = {
        line.split(":")[0]: 1024 * int(line.split()[1])
        for line in text.splitlines()
        if line.startswith("Rss")
    }
    return kinds.get("RssAnon", 0), kinds.get("RssFile", 0) + kinds.get("RssShmem", 0)


def watched(files: list[Path], args: argparse.Namespace, limit: str | None) -> dict[str, Any]:
    """A merge in a process of its own, and the most memory that it had."""
    shape = ["--layers", str(args.layers), "--width", str(args.width)]
    command = [sys.executable, __file__, *shape, "--scratch", str(args.scratch)]
    command += ["--limit", limit] if limit else []
    command += ["--files", *map(str, files)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = resident(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        most = before
        while process.poll() is None:
            now = resident(process.pid)
            most = (max(most[0], now[0]), max(most[1], now[1]))
            time.sleep(0.005)
        found = json.loads(process.stdout.read() or "{}")
    return {"before": before[0], "anonymous": most[0], "mapped": most[1], **found}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--models", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--limits", nargs="+", default=["none", "2G"])
    parser.add_argument("--record", action="store_true", help="put the table into README.md")
    parser.add_argument("--scratch", type=Path, default=Path.cwd(), help="on a disk")
    parser.add_argument("--limit", help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.files:
        merge(args)
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        files = [Path(folder) / f"{seed}.safetensors" for seed in range(max(args.models))]
        sizes = [written(f, args.layers, args.width, seed) for seed, f in enumerate(files)]
        for limit in args.limits:
            for count in args.models:
                found = watched(files[:count], args, None if limit == "none" else limit)
                amounts = [found[k] for k in ("statistics", "before", "anonymous", "mapped")]
                row = [limit, str(count), *(f"{amount / 2**20:.0f}" for amount in amounts)]
                rows.append([*row, f"{found['seconds']:.0f}"])
                print(" | ".join(rows[-1]), flush=True)
    head = "limit, models, statistics MiB, before MiB, in no file MiB, in files MiB, s"
    what = f"Llamas of {args.layers} layers of width {args.width}, {sizes[0] / 2**20:.0f} MiB each"
    text = f"{what}:\n\n{table(head.split(', '), rows)}"
    print(text)
    if args.record:
        shape = f"--layers {args.layers} --width {args.width}"
        record(
            "memory", f"{text}\n\nTaken on:\n{surroundings(f'python benchmarks/memory.py {shape}')}"
        )


if __name__ == "__main__":
    main()
