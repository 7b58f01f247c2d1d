"""Guests written in Python, started by xm like any other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolstack.lab.guest import Guest
from toolstack.lab.host import Host

pytestmark = pytest.mark.timeout(120)

TICKS = """
import trio


async def main(domain):
    print("begins", domain.domid, *domain.words)
    if "off" in domain.words:
        return
    if "crash" in domain.words:
        raise RuntimeError("as it was told")
    count = 0
    while True:
        print("tick", count)
        count += 1
        await trio.sleep(0.02)


async def disk(domain):
    async with domain.disk("xvda") as disk:
        await disk.write(0, b"written by Python".ljust(512, bytes(1)))
        await disk.flush()
        print("has", bytes(await disk.read(0, 1))[:17])
    await trio.sleep_forever()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "ticks.py"
    path.write_text(TICKS)
    return path


def processes(source: Path) -> list[int]:
    """Those that run a guest of that file."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and str(source).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def wait_ended(source: Path) -> None:
    deadline = time.monotonic() + 10
    while left := processes(source):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.fixture
def boot_python(boot: Callable[..., Guest], source: Path) -> Iterator[Callable[..., Guest]]:
    def create(extra: str = "", spec: str = "", **settings: object) -> Guest:
        return boot(kernel=f"python:{source}{spec}", memory=16, extra=extra, **settings)

    yield create


def test_a_life(boot_python: Callable[..., Guest], host: Host, source: Path) -> None:
    guest = boot_python("one 'two words'")
    guest.console.expect(f"begins {guest.domid} one two words")
    guest.console.expect("tick 3")
    assert "(isolation " in host.xm("list", "-l", guest.name).stdout
    guest.pause()
    deadline = time.monotonic() + 10  # a signal arrives when the process next runs
    while not all("\nState:\tT" in Path(f"/proc/{pid}/status").read_text() for pid in processes(source)):
        assert time.monotonic() < deadline
    guest.console.drain()
    time.sleep(0.3)
    assert guest.console.drain() == ""
    guest.unpause()
    guest.console.expect("tick")
    host.kill_daemon("xend")
    guest.console.expect("tick")
    before = guest.domid
    guest.reboot()
    assert guest.domid != before
    guest.console.expect("tick 1")
    guest.shutdown()
    wait_ended(source)


def test_ends(boot_python: Callable[..., Guest], host: Host, source: Path) -> None:
    boot_python("off").wait_state("gone")
    crashed = boot_python("crash", on_crash="preserve")
    crashed.console.expect("RuntimeError: as it was told")
    crashed.wait_state("crashed")
    killed = boot_python(on_crash="preserve")
    killed.console.expect("tick")
    for pid in processes(source):
        os.kill(pid, signal.SIGKILL)
    killed.wait_state("crashed")
    destroyed = boot_python()
    destroyed.console.expect("tick")
    for guest in (crashed, killed, destroyed):
        guest.destroy()
    wait_ended(source)


def test_a_disk(boot_python: Callable[..., Guest], tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    guest = boot_python(spec=":disk", disks=[image])
    guest.console.expect("has b'written by Python'")
    guest.destroy()
    assert image.read_bytes().startswith(b"written by Python\0")


@pytest.mark.parametrize(
    ("text", "spec", "part"),
    [
        ("import nothing_like_it", "", "No module named 'nothing_like_it'"),
        ("x = 1", "", "has no function 'main'"),
        ("def main(:", "", "SyntaxError"),
        ("", ":absent", "has no function 'absent'"),
    ],
)
def test_what_cannot_be_started(host: Host, tmp_path: Path, text: str, spec: str, part: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    config = tmp_path / "bad.cfg"
    config.write_text(f"kernel = 'python:{path}{spec}'\nname = 'bad'\nmemory = 16\n")
    done = host.xm("create", str(config), check=False)
    assert done.returncode == 1 and part in done.stderr and "Traceback" not in done.stderr
    assert "bad" not in host.xm("list").stdout
    wait_ended(path)
