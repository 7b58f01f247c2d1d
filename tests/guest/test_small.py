"""The small guest: the ABI from a kernel that does exactly one thing, also what no Linux would do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from toolstack.lab.guest import Guest
from toolstack.lab.host import Host

pytestmark = pytest.mark.timeout(120)

MARKER = "umxen: small guest reached"

BootSmall = Callable[..., Guest]


@pytest.fixture
def boot_small(boot: Callable[..., Guest], small_kernel: Path) -> BootSmall:
    """`boot_small("words of the command line", wait=True, **keys)`: the small guest, past its first line."""

    def start(words: str, wait: bool = True, **keys: object) -> Guest:
        settings = {"kernel": small_kernel, "memory": 8, "extra": words, "on_poweroff": "preserve"} | keys
        guest = boot(**settings)
        if wait:
            guest.console.expect(MARKER, timeout=20)
        return guest

    return start


def test_says_hello_and_powers_off(boot_small: BootSmall) -> None:
    guest = boot_small("hello")
    found = guest.console.expect(re.compile(r"hello from domain (\S+), a 10 ms timer took (\d+) us"))
    assert found.groups[0] == str(guest.domid)
    assert 10_000 <= int(found.groups[1] or 0) < 2_000_000
    guest.wait_state("shutdown")


def test_its_first_line_is_on_the_hypervisors_console_too(boot_small: BootSmall, host: Host) -> None:
    guest = boot_small("hello")
    guest.wait_state("shutdown")
    assert MARKER in host.xm("dmesg").stdout


def test_reads_its_console(boot_small: BootSmall) -> None:
    guest = boot_small("shell")
    guest.console.expect("small> ")
    guest.console.send_line("helloo\b\x7fo")
    guest.console.expect("hello from domain")
    guest.console.send_line("nonsense")
    guest.console.expect('no "nonsense" here')
    guest.console.send_line("poweroff")
    guest.wait_state("shutdown")


def test_much_output_is_not_lost(boot_small: BootSmall) -> None:
    guest = boot_small("shell")
    for _ in range(20):
        guest.console.send_line("help")
    guest.console.send_line("hello")
    guest.console.expect("hello from domain")
    assert guest.console.text.count("  poweroff: shut down") == 20


def test_idles_and_obeys_xm(boot_small: BootSmall, host: Host) -> None:
    guest = boot_small("idle", on_poweroff="destroy")
    guest.console.expect("umxen: idle")
    before = host.xm("list", guest.name).stdout.split()[-1]
    time.sleep(1)
    assert (
        float(host.xm("list", guest.name).stdout.split()[-1]) - float(before) <= 0.1
    )  # blocked, not spinning
    guest.shutdown()
    assert guest.state() == "gone"


def test_timers_tick(boot_small: BootSmall) -> None:
    guest = boot_small("tick 50")
    guest.console.expect("tick 1 ")
    began = time.monotonic()
    guest.console.expect("tick 11 ")
    assert 0.4 < time.monotonic() - began < 5


def test_reboots(boot_small: BootSmall) -> None:
    guest = boot_small("shell", on_reboot="restart")
    before = guest.domid
    guest.console.send_line("reboot")
    guest.wait_reborn(before)
    guest.console.expect(MARKER)


@pytest.mark.parametrize(
    ("word", "said"), [("crash", "crashing"), ("panic", None), ("fault", "trap 14, error 2")]
)
def test_crashes(boot_small: BootSmall, word: str, said: str | None) -> None:
    guest = boot_small(word, on_crash="preserve")
    if said:
        guest.console.expect(said)
    guest.wait_state("crashed")


def test_a_spinning_kernel_is_preempted_and_killed(boot_small: BootSmall, host: Host) -> None:
    # As many as there are CPUs, so that nobody else gets through unless they are preempted.
    cpus = int(re.search(r"nr_cpus\s*: (\d+)", host.xm("info").stdout)[1])  # type: ignore[index]
    spinning = [boot_small("spin") for _ in range(cpus)]
    for guest in spinning:
        guest.console.expect("spinning")
    polite = boot_small("hello")
    polite.console.expect("hello from domain")
    spinning[0].pause()
    spinning[0].wait_state("paused")
    for guest in spinning:
        guest.destroy()
        assert guest.state() == "gone"


def test_bad_page_tables_are_refused(boot_small: BootSmall) -> None:
    guest = boot_small("badpt")
    found = guest.console.expect(re.compile(r"badpt: what is allowed: (.*)\n.*badpt: (\d+) of (\d+) refused"))
    assert found.groups[0] == "0 0 0 0 0 0"
    assert found.groups[1] == found.groups[2] == "11", guest.console.text
    guest.wait_state("shutdown")


@pytest.mark.parametrize("seed", range(1, 7))
def test_random_calls_hurt_nobody_else(boot_small: BootSmall, seed: int) -> None:
    bystander = boot_small("shell", name="bystander")
    # Its first line is not waited for: the calls may hit the console page before xenconsoled has read it.
    guest = boot_small(f"random {seed} 50000", wait=False, on_crash="preserve")
    guest.wait_state("shutdown", "crashed", timeout=60)
    bystander.console.send_line("hello")
    bystander.console.expect("hello from domain")
