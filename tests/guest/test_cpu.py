"""User space of Debian guests on the CPU they are shown: x86-64-v3 where the host has it, less where their
configuration says so.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from toolstack.lab import images
from toolstack.lab.guest import Guest
from toolstack.lab.host import Host
from toolstack.lab.images import Kernel

pytestmark = pytest.mark.timeout(300)

PROGRAM = Path(__file__).parent / "programs" / "vectors.c"
FLAGS = "-O3 -static -pthread -Wall -Wextra -Werror".split()

BootWith = Callable[..., Guest]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, for any x86-64."""
    output = tmp_path_factory.mktemp("vectors") / "plain"
    subprocess.run(["gcc", *FLAGS, str(PROGRAM), "-o", str(output)], check=True)
    return output


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, for x86-64-v3."""
    output = tmp_path_factory.mktemp("vectors") / "vectors"
    subprocess.run(["gcc", *FLAGS, "-march=x86-64-v3", str(PROGRAM), "-o", str(output)], check=True)
    if subprocess.run([output, "compute"], capture_output=True).returncode:
        pytest.skip("this host is not an x86-64-v3")
    return output


@pytest.fixture
def boot_with(boot: BootWith, debian_kernel: Kernel, vectors: Path, plain: Path) -> BootWith:
    """A Debian guest with both programs in /bin, at its prompt."""

    def start(**keys: object) -> Guest:
        files = {"bin/vectors": vectors.read_bytes(), "bin/plain": plain.read_bytes()}
        ramdisk = images.initial_ramdisk(debian_kernel, files=files)
        guest = boot(kernel=debian_kernel.path, ramdisk=ramdisk, extra="console=hvc0 loglevel=4", **keys)
        guest.console.expect("# ", timeout=120)
        return guest

    return start


def flags(guest: Guest) -> set[str]:
    return set(guest.run("grep -m1 ^flags /proc/cpuinfo", check=True).output.split())


def found(guest: Guest) -> dict[str, str]:
    lines = guest.run("vectors levels", check=True).output.splitlines()
    return {line.split()[0]: line.split()[1] for line in lines}


def test_x86_64_v3(boot_with: BootWith, vectors: Path, host: Host) -> None:
    """Kernel, compiler and C library find it, and programs compute what they compute on the host."""
    guest = boot_with(vcpus=2)
    assert {"avx2", "bmi1", "bmi2", "fma", "abm", "movbe", "f16c", "xsave", "sse4_2"} <= flags(guest)
    assert "avx512f" not in flags(guest)
    levels = found(guest)
    assert [levels[name] for name in ("x86-64-v2", "x86-64-v3", "avx2", "avx512f")] == ["1", "1", "1", "0"]
    assert levels["strlen"] == "avx2"
    native = subprocess.run([vectors, "compute"], capture_output=True, text=True, check=True).stdout
    assert guest.run("vectors compute", check=True).output == native
    assert "Guests are offered x86-64-v3" in host.xm("dmesg").stdout


def test_vector_registers_are_each_thread_s_own(boot_with: BootWith) -> None:
    """More threads than vCPUs, with signals, on vCPUs that share the pCPUs with another guest's."""
    first, second = boot_with(vcpus=2), boot_with(vcpus=2)
    second.console.send_line("vectors threads 3 60000 &")
    assert first.run("vectors threads 6 3000", check=True).output == "threads ok\n"


def test_xsave_leaves(boot_with: BootWith) -> None:
    """XCR0 is the guest's own: x87, SSE, AVX. Unused upper halves are not in use."""
    guest = boot_with()
    lines = guest.run("vectors leaves", check=True).output.splitlines()
    assert lines[0] == "d.0 7 340 340 0"
    assert re.fullmatch(r"d\.1 [0-7] (0|340) 0 0", lines[1])
    assert lines[2:4] == ["d.2 100 240 0 0", "xgetbv.0 7"]
    assert int(lines[4].split()[1], 16) & 4 == 0


MASKS = {
    "host,avx=0": ("avx avx2 fma", "bmi2 popcnt tzcnt xsave"),
    "host,avx2=0,bmi2=0": ("avx2 bmi2", "avx bmi1 fma"),
    "host,xsave=0": ("avx avx2 fma xsave", "bmi1 bmi2 sse4_2"),
    "host,sse4_2=0,popcnt=0,bmi1=0": ("sse4_2 popcnt bmi1 tzcnt", "ssse3 bmi2"),
    "host,aes=0,rdrand=0": ("aes rdrand", "avx2"),
    "7,0:ebx=" + "x" * 26 + "0" + "x" * 5: ("avx2", "avx bmi2"),
}


@pytest.mark.parametrize("cpuid", MASKS)
def test_what_is_masked_is_not_there(boot_with: BootWith, cpuid: str) -> None:
    """CPUID does not show it, and its instructions are #UD in this guest."""
    guest = boot_with(cpuid=[cpuid])
    gone, left = (words.split() for words in MASKS[cpuid])
    shown = flags(guest)
    assert not shown & (set(gone) - {"tzcnt"})
    for name in left:
        assert guest.run(f"plain try {name}").output == "ran\n", name
    for name in gone:
        assert guest.run(f"plain try {name}").status == 128 + 4, name
