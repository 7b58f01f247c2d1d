"""Debugging inside a stock guest: ptrace with steps and debug registers, perf's breakpoints, kprobes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from toolstack.lab import images
from toolstack.lab.guest import Guest
from toolstack.lab.images import Kernel

pytestmark = pytest.mark.timeout(300)

SOURCE = Path(__file__).resolve().parent / "programs" / "debug.c"
TRACING = (
    "mount -t tracefs t /sys/kernel/tracing; cd /sys/kernel/tracing; echo 0 > /proc/sys/kernel/kptr_restrict"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("debug") / "debug"
    command = ["gcc", "-O1", "-static", "-no-pie", "-Wall", "-Wextra", "-Werror", SOURCE, "-o", output]
    subprocess.run(command, check=True)
    return output


@pytest.fixture
def debugging(boot: Callable[..., Guest], debian_kernel: Kernel, program: Path) -> Guest:
    """Two vCPUs at a prompt, with the program."""
    ramdisk = images.initial_ramdisk(debian_kernel, files={"bin/debug": program.read_bytes()})
    guest = boot(kernel=debian_kernel.path, ramdisk=ramdisk, vcpus=2, extra="console=hvc0 loglevel=4")
    guest.console.expect("# ", timeout=60)
    return guest


def native(program: Path) -> list[str] | None:
    """What it prints here; None where it may not trace, or has no debug registers."""
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    return None if done.returncode or any("debug register" in line for line in lines) else lines


def test_ptrace_as_on_the_host(debugging: Guest, program: Path) -> None:
    """Each single step, each breakpoint and each watched access is where the host's CPU has it."""
    lines = debugging.run("debug").output.splitlines()
    assert lines[-1] == "debug: done", lines
    expected = native(program)
    assert expected is None or lines == expected


def test_a_breakpoint_in_the_kernel(debugging: Guest) -> None:
    debugging.run(TRACING)
    assert debugging.run("debug __x64_sys_getppid").output == "breakpoint at __x64_sys_getppid: 1000\n"


def test_kprobes(debugging: Guest) -> None:
    """At an instruction and at a return; then put in and taken out while both vCPUs run over it."""
    debugging.run(TRACING)
    script = """
        cd /sys/kernel/tracing
        echo 'p:first __x64_sys_getppid' > kprobe_events
        echo 'r:ret __x64_sys_getppid $retval' >> kprobe_events
        echo 1 > events/kprobes/enable; debug __x64_sys_getppid; cat kprobe_profile
        echo 0 > events/kprobes/enable; echo > kprobe_events; echo 'p:rd ksys_read' > kprobe_events
        for n in 1 2; do
            ( while [ ! -e /stop ]; do dd if=/dev/zero of=/dev/null bs=1 count=5000 2>&1; done | sort -u ) &
        done
        i=0; while [ $i -lt 15 ]; do
            echo 1 > events/kprobes/rd/enable; echo 0 > events/kprobes/rd/enable; i=$((i + 1))
        done; touch /stop; wait; awk '{ print $1, ($2 > 100), $3 }' kprobe_profile"""
    lines = [line.split() for line in debugging.run(script).output.splitlines()]
    assert lines[0][-1] == "1000"
    assert lines[1:3] == [["first", "1000", "0"], ["ret", "1000", "0"]]
    assert sorted(lines[3:-1]) == sorted([["5000+0", "records", "in"], ["5000+0", "records", "out"]] * 2)
    assert lines[-1] == ["rd", "1", "0"]
