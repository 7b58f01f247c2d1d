"""The pytest plugin: fixtures that boot a host and guests in a test. See README.md in this folder.

pytest loads this file in every run where umxen is installed, so it imports nothing heavy by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from toolstack.lab.guest import Guest
    from toolstack.lab.host import Host
    from toolstack.lab.images import Kernel

_failed: pytest.StashKey[bool] = pytest.StashKey()
_SHOWN_LINES = 40


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("umxen", "hosts and guests of user-mode Xen")
    group.addoption("--umxen-cpus", type=int, default=None, metavar="N", help="physical CPUs of test hosts")
    group.addoption("--umxen-memory", default=None, metavar="SIZE", help="memory of test hosts (default: 2G)")
    group.addoption("--umxen-kernel", default=None, metavar="FILE", help="boot this kernel, not Debian's")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(scope="session")
def umxen_host(request: pytest.FixtureRequest) -> Iterator[Callable[..., Host]]:
    """A factory of private hosts: `umxen_host(name="lab", cpus=None, memory=None)`. The session ends them."""
    from toolstack.lab.host import Host

    started: list[Host] = []

    def start(name: str = "lab", *, cpus: int | None = None, memory: str | None = None) -> Host:
        host = Host.private(name)
        started.append(host)
        option = request.config.getoption
        host.start(cpus=cpus or option("--umxen-cpus"), memory=memory or option("--umxen-memory") or "2G")
        return host

    yield start
    for host in reversed(started):
        host.stop()


@pytest.fixture(scope="session")
def _shared_host(umxen_host: Callable[..., Host]) -> Callable[[], Host]:
    """The session's host; started when first asked for, and again when a test has brought it down."""
    kept: list[Host] = []

    def get() -> Host:
        if not kept or not kept[0].is_up():
            kept[:] = [umxen_host()]
        return kept[0]

    return get


@pytest.fixture
def host(request: pytest.FixtureRequest, _shared_host: Callable[[], Host]) -> Iterator[Host]:
    """A running host, the same for all tests. The test fails if the host holds more after it than before."""
    host = _shared_host()
    before = host.resources()
    yield host
    if request.node.stash.get(_failed, False):
        for name in ("hyper", "xenstored", "xenconsoled", "blkback", "netback", "xend", "supervisor"):
            _show(f"end of {name}.log", host.log(name))
    if not host.is_up():
        pytest.fail("the host is down after this test")
    if lost := host.lost_since(before):
        pytest.fail("the host lost something in this test: " + "; ".join(lost))


@pytest.fixture
def boot(request: pytest.FixtureRequest, host: Host) -> Iterator[Callable[..., Guest]]:
    """A factory of guests: `boot(kernel=..., ramdisk=..., memory=128, ...)`, see Host.create.

    All are destroyed after the test; of a failed one their consoles are shown.
    """
    guests: list[Guest] = []

    def create(name: str | None = None, **settings: Any) -> Guest:
        guest = host.create(name, **settings)
        guests.append(guest)
        return guest

    yield create
    for guest in reversed(guests):
        if request.node.stash.get(_failed, False):
            _show(f"end of the console of {guest.name}", guest.console_text())
        guest.destroy()


@pytest.fixture(scope="session")
def debian_kernel(request: pytest.FixtureRequest) -> Kernel:
    """Debian's cloud kernel, downloaded once, or the one of --umxen-kernel."""
    from pathlib import Path

    from toolstack.lab import images

    path = request.config.getoption("--umxen-kernel")
    return images.kernel(Path(path) if path else None)


@pytest.fixture(scope="session")
def initramfs(debian_kernel: Kernel) -> Path:
    """Our initramfs for that kernel: busybox, a shell on the console."""
    from toolstack.lab import images

    return images.initial_ramdisk(debian_kernel)


@pytest.fixture(scope="session")
def small_kernel() -> Path:
    """The small guest of domu/guests/small; `extra` says what it does."""
    from toolstack.lab import images

    return images.small_guest()


@pytest.fixture
def boot_debian(boot: Callable[..., Guest], debian_kernel: Kernel, initramfs: Path) -> Callable[..., Guest]:
    """A factory of Debian guests at a shell's prompt: `boot_debian(disks=[path], vifs=1, ...)`."""

    def create(name: str | None = None, **settings: Any) -> Guest:
        settings = {"extra": "console=hvc0 loglevel=4"} | settings
        guest = boot(name, kernel=debian_kernel.path, ramdisk=initramfs, **settings)
        guest.console.expect("# ", timeout=60)
        return guest

    return create


@pytest.fixture
def guest(boot_debian: Callable[..., Guest]) -> Guest:
    """A Debian kernel with busybox, 128 MiB, one vCPU, at its shell's prompt."""
    return boot_debian()


def _show(title: str, text: str) -> None:
    """Into the captured output of the test, which pytest shows when it failed."""
    lines = text.splitlines()[-_SHOWN_LINES:]
    print(f"---- {title}", *lines, sep="\n")
