"""``ccamerge info``: what runs underneath, for bug reports."""

from __future__ import annotations

import argparse

from ccamerge.cli._shared import to_json

NAME = "info"
HELP = "versions, threads, BLAS and CUDA"
DESCRIPTION = "Prints versions, numbers of threads, the BLAS libraries found and the CUDA status."
EPILOG = "Please add the output to bug reports."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    import os
    import platform

    import torch
    from threadpoolctl import threadpool_info

    from ccamerge._core import num_threads_reason, runs_on_torch_threads
    from ccamerge.core.cuda import cuda_status
    from ccamerge.core.threads import num_threads
    from ccamerge.reporting.model_card import versions

    facts = {
        **versions(),
        "platform": platform.platform(),
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "threads": f"{num_threads()} in ccamerge's core (by {num_threads_reason()}), "
        f"{torch.get_num_threads()} in torch; the core runs on "
        + ("torch's, or its own while cores are busy" if runs_on_torch_threads() else "its own"),
        "BLAS": "; ".join(
            f"{pool['internal_api']} {pool['version']} ({os.path.basename(pool['filepath'])})"
            for pool in threadpool_info()
            if pool["user_api"] == "blas"
        )
        or "none that threadpoolctl knows",
        "CUDA": cuda_status(),
    }
    if args.json:
        print(to_json(facts))
        return 0
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")
    return 0
