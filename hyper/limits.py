"""How big a machine this process may make: memory and CPUs by cgroup and affinity, not by what the host
has.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_CPUS = 64
MEMORY_STEP = 2 << 20
MIN_MEMORY = 64 << 20

_SUFFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_memory(text: str) -> int:
    """Bytes of "512M", "4G" and so on (powers of 1024); a bare number is MiB, as in xm. Rounded down to 2
    MiB.

    Raises: ValueError.
    """
    number, suffix = text.strip().upper().removesuffix("B").removesuffix("I"), "M"
    if number and number[-1] in _SUFFIXES:
        number, suffix = number[:-1], number[-1]
    if not (number.isascii() and number.isdecimal()):
        raise ValueError(f"memory {text!r}: want a number with M or G, such as 512M")
    nbytes = int(number) * _SUFFIXES[suffix] // MEMORY_STEP * MEMORY_STEP
    if not MIN_MEMORY <= nbytes < 1 << 46:
        raise ValueError(f"memory {text!r}: want at least {MIN_MEMORY >> 20}M and less than 64T")
    return nbytes


def default_memory() -> int:
    """Half of the RAM this process may use. The bank is sparse: only touched frames cost."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    half = min([ram, *_cgroup_limits()]) // 2
    return max(MIN_MEMORY, half // MEMORY_STEP * MEMORY_STEP)


def default_cpus() -> int:
    """The CPUs this process may run on."""
    return min(MAX_CPUS, len(os.sched_getaffinity(0)))


def _cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """memory.max of our cgroup and those above it (v2), or v1's limit."""
    files = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        folder, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        if not controllers or "memory" in controllers.split(","):
            here = Path(path.lstrip("/"))
            files += [folder / part / name for part in (here, *here.parents)]
    return [int(text) for text in (_read(file).strip() for file in files) if text.isdecimal()]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
