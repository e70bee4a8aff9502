"""Where the library computes: on the CPU, or on a CUDA device in torch's memory and on its streams.

A `Device` is the second of these; the CPU is None. Nothing of CUDA is touched before somebody asks
for a device, or for the reason why there is none: starting CUDA would break later forks.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import math
import re
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor

__all__ = [
    "DEVICE_PATTERN",
    "Device",
    "DeviceLike",
    "array_device",
    "memory_of",
    "moved_tensor",
    "obstacle",
    "resolve",
]

DEVICE_PATTERN = re.compile(r"cpu|auto|cuda(:\d+)?")
"""Names that `resolve` knows."""

DeviceLike: TypeAlias = "str | int | torch.device | Device"
"""What users give for a device; see `resolve`."""


_DLPACK_CUDA = 2
"""The kind of device that DLPack's ``__dlpack_device__`` says for CUDA."""


@dataclasses.dataclass(frozen=True)
class Device:
    """A CUDA device by its index, as torch counts them; ``str`` gives torch's name for it.

    An emulated device (a build for tests) has the CPU's memory and no streams. That is known here
    and nowhere else in the package.
    """

    index: int = 0

    def __str__(self) -> str:
        return f"cuda:{self.index}"

    @property
    def memory(self) -> torch.device:
        """The torch device whose tensors the backend reads and makes."""
        import torch

        return torch.device("cpu") if _emulated() else torch.device("cuda", self.index)

    @property
    def title(self) -> str:
        """The device for people: its name and that of the hardware."""
        from ccamerge import _cuda

        return f"{self} ({_cuda.devices()[self.index].name})"

    def stream(self) -> int:
        """The address of torch's current stream on this device."""
        if _emulated():
            return 0
        import torch

        return int(torch.cuda.current_stream(self.index).cuda_stream)

    def side_stream(self) -> torch.cuda.Stream | None:
        """A stream beside the current one; None where work is done as soon as it is asked for."""
        if _emulated():
            return None
        return _side_stream(self.index)

    def active(self) -> AbstractContextManager[Any]:
        """Make this torch's current device, of which alone torch exports tensors by DLPack."""
        if _emulated():
            return nullcontext()
        import torch

        return torch.cuda.device(self.index)

    def synchronize(self) -> None:
        """Wait for everything that was put on the device's streams."""
        if not _emulated():
            import torch

            torch.cuda.synchronize(self.index)

    @contextmanager
    def queue(self, arrays: Iterable[Any]) -> Iterator[int]:
        """The stream on which the producer of some arrays works, current while the context lasts.

        The device is current, too. The stream is torch's current one, or CuPy's if the arrays are
        CuPy's: so there is nothing to wait for.

        Raises
        ------
        ValueError
            For arrays of both, if their current streams differ.
        """
        own = self.stream()
        sources = {_is_cupy(array) for array in arrays}
        theirs = self._cupy_stream() if True in sources else own
        if theirs == own:
            with self.active():
                yield own
            return
        if False in sources:
            message = (
                f"arrays of torch and CuPy on {self}, whose current streams differ; work on one "
                "stream, for example within torch.cuda.stream(torch.cuda.ExternalStream(...))"
            )
            raise ValueError(message)
        import torch

        known = torch.cuda.ExternalStream(theirs, device=self.index) if theirs else None
        with torch.cuda.stream(known or torch.cuda.default_stream(self.index)):
            yield theirs

    def _cupy_stream(self) -> int:
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(self.index):
            return int(cupy.cuda.get_current_stream().ptr)

    def allocate(self, nbytes: int) -> Tensor:
        """Uninitialised bytes of torch's memory, for use on its current stream.

        Raises
        ------
        RuntimeError
            If there is not so much; the message says how much was wanted.
        """
        import torch

        try:
            return torch.empty(nbytes, dtype=torch.uint8, device=self.memory)
        except torch.OutOfMemoryError as error:
            message = (
                f"{nbytes / 2**20:.0f} MiB more do not fit into the memory of {self}; smaller "
                f"batches, fewer models at once or device='cpu' need less ({error})"
            )
            raise RuntimeError(message) from error

    def view(self, memory: Tensor, offset: int, shape: Sequence[int]) -> Tensor:
        """A float64 tensor of some shape, in C order, ``offset`` bytes into allocated memory."""
        import torch

        part = memory[offset : offset + 8 * math.prod(shape)]
        return part.view(torch.float64).view(tuple(shape))


@functools.cache
def _side_stream(index: int) -> torch.cuda.Stream:
    # One for all passes: libraries keep workspace for each stream that they have worked on.
    import torch

    return torch.cuda.Stream(index)


