"""What a person wants to know about CUDA: whether it is used, and if not, why."""

from __future__ import annotations

from ccamerge.core.device import obstacle


def cuda_status() -> str:
    """One line for a person: the devices that were found, or why none can be used.

    The first call loads CUDA's libraries, unless something cheaper rules CUDA out.
    """
    reason = obstacle()
    if reason is not None:
        return reason
    from ccamerge import _cuda

    version = _cuda.runtime_version()
    names = ", ".join(
        f"{d.name} (compute capability {d.major}.{d.minor}, {d.memory / 2**30:.0f} GiB)"
        for d in _cuda.devices()
    )
    return f"built for CUDA {version // 1000}.{version % 1000 // 10}, found {names}; usable"
