"""Checks of a built wheel: what it holds, how large it is, what its modules need and export.

python tools/check_wheel.py WHEEL
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIMIT = 20_000_000
"""Bytes that a wheel may have."""

CONTENTS = ("_core.pyi", "_cuda.pyi", "py.typed", "reporting/page.html.jinja")
MODULES = ("_core", "_cuda")

SYSTEM = re.compile(r"(ld-linux[-\w]*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+))\.so\.\d+")
"""Libraries that every Linux has. CUDA's are none of them: they are loaded when first used."""


def needed(module: Path) -> list[str]:
    """The libraries that the loader must find before it loads a module."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", _readelf("--dynamic", module))


def exported(module: Path) -> list[str]:
    """The symbols that a module defines for others."""
    rows = (line.split() for line in _readelf("--dyn-syms", module).splitlines())
    # Number, value, size, type, binding, visibility, section, name.
    symbols = (row for row in rows if len(row) >= 8 and re.fullmatch(r"\d+:", row[0]))
    return [r[7] for r in symbols if r[4] != "LOCAL" and r[6] != "UND"]


def module_faults(module: Path) -> list[str]:
    """What is wrong with a native module, a sentence each."""
    name = module.name.partition(".")[0]
    faults = [f"{name} needs {n}" for n in needed(module) if not SYSTEM.fullmatch(n)]
    if exported(module) != [f"PyInit_{name}"]:
        faults.append(f"{name} exports {', '.join(exported(module)) or 'nothing'}")
    return faults


def wheel_faults(wheel: Path) -> list[str]:
    """What is wrong with a wheel, a sentence each."""
    faults = []
    size = wheel.stat().st_size
    if size >= LIMIT:
        faults.append(f"the wheel has {size / 1e6:.1f} MB, {LIMIT / 1e6:.0f} MB are too many")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        faults += [f"the wheel lacks {c}" for c in CONTENTS if f"ccamerge/{c}" not in names]
        for module in MODULES:
            found = [n for n in names if re.fullmatch(rf"ccamerge/{module}\..*so", n)]
            if not found:
                faults.append(f"the wheel lacks the module {module}")
            for name in found:
                faults += module_faults(Path(archive.extract(name, folder)))
        faults += [f"a library was copied into the wheel: {n}" for n in names if ".libs/" in n]
    return faults


def _readelf(what: str, module: Path) -> str:
    command = ["readelf", "--wide", what, str(module)]
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout


def main() -> int:
    """Print the faults of the wheel that the command line names, or that it has none."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    wheel = Path(sys.argv[1])
    faults = wheel_faults(wheel)
    for fault in faults:
        print(f"{wheel.name}: {fault}", file=sys.stderr)
    if not faults:
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, nothing wrong")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
