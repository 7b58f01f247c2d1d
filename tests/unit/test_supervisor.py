"""The supervisor with fake daemons: small scripts that say they are ready, die, or refuse to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dom0 import supervisor
from dom0.supervisor import AlreadyRunning, Daemon, HostDown, HostState, Supervisor
from hyper.public.paths import HostPaths

FAKE = """
import os, signal, sys, time
mode, fd = sys.argv[1], int(sys.argv[sys.argv.index("--ready-fd") + 1])
print(mode, "begins", file=sys.stderr)
if mode == "dies":
    sys.exit(7)
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode != "silent":
    os.write(fd, b"1")
    os.close(fd)
time.sleep(60)
"""


@pytest.fixture
def paths(tmp_path: Path) -> HostPaths:
    paths = HostPaths("t", tmp_path / "run" / "t", tmp_path / "state" / "t")
    paths.create()
    return paths


def fake(name: str, mode: str = "serves", critical: bool = False, needs: str | None = None) -> Daemon:
    """Needs the one whose name is a letter less, if `needs` (letters) does not say otherwise."""
    before = tuple(chr(ord(name) - 1)) if name > "a" else ()
    argv = (sys.executable, "-S", "-E", "-c", FAKE, mode)
    return Daemon(name, argv, critical, before if needs is None else tuple(needs))


def stranger() -> subprocess.Popen[bytes]:
    """A process that an earlier supervisor could have left."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def running(paths: HostPaths) -> dict[str, supervisor.DaemonState]:
    state = HostState.read(paths)
    return {daemon.name: daemon for daemon in state.daemons} if state else {}


async def wait_for(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


async def test_starts_in_order_and_leaves_nothing(paths: HostPaths) -> None:
    said: list[str] = []
    wanted = (fake("a", critical=True), fake("b"), fake("c"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Supervisor(paths, wanted, said.append).run)
        await wait_for(lambda: "up" in said)
        there = running(paths)
        assert all(daemon.alive() for daemon in there.values())
        os.kill(os.getpid(), signal.SIGTERM)
    words = [line.split()[:2] for line in said]
    started = [["starting", n] for n in "abc"]
    assert [w for w in words if w[0] == "starting"] == started
    assert words[-3:] == [["stopping", "c"], ["stopping", "b"], ["stopping", "a"]]
    assert len(there) == 3 and not any(daemon.alive() for daemon in there.values())
    assert not paths.runtime.exists()
    assert "serves begins" in (paths.logs / "a.log").read_text()


async def test_those_that_need_the_same_start_at_once(paths: HostPaths) -> None:
    said: list[str] = []
    wanted = (fake("a"), *(fake(name, "silent", needs="a") for name in "bcd"), fake("e", needs="bcd"))
    with pytest.raises(HostDown, match="did not serve within"):
        await Supervisor(paths, wanted, said.append, ready_seconds=0.5).run()
    assert sorted(line.split()[1] for line in said if line.startswith("starting")) == list("abcd")
    left = running(paths)
    assert not any(daemon.alive() for daemon in left.values()) and not paths.runtime.exists()


async def test_a_dead_daemon_is_started_again(paths: HostPaths) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Supervisor(paths, (fake("a", critical=True), fake("b"))).run)
        await wait_for(lambda: len(running(paths)) == 2 and HostState.read(paths).up)
        before = running(paths)
        os.kill(before["b"].pid, signal.SIGKILL)
        await wait_for(lambda: "b" in running(paths) and running(paths)["b"].restarts == 1)
        after = running(paths)
        assert after["a"] == before["a"] and after["b"].pid != before["b"].pid and after["b"].alive()
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_critical_daemon_ends_the_host(paths: HostPaths) -> None:
    async def kill_it() -> None:
        await wait_for(lambda: len(running(paths)) == 2 and HostState.read(paths).up)
        there.update(running(paths))
        os.kill(there["a"].pid, signal.SIGKILL)

    there: dict[str, supervisor.DaemonState] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_it)
        with pytest.raises(HostDown, match="a is gone: killed by SIGKILL"):
            await Supervisor(paths, (fake("a", critical=True), fake("b"))).run()
    assert there and not there["b"].alive() and not paths.runtime.exists()


@pytest.mark.parametrize(
    ("mode", "why"), [("dies", "exit status 7"), ("silent", "did not serve within 0.3 s")]
)
async def test_a_daemon_that_does_not_start(paths: HostPaths, mode: str, why: str) -> None:
    said: list[str] = []
    wanted = (fake("a", critical=True), fake("b", mode), fake("c"))
    with pytest.raises(HostDown, match=f"b did not start: {why}") as caught:
        await Supervisor(paths, wanted, said.append, ready_seconds=0.3).run()
    assert caught.value.daemon == "b"
    assert f"failed b {why}" in said and "starting c" not in said
    assert not paths.runtime.exists()