def resolve(device: DeviceLike | None) -> Device | None:
    """The device that a user means; None is the CPU.

    Parameters
    ----------
    device : None or "cpu"; "cuda" (torch's current device), "cuda:1", an index or a torch.device;
        "auto" for CUDA where it is usable, else the CPU

    Raises
    ------
    ValueError
        For anything else.
    RuntimeError
        If CUDA is asked for and not usable, with the reason, or there is no such device.
    """
    if device is None or isinstance(device, Device):
        return device
    text = f"cuda:{device}" if type(device) is int else str(device)
    if not DEVICE_PATTERN.fullmatch(text):
        message = f"device must be 'cpu', 'cuda', 'cuda:N' or 'auto', got {device!r}"
        raise ValueError(message)
    if text == "cpu" or (text == "auto" and obstacle() is not None):
        return None
    index = text.partition(":")[2]
    reason = obstacle()
    if reason is None:
        number, count = int(index) if index else _current_index(), _count()
        if number < count:
            return Device(number)
        reason = f"there {'is one device' if count == 1 else f'are {count} devices'}"
    message = f"device {text!r} cannot be used: {reason}"
    raise RuntimeError(message)


def memory_of(device: Device | None) -> torch.device:
    """The torch device of a `Device`, or of the CPU."""
    import torch

    return torch.device("cpu") if device is None else device.memory


def array_device(array: Any) -> Device | None:
    """The CUDA device in whose memory an array of torch, CuPy or another library is."""
    if hasattr(array, "detach"):  # a torch tensor, without importing torch
        return resolve(array.device) if array.device.type == "cuda" else None
    if not hasattr(array, "__dlpack_device__"):
        return None
    kind, index = array.__dlpack_device__()
    return resolve(int(index)) if int(kind) == _DLPACK_CUDA else None


@functools.cache
def obstacle() -> str | None:
    """Why CUDA cannot be used, None if it can; what is cheapest to know comes first."""
    from ccamerge import _core

    if not _core.cuda_built:
        return "not built (no CUDA compiler when ccamerge was installed)"
    try:
        from ccamerge import _cuda
    except ImportError as error:
        return f"built, but the module cannot be loaded: {error}"
    version = _cuda.runtime_version()
    built = f"built for CUDA {version // 1000}.{version % 1000 // 10}, but not usable"
    reasons = () if _cuda.emulated else (_driver_missing, _libraries_missing)
    for reason in (*reasons, _devices_missing):
        if (text := reason()) is not None:
            return f"{built}: {text}"
    if not _cuda.emulated and (text := _torch_missing()) is not None:
        return f"{built}: {text}"
    return None


def _driver_missing() -> str | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver ({error})"
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code == 100 or (code == 0 and count.value == 0):
        return "the NVIDIA driver shows no device (is CUDA_VISIBLE_DEVICES set?)"
    return f"the NVIDIA driver does not start (error {code} of cuInit)" if code else None


def _libraries_missing() -> str | None:
    """Load cuBLAS and cuSOLVER: those of NVIDIA's packages, which torch brings, else the system's.

    A copy that the process has already is taken before any of these.
    """
    from ccamerge import _cuda

    major = _cuda.runtime_version() // 1000
    found = importlib.util.find_spec("nvidia")
    roots = list(found.submodule_search_locations or ()) if found else []
    candidates = []
    for name in (f"libcublas.so.{major}", f"libcusolver.so.{major - 1}"):
        packaged = [Path(root) / f"cu{major}" / "lib" / name for root in roots]
        candidates.append([*(str(path) for path in packaged if path.is_file()), name])
    try:
        _cuda.load_libraries(*candidates)
    except RuntimeError as error:
        return f"{error}; pip install 'ccamerge[cuda13]' brings them"
    return None


def _devices_missing() -> str | None:
    from ccamerge import _cuda

    try:
        return None if _cuda.devices() else "no device was found"
    except RuntimeError as error:
        return str(error)


def _torch_missing() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    version = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{version} is built without CUDA, and memory comes from torch"
    return f"{version} (CUDA {torch.version.cuda}) cannot use the device"


def _emulated() -> bool:
    from ccamerge import _cuda

    return _cuda.emulated


def _count() -> int:
    from ccamerge import _cuda

    return len(_cuda.devices())


def _current_index() -> int:
    if _emulated():
        return 0
    import torch

    return int(torch.cuda.current_device())


def _is_cupy(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def moved_tensor(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; itself if it is there.

    Copies from the CPU to a GPU go through pinned memory and are not waited for: what is put on
    the current stream later finds them done.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)
    return tensor.to(device)
