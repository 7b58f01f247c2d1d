"""Guests written in Python, as xend keeps them: over a fake host, and real processes that play their part."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hyper.public.daemon import start_ticks
from tests.xend_kit import Host
from toolstack.sxp import Sxp, child_value
from toolstack.xend import processes
from toolstack.xend.errors import XendError
from toolstack.xend.processes import GuestProcess, HostProcesses, is_spec, spec_of
from toolstack.xend.store import DomainStore


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def config(spec: str = "mine.guest", *items: Any, args: str = "a 'b c'") -> list[Sxp]:
    image = ["linux", ["kernel", f"python:{spec}"], ["args", args]]
    return ["vm", ["name", "py"], ["memory", 16], ["image", image], *items]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("a", True), ("a.b_2.c:main", True), ("/x y/z.py", True), ("/x/z.py:go", True), ("", False),
        ("a:", False), ("a.", False), (".a", False), ("a-b", False), ("x/z.py", False), ("/x/z", False),
        ("/x\n.py", False), ("a:b:c", False), ("--help", False), ("é", False),
    ],
)  # fmt: skip
def test_specs(text: str, fits: bool) -> None:
    assert is_spec(text) == fits
    assert spec_of(f"python:{text}") == text
    assert spec_of(f"/boot/{text}") is None


class TestLives:
    async def test_a_life(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.life.create(config())
            assert host.processes.running == {100: ("mine.guest", ["a", "b c"])}
            assert host.records()["py"].process == GuestProcess(100, 1)
            assert host.xenstore.introduced == {1: (1001, 1)}
            assert child_value(await xend.control.describe("py"), "isolation") == "full"
            await xend.control.unpause("py")
            await xend.control.pause("py")
            assert host.processes.stopped == {100}
            await xend.control.unpause("py")
            assert host.processes.stopped == set()
            host.now += 100
            await xend.end(domain, "reboot")
            assert list(host.processes.running) == [101]
            assert domain.record.process == GuestProcess(101, 1)
        assert list(host.processes.running) == [101], "xend stops, its guests do not"
        async with host.xend() as xend:
            domain = xend.life.find("py")
            assert domain.record.process == GuestProcess(101, 1)
            await xend.life.destroy(domain)
            assert host.nothing_is_left()

    async def test_what_a_process_has_not(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.life.create(config())
            with pytest.raises(XendError, match=r"'py' is a process of the host: .* places it"):
                await xend.control.pin("py", 0, "0")
            with pytest.raises(XendError, match="shares out its time"):
                await xend.control.set_credit("py", 300, None)
            with pytest.raises(XendError, match="it has no balloon"):
                await xend.control.set_memory("py", 8)
            await xend.life.destroy(domain)

    async def test_a_guest_that_cannot_be_started(self, host: Host) -> None:
        host.processes.refuse["mine.guest"] = "no module named 'mine'"
        async with host.xend() as xend:
            with pytest.raises(XendError, match=r"^python:mine\.guest: no module named 'mine'$"):
                await xend.life.create(config())
            assert host.nothing_is_left()

    @pytest.mark.parametrize(
        ("wanted", "part"),
        [
            (config("mine:"), "is no python:module"),
            (config("../x.py"), "is no python:module"),
            (config("mine", ["vcpus", 2]), "has one vCPU"),
            (config("mine", args="it's"), "cannot be taken apart: No closing quotation"),
            (
                ["vm", ["name", "py"], ["image", ["linux", ["kernel", "python:x"], ["ramdisk", "/r"]]]],
                "no ramdisk",
            ),
        ],
    )
    async def test_refused(self, host: Host, wanted: list[Sxp], part: str) -> None:
        async with host.xend() as xend:
            with pytest.raises(XendError, match=part):
                await xend.life.create(wanted)
            assert host.nothing_is_left()

    async def test_every_step_in_turn(self, host: Host) -> None:
        async with host.xend() as xend:
            for step in range(1, 40):
                host.calls.names.clear()
                host.calls.fail_at = step
                try:
                    domain = await xend.life.create(config())
                except XendError:
                    assert host.nothing_is_left(), host.calls.names
                    continue
                break
            assert step > 6
            host.calls.fail_at = 0
            await xend.life.destroy(domain)
            assert host.nothing_is_left()


def test_a_database_of_version_1_is_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "db"
    DomainStore(path).close()
    db = sqlite3.connect(path)
    for column in ("process_pid", "process_ticks", "isolation"):
        db.execute(f"ALTER TABLE domains DROP COLUMN {column}")
    db.execute("PRAGMA user_version=1")
    db.commit()
    db.close()
    for _ in range(2):
        with DomainStore(path) as store:
            assert store.load() == ([], [])


# ---- real processes

GUEST = """
import os, sys, time
fd, spec, words = int(sys.argv[sys.argv.index("--fd") + 1]), sys.argv[-2], sys.argv[-1]
assert os.fstat(fd)
print("isolation: full", flush=True)
print("oops", file=sys.stderr, flush=True)
if spec == "bad":
    print("failed: it is bad", flush=True); sys.exit(2)
