"""Debian's stock kernels as PV guests: boot, shell, vCPUs, memory, and each way a life can end."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable

import pytest

from toolstack.lab import images, initramfs
from toolstack.lab.guest import Guest
from toolstack.lab.host import Host
from toolstack.lab.images import Kernel

pytestmark = pytest.mark.timeout(300)

PROMPT = "# "
EXTRA = "console=hvc0 loglevel=4"

BootDebian = Callable[..., Guest]


@pytest.fixture
def boot_debian(boot: Callable[..., Guest], debian_kernel: Kernel) -> BootDebian:
    """`boot_debian(flavour=None, wait=PROMPT, **keys)`: a booted Debian guest at its prompt."""

    def start(flavour: str | None = None, wait: str = PROMPT, **keys: object) -> Guest:
        kernel = images.kernel(flavour=flavour) if flavour else debian_kernel
        settings = {"kernel": kernel.path, "ramdisk": images.initial_ramdisk(kernel), "extra": EXTRA} | keys
        guest = boot(**settings)
        guest.console.expect(wait, timeout=120)
        return guest

    return start


@pytest.mark.parametrize("flavour", ["cloud", "amd64"])
def test_boots_to_a_shell(boot_debian: BootDebian, flavour: str) -> None:
    guest = boot_debian(flavour, extra="console=hvc0")
    assert initramfs.MARKER in guest.console.text
    assert re.search(r"Hypervisor detected: Xen PV", guest.console.text)
    assert guest.run("uname -r").output.strip() == images.kernel(flavour=flavour).release
    assert guest.run("cat /sys/hypervisor/type /sys/hypervisor/version/major").output == "xen\n4\n"


def test_its_drivers_are_loaded(guest: Guest) -> None:
    modules = guest.run("lsmod", check=True).output
    assert "xen_blkfront" in modules and "xen_netfront" in modules


def test_two_vcpus(boot_debian: BootDebian, host: Host) -> None:
    guest = boot_debian(vcpus=2)
    assert guest.run("nproc").output == "2\n"
    assert guest.run("grep -c ^processor /proc/cpuinfo").output == "2\n"
    count = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo $i"
    assert guest.run(f"for n in 1 2 3; do ( {count} ) & done; wait").output == "20000\n" * 3
    ticks = guest.run("awk '/^cpu[01]/ { print ($2 > 0) }' /proc/stat").output
    assert ticks == "1\n1\n", "one of the vCPUs ran nothing"
    rows = [line.split() for line in host.xm("vcpu-list", guest.name).stdout.splitlines()[1:]]
    assert [row[2] for row in rows] == ["0", "1"]


def test_a_shell_script(guest: Guest) -> None:
    script = """
        set -e
        cd /tmp
        head -c 1000000 /dev/zero | md5sum
        seq 1 1000 | awk '{ sum += $1 } END { print sum }'
        mkdir -p a/b && echo data > a/b/c && tar cf - a | tar tf - | tail -n 1
        ( for i in 1 2 3 4 5 6 7 8; do echo $i & done; wait ) | sort | tr '\\n' ' '
        echo
        mkfifo pipe; cat pipe & echo through a pipe > pipe; wait
        for i in $(seq 1 200); do /bin/true; done
        exit 42
    """
    result = guest.run(script)
    assert result.output.splitlines() == [
        "879f4bba57ed37c9ec5e5aedf9864698  -",
        "500500",
        "a/b/c",
        "1 2 3 4 5 6 7 8 ",
        "through a pipe",
    ]
    assert result.status == 42


def test_time_passes_as_outside(guest: Guest) -> None:
    assert abs(int(guest.run("date +%s").output) - time.time()) < 5
    began = time.monotonic()
    assert guest.run("sleep 1").status == 0
    assert 0.9 < time.monotonic() - began < 5


def test_powers_off_from_inside(guest: Guest) -> None:
    guest.console.send_line("poweroff")
    assert guest.wait_state("gone") == "gone"


def test_powers_off_when_xm_asks(guest: Guest, host: Host) -> None:
    assert "terminated" in host.xm("shutdown", "-w", guest.name).stdout
    guest.wait_state("gone", timeout=5)


@pytest.mark.parametrize("ask", ["inside", "xm"])
def test_reboots(guest: Guest, ask: str) -> None:
    before = guest.domid
    if ask == "inside":
        guest.console.send_line("reboot")
        guest.wait_reborn(before)
    else:
        guest.reboot()
    assert guest.domid != before
    guest.console.expect(initramfs.MARKER, timeout=60)
    guest.console.expect(PROMPT)
    assert float(guest.run("cut -d' ' -f1 /proc/uptime").output) < 60


@pytest.mark.parametrize("action", ["destroy", "preserve", "restart"])
def test_crashes(boot_debian: BootDebian, action: str) -> None:
    guest = boot_debian(on_crash=action)
    before = guest.domid
    guest.console.send_line("echo c > /proc/sysrq-trigger")
    if action == "destroy":
        guest.wait_state("gone")
    elif action == "preserve":
        guest.wait_state("crashed")
        assert guest.domid == before
    else:
        guest.wait_reborn(before)
        guest.console.expect(initramfs.MARKER, timeout=60)


def test_sysrq_from_xm(guest: Guest, host: Host) -> None:
    host.xm("sysrq", guest.name, "h")
    guest.console.expect("sysrq: HELP", timeout=10)


def test_pauses(guest: Guest, host: Host) -> None:
    guest.pause()
    guest.wait_state("paused")
    before = host.xm("list", guest.name).stdout
    guest.console.drain()
    guest.console.send_line("echo still $((1 + 1)) here")
    assert guest.console.drain(0.5) == ""
    assert host.xm("list", guest.name).stdout == before  # its CPU time stands still
    guest.unpause()
    guest.console.expect("still 2 here")
    guest.wait_state("running")


def test_memory_follows_mem_set_both_ways(boot_debian: BootDebian, host: Host) -> None:
    guest = boot_debian(memory=160, maxmem=224)

    def total_mib() -> int:
        return int(guest.run("awk '/MemTotal/ { print $2 }' /proc/meminfo", check=True).output) // 1024

    def settles(around: int) -> None:
        deadline = time.monotonic() + 30
        while abs(total_mib() - around) > 8:
            assert time.monotonic() < deadline, f"MemTotal is {total_mib()}, not about {around}"
            time.sleep(0.1)

    start = total_mib()
    host.xm("mem-set", guest.name, "112")
    settles(start - 48)
    host.xm("mem-set", guest.name, "208")
    settles(start + 48)
    assert host.xm("list", guest.name).stdout.splitlines()[1].split()[2] == "208"


def test_a_command_from_the_kernel_command_line(boot_debian: BootDebian) -> None:
    text = base64.b64encode(b"echo ran $((40 + 2)); exit 6").decode()
    guest = boot_debian(wait="ran 42", extra=f"{EXTRA} umxen.run={text}", on_poweroff="preserve")
    guest.console.expect(f"{initramfs.RUN_STATUS} 6")
    guest.wait_state("shutdown")


def test_two_guests_at_once(boot_debian: BootDebian, host: Host) -> None:
    first, second = boot_debian(), boot_debian()
    first.run("echo one > /tmp/mine", check=True)
    second.run("echo two > /tmp/mine", check=True)
    assert (first.run("cat /tmp/mine").output, second.run("cat /tmp/mine").output) == ("one\n", "two\n")
    first.destroy()
    assert first.state() == "gone"
    assert second.run("cat /tmp/mine").output == "two\n"


def test_what_the_hypervisor_says(guest: Guest, host: Host) -> None:
    assert guest.name in host.xm("list").stdout
    assert host.xm("domid", guest.name).stdout.strip() == str(guest.domid)
    assert "xen-3.0-x86_64" in host.xm("info").stdout
    assert host.xm("uptime", guest.name).returncode == 0