async def test_an_unknown_program(paths: HostPaths) -> None:
    with pytest.raises(HostDown, match="No such file"):
        await Supervisor(paths, (Daemon("a", ("/nonexistent/daemon",)),)).run()


async def test_one_that_ignores_sigterm_is_killed(paths: HostPaths) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Supervisor(paths, (fake("a", "deaf"),), stop_seconds=0.2).run)
        await wait_for(lambda: bool(running(paths)) and HostState.read(paths).up)
        there = running(paths)
        nursery.cancel_scope.cancel()
    assert not there["a"].alive()


async def test_what_a_killed_supervisor_left_is_adopted(paths: HostPaths) -> None:
    wanted = (fake("a", critical=True), fake("b"), fake("c"))
    left = {name: stranger() for name in ("a", "b")}
    states = tuple(
        supervisor.DaemonState(n, p.pid, supervisor._start_ticks(p.pid) or 0, time.time(), 3)
        for n, p in left.items()
    )
    me = supervisor.DaemonState("supervisor", 1, 0, 0.0)
    HostState("t", supervisor._boot_id(), me, states).write(paths)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Supervisor(paths, wanted).run)
        await wait_for(lambda: len(running(paths)) == 3 and HostState.read(paths).up)
        assert {name: running(paths)[name].pid for name in "ab"} == {name: left[name].pid for name in "ab"}
        left["b"].kill()
        left["b"].wait()
        await wait_for(lambda: "b" in running(paths) and running(paths)["b"].restarts == 4)
        nursery.cancel_scope.cancel()
    assert left["a"].wait(5) == -signal.SIGTERM


async def test_without_its_critical_daemon_nothing_is_adopted(paths: HostPaths) -> None:
    orphan = stranger()
    state = supervisor.DaemonState("b", orphan.pid, supervisor._start_ticks(orphan.pid) or 0, time.time())
    me = supervisor.DaemonState("supervisor", 1, 0, 0.0)
    HostState("t", supervisor._boot_id(), me, (state,)).write(paths)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Supervisor(paths, (fake("a", critical=True), fake("b"))).run)
        await wait_for(lambda: len(running(paths)) == 2 and HostState.read(paths).up)
        assert running(paths)["b"].pid != orphan.pid and orphan.wait(5) == -signal.SIGTERM
        nursery.cancel_scope.cancel()


async def test_leftovers_are_stopped(paths: HostPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    left = stranger()
    state = supervisor.DaemonState("xend", left.pid, supervisor._start_ticks(left.pid) or 0, time.time())
    me = supervisor.DaemonState("supervisor", 1, 0, 0.0)
    HostState("t", supervisor._boot_id(), me, (state,)).write(paths)
    assert await supervisor.stop_leftovers(paths)
    assert left.wait(5) == -signal.SIGTERM and not paths.runtime.exists()
    assert not await supervisor.stop_leftovers(paths)


def test_a_pid_used_again_is_not_the_daemon(paths: HostPaths) -> None:
    mine = supervisor.DaemonState("a", os.getpid(), supervisor._start_ticks(os.getpid()) or 0, 0.0)
    assert mine.alive() and not replace(mine, start_ticks=mine.start_ticks - 1).alive()


def test_records_of_an_earlier_boot_and_garbage_count_for_nothing(paths: HostPaths) -> None:
    me = supervisor.DaemonState("supervisor", 1, 0, 0.0)
    HostState("t", "another-boot", me).write(paths)
    assert HostState.read(paths) is None
    for text in ("", "{", "[]", '{"supervisor": 3}', "null", '"x"'):
        (paths.runtime / "supervisor.json").write_text(text)
        assert HostState.read(paths) is None


def test_one_supervisor_for_a_host(paths: HostPaths) -> None:
    assert not supervisor.supervised(paths)
    with supervisor.supervisor_lock(paths):
        assert supervisor.supervised(paths)
        with pytest.raises(AlreadyRunning), supervisor.supervisor_lock(paths):
            pass
    assert not supervisor.supervised(paths)


async def test_back_off_after_five_ends_in_ten_seconds(paths: HostPaths) -> None:
    clock = MockClock(autojump_threshold=0)
    delays: list[float] = []

    async def ends_at_once() -> None:
        slot = supervisor._Slot(fake("b"))
        host = Supervisor(paths, ())
        for _ in range(10):
            before = trio.current_time()
            await host._pause_before_restart(slot)
            delays.append(trio.current_time() - before)
            await trio.sleep(0.1)
        await trio.sleep(300)
        await host._pause_before_restart(slot)
        delays.append(slot.backoff)

    await trio.to_thread.run_sync(lambda: trio.run(ends_at_once, clock=clock))
    assert delays == pytest.approx([0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 0])