if spec == "dies":
    sys.exit(1)
if spec == "forks" and not os.fork():
    time.sleep(60)
if spec != "silent":
    print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostProcesses]:
    """Real processes, with a script in the place of domu.run."""
    script = tmp_path / "guest.py"
    script.write_text(GUEST)
    started: list[int] = []
    opened = trio.lowlevel.open_process

    async def open_process(command: list[str], **options: Any) -> trio.Process:
        assert command[1:3] == ["-m", "domu.run"]
        child = await opened([sys.executable, "-S", "-E", str(script), *command[3:]], **options)
        started.append(child.pid)
        return child

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    yield HostProcesses(lambda name: tmp_path / f"{name}.log")
    assert [pid for pid in started if start_ticks(pid) is not None] == []


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield theirs


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sleeper(*argv: str) -> subprocess.Popen[bytes]:
    """A process that is none of the seam's."""
    return subprocess.Popen(argv, start_new_session=True)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_started_stopped_killed(real: HostProcesses, sock: socket.socket, tmp_path: Path) -> None:
    started = await real.start("py", "forks", ["w"], sock)
    process = started.process
    assert started.isolation == "full"
    assert start_ticks(process.pid) == process.start_ticks
    assert os.getsid(process.pid) == process.pid
    assert (tmp_path / "py.log").read_text() == "oops\n"
    (child,) = children(process.pid)
    real.stop(process)
    with trio.fail_after(5):
        while {state(process.pid), state(child)} != {"T"}:
            await trio.sleep(0.01)
    real.resume(process)
    with trio.fail_after(5):
        while "T" in (state(process.pid), state(child)):
            await trio.sleep(0.01)
    await real.kill(process)
    os.kill(child, signal.SIGKILL)
    await real.kill(process)
    real.stop(process)


async def test_a_process_of_an_earlier_xend(real: HostProcesses) -> None:
    other = sleeper(sys.executable, "-c", "import time; time.sleep(60)")
    ticks = start_ticks(other.pid)
    assert ticks is not None
    await real.kill(GuestProcess(other.pid, ticks + 1))  # another one of that number
    real.stop(GuestProcess(other.pid, ticks + 1))
    assert other.poll() is None and state(other.pid) != "T"
    await real.kill(GuestProcess(other.pid, ticks))
    assert other.wait(timeout=5) == -signal.SIGKILL


@pytest.mark.parametrize(("spec", "text"), [("bad", "it is bad"), ("dies", "oops"), ("silent", "oops")])
async def test_what_does_not_start(
    real: HostProcesses, sock: socket.socket, monkeypatch: pytest.MonkeyPatch, spec: str, text: str
) -> None:
    monkeypatch.setattr(processes, "START_SECONDS", 0.5)
    with pytest.raises(XendError, match=f"^python:{spec}: {text}$"):
        await real.start("py", spec, ["w"], sock)


async def test_broken_off(real: HostProcesses, sock: socket.socket) -> None:
    with trio.move_on_after(0.3) as scope:
        await real.start("py", "silent", ["w"], sock)
    assert scope.cancelled_caught


async def test_time_is_the_runs(autojump_clock: MockClock) -> None:
    """A process that is gone already is no process to wait for."""
    child = sleeper("true")
    gone = GuestProcess(child.pid, start_ticks(child.pid) or 1)
    child.wait()
    await HostProcesses(lambda name: Path("/nowhere")).kill(gone)
