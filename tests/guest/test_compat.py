"""32-bit programs in a stock 64-bit guest: Debian's static i386 busybox, and our own program of odd instructions."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from toolstack.lab import images
from toolstack.lab.guest import Guest
from toolstack.lab.images import Kernel

pytestmark = pytest.mark.timeout(300)

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
    guest = boot(kernel=debian_kernel.path, ramdisk=ramdisk, vcpus=2, extra="console=hvc0 loglevel=4")
    guest.console.expect("# ", timeout=60)
    expected = native_lines(compat)
    for _ in range(2):
        result = guest.run("compat")
        assert result.output.splitlines()[-1] == "compat: done", result.output
        assert expected is None or result.output.splitlines() == expected


def test_a_32_bit_busybox(boot: Callable[..., Guest], debian_kernel: Kernel) -> None:
    files = {"i386/busybox": busybox_i386()}
    ramdisk = images.initial_ramdisk(debian_kernel, files=files)
    guest = boot(kernel=debian_kernel.path, ramdisk=ramdisk, vcpus=2, memory=160, extra="console=hvc0 loglevel=4")
    guest.console.expect("# ", timeout=60)
    script = """
        set -e
        mkdir /i386/bin; /i386/busybox --install -s /i386/bin; PATH=/i386/bin; cd /tmp
        head -c 1000000 /dev/zero | sha256sum | cut -c1-16
        seq 1 1000 | awk '{ sum += $1 / 4 } END { print sum }'
        seq 1 3000 | gzip | gunzip | sort -rn | head -n 1
        ( for i in 1 2 3 4 5 6 7 8; do echo $i & done; wait ) | sort | tr '\\n' ' '; echo
        ( sleep 60 & p=$!; kill $p; wait $p; echo $? )
        for i in $(seq 1 50); do true | cat; done; uname -m
        exec sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; exit 42'
    """
    result = guest.run(f"/i386/busybox sh -c '{re.sub("'", chr(39) + chr(92) + chr(39) * 2, script)}'")
    assert result.output.splitlines() == ["d29751f2649b32ff", "125125", "3000", "1 2 3 4 5 6 7 8 ", "143", "x86_64"]
    assert result.status == 42
