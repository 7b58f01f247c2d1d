"""32-bit programs in a stock 64-bit guest: Debian's static i386 busybox, and one of odd instructions."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from toolstack.lab import images
from toolstack.lab.guest import Guest
from toolstack.lab.images import Kernel

pytestmark = pytest.mark.timeout(300)

EXTRA = "console=hvc0 loglevel=4"
PROGRAMS = Path(__file__).resolve().parent / "programs"


def build(name: str, folder: Path, *flags: str) -> Path:
    """One of our programs without a C library, compiled with `flags`."""
    output = folder / name
    usual = "-O1 -nostdlib -static -ffreestanding -fno-pic -no-pie -fno-stack-protector -mno-sse".split()
    usual += ["-fno-asynchronous-unwind-tables", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, *usual, PROGRAMS / f"{name}.c", "-o", output], check=True)
    return output


@pytest.fixture(scope="module")
def compat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("compat", tmp_path_factory.mktemp("compat"), "-m32")


def native_lines(program: Path) -> list[str] | None:
    """What it prints here; None where the kernel runs no 32-bit programs."""
    try:
        done = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.splitlines()


def busybox_i386() -> bytes:
    try:
        return images.busybox_i386().read_bytes()
    except images.ImageError as error:
        pytest.skip(str(error))


def test_odd_instructions_segments_signals_and_threads(
    boot: Callable[..., Guest], debian_kernel: Kernel, compat: Path
) -> None:
    """Line by line what the host's CPU and kernel make of the same program."""
    ramdisk = images.initial_ramdisk(debian_kernel, files={"bin/compat": compat.read_bytes()})
    guest = boot(kernel=debian_kernel.path, ramdisk=ramdisk, vcpus=2, extra=EXTRA)
    guest.console.expect("# ", timeout=60)
    expected = native_lines(compat)
    for _ in range(2):
        result = guest.run("compat")
        assert result.output.splitlines()[-1] == "compat: done", result.output
        assert expected is None or result.output.splitlines() == expected


SCRIPT = """#!/i386/busybox sh
set -e
mkdir /i386/bin; /i386/busybox --install -s /i386/bin; PATH=/i386/bin; cd /tmp
head -c 1000000 /dev/zero | sha256sum | cut -c1-16
seq 1 1000 | awk '{ sum += $1 / 4 } END { print sum }'
seq 1 3000 | gzip | gunzip | sort -rn | head -n 1
( for i in 1 2 3 4 5 6 7 8; do echo $i & done; wait ) | sort | tr '\\n' ' '; echo
( sleep 60 & kill $!; wait $! ) 2>/dev/null || echo $?
for i in $(seq 1 50); do true | cat; done
exec sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; exit 42'
"""


def test_a_32_bit_busybox(boot: Callable[..., Guest], debian_kernel: Kernel) -> None:
    files = {"i386/busybox": busybox_i386(), "i386/test": SCRIPT.encode()}
    ramdisk = images.initial_ramdisk(debian_kernel, files=files)
    guest = boot(kernel=debian_kernel.path, ramdisk=ramdisk, vcpus=2, memory=160, extra=EXTRA)
    guest.console.expect("# ", timeout=60)
    result = guest.run("/i386/test")
    zeros = hashlib.sha256(bytes(1_000_000)).hexdigest()[:16]
    assert result.output.splitlines() == [zeros, "125125", "3000", "1 2 3 4 5 6 7 8 ", "143"]
    assert result.status == 42
