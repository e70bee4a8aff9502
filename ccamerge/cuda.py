"""Whether CUDA is there, and if not, why. Merging itself runs on the CPU so far."""

from __future__ import annotations


def cuda_status() -> str:
    """One line for a person: the devices that were found, or why there are none.

    Nothing of CUDA is touched before this is called: starting CUDA would break later forks.
    """
    from ccamerge import _core

    if not _core.cuda_built:
        return "not built (no CUDA compiler when ccamerge was installed)"
    from ccamerge import _cuda

    version = _cuda.runtime_version()
    built = f"built for CUDA {version // 1000}.{version % 1000 // 10}"
    try:
        devices = _cuda.devices()
    except RuntimeError as error:
        return f"{built}, but not usable: {error}"
    if not devices:
        return f"{built}, but no device was found"
    names = ", ".join(
        f"{d.name} (compute capability {d.major}.{d.minor}, {d.memory / 2**30:.0f} GiB)"
        for d in devices
    )
    return f"{built}, found {names}; this version computes on the CPU"
