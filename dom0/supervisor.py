"""The supervisor: starts a host's daemons in order, keeps them running, stops them in reverse order.

`python -m dom0.supervisor --host NAME` stays in the foreground; `umxen up` runs it in a session of its own.

- hyper starts first, then xenstored, then all others at once: each when what it needs says that it serves
  (one byte on its --ready-fd).
- A daemon that ends is started again at once; one that ended 5 times in 10 s waits 1, 2, 4 ... 30 s first.
  hyper is the exception: guests live in it, so when it ends the host is down and the rest is stopped.
- SIGTERM stops all: SIGTERM to each, its deadline, then SIGKILL. The runtime folder is removed.
- Guests outlive a supervisor that was killed. What runs is written down in `supervisor.json` in the runtime
  folder; the next supervisor adopts it, and `stop_leftovers` stops it. A process is known by its pid and
  start time, and is signalled through a pidfd, so a number used again by another process is never hit.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
import trio

from hyper.public import daemon
from hyper.public.daemon import start_ticks as _start_ticks
from hyper.public.paths import HostPaths

log = structlog.get_logger("supervisor")

READY_SECONDS = 60.0
"""A daemon that does not serve after this is killed and counts as ended."""
STOP_SECONDS = 15.0
"""What each daemon has to end after SIGTERM, before SIGKILL."""
BURST, BURST_SECONDS, MAX_BACKOFF_SECONDS = 5, 10.0, 30.0
MAX_LOG_BYTES = 8 << 20
_ABORT_SECONDS = 2.0
_PR_SET_CHILD_SUBREAPER = 36


class HostDown(Exception):
    """The host cannot go on; the text says why. `daemon` is the one whose log knows more."""

    def __init__(self, daemon: str, text: str) -> None:
        super().__init__(text)
        self.daemon = daemon


class AlreadyRunning(Exception):
    """Another supervisor holds the lock of this host."""


@dataclass(frozen=True)
class Daemon:
    """What to run. `critical`: its end is the end of the host. `needs`: what must serve before it starts."""

    name: str
    argv: tuple[str, ...]
    critical: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class DaemonState:
    """What runs: a process, named so that its pid cannot be mistaken for a later one's."""

    name: str
    pid: int
    start_ticks: int
    since: float
    restarts: int = 0
    ready: bool = False
    log_offset: int = 0
    """Where this process's lines begin in its log file."""

    def alive(self) -> bool:
        """Whether the process is still there (and not only waiting to be reaped). Never blocks."""
        return _start_ticks(self.pid) == self.start_ticks


@dataclass(frozen=True)
class HostState:
    """The record in the runtime folder, for `umxen status`, for the next supervisor and for cleaning up."""

    host: str
    boot_id: str
    supervisor: DaemonState
    daemons: tuple[DaemonState, ...] = ()
    up: bool = False

    @classmethod
    def read(cls, paths: HostPaths) -> HostState | None:
        """The record; None where there is none, it is of an earlier boot, or it cannot be read as one."""
        try:
            fields = json.loads(_record(paths).read_text())
            fields["supervisor"] = DaemonState(**fields["supervisor"])
            fields["daemons"] = tuple(DaemonState(**daemon) for daemon in fields["daemons"])
            state = cls(**fields)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return state if state.boot_id == _boot_id() else None

    def write(self, paths: HostPaths) -> None:
        """Replace the record in one step."""
        fresh = _record(paths).with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=1))
        fresh.replace(_record(paths))


def daemons(
    host: str, *, cpus: int | None = None, memory: str | None = None, scheduler: str | None = None
) -> tuple[Daemon, ...]:
    """The daemons of host `host`, each after those it needs. What is None is left to hyper's own default."""
    options = {"--cpus": cpus, "--memory": memory, "--scheduler": scheduler}
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]

    def module(name: str, *more: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "dom0.launch", name, "--host", host, *more)

    return (
        Daemon("hyper", module("hyper", *given), critical=True),
        Daemon("xenstored", module("dom0.xenstored"), needs=("hyper",)),
        Daemon("xenconsoled", module("dom0.xenconsoled"), needs=("xenstored",)),
        Daemon("blkback", module("backends.blkback"), needs=("xenstored",)),
        Daemon("netback", module("backends.netback"), needs=("xenstored",)),
        Daemon("xend", module("toolstack.xend"), needs=("xenstored",)),
    )


@dataclass
class _Slot:
    """One daemon and the process that is it at present; `process` is None for an adopted one."""

    daemon: Daemon
    state: DaemonState | None = None
    pidfd: int = -1
    process: trio.Process | None = None
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=BURST))
    backoff: float = 0.0

    async def wait_ended(self) -> str:
        """Wait until the process is gone; how it ended, in words."""
        if self.process is not None:
            status = await self.process.wait()
            how = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        else:
            await trio.lowlevel.wait_readable(self.pidfd)
            how = "ended (it was adopted, so its status is not known)"
        self.forget()
        return how

    def forget(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.state, self.pidfd, self.process = None, -1, None

    def kill(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass


class Supervisor:
    """Runs `wanted` for the host of `paths`.

    `report` hears one line for each step: `starting NAME`, `ready NAME SECONDS`, `up`, `failed NAME why`.
    """

    def __init__(
        self,
        paths: HostPaths,
        wanted: Sequence[Daemon],
        report: Callable[[str], None] = lambda line: None,
        *,
        ready_seconds: float = READY_SECONDS,
        stop_seconds: float = STOP_SECONDS,
        reaps: bool = False,
    ) -> None:
        """`reaps`: this process has no other children than those of the host."""
        self.paths = paths
        self._reaps = reaps
        self._slots = [_Slot(daemon) for daemon in wanted]
        self._report = report
        self._ready_seconds = ready_seconds
        self._stop_seconds = stop_seconds
        self._up = False
        self._restarts: dict[str, int] = {}
        self._self = DaemonState("supervisor", os.getpid(), _start_ticks(os.getpid()) or 0, time.time())

    async def run(self) -> None:
        """Start, keep and at last stop everything; returns after SIGTERM or SIGINT, or when cancelled.

        Raises: HostDown. In every case nothing of the host is left when this is over.
        """
        try:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cancel_on_signal, signals, nursery.cancel_scope)
                    if self._reaps:
                        nursery.start_soon(self._reap_orphans)
                    self.adopt()
                    await self._stop_orphans()
                    await self._start_missing()
                    self._up = True
                    self._write_state()
                    self._report("up")
                    log.info("host is up", host=self.paths.name)
                    for slot in self._slots:
                        nursery.start_soon(self._keep, slot)
        except* HostDown as group:
            raise _first(group) from None
        finally:
            with trio.CancelScope(shield=True):
                await self.stop()

    async def stop(self) -> None:
        """Stop what runs, last started first, and remove the runtime folder. Ends within the deadlines."""
        self._up = False
        for slot in reversed(self._slots):
            await self._stop_one(slot)
        shutil.rmtree(self.paths.runtime, ignore_errors=True)

    def adopt(self) -> None:
        """Take over what an earlier supervisor of this host left running."""
        left = HostState.read(self.paths)
        for slot in self._slots:
            for state in left.daemons if left else ():
                if state.name == slot.daemon.name and state.alive():
                    slot.pidfd = os.pidfd_open(state.pid)
                    slot.state = state
                    self._restarts[state.name] = state.restarts
                    log.info("adopted", daemon=state.name, pid=state.pid)

    async def _stop_orphans(self) -> None:
        """Without the critical daemons the others serve nothing: stop them before a fresh start."""
        if any(slot.daemon.critical and slot.state is None for slot in self._slots):
            for slot in reversed(self._slots):
                await self._stop_one(slot)

    async def _start_missing(self) -> None:
        """Starts what does not run. Raises: HostDown, in a group; the others' starts are broken off then."""
        served = {slot.daemon.name: trio.Event() for slot in self._slots}

        async def start(slot: _Slot) -> None:
            for need in slot.daemon.needs:
                await served[need].wait()
            if slot.state is None:
                await self._start(slot)
            served[slot.daemon.name].set()

        async with trio.open_nursery() as nursery:
            for slot in self._slots:
                nursery.start_soon(start, slot)

    @staticmethod
    async def _cancel_on_signal(signals: Any, scope: trio.CancelScope) -> None:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            scope.cancel()
            return

    async def _reap_orphans(self) -> None:
        """A killed daemon's own children become ours (see adopt_orphans): their ends are ours to take in."""
        with trio.open_signal_receiver(signal.SIGCHLD) as signals:
            async for _ in signals:
                ours = {slot.process.pid for slot in self._slots if slot.process is not None}
                for pid in _children() - ours:
                    _reap(pid)

    async def _start(self, slot: _Slot) -> None:
        """Start the daemon and wait until it serves. Raises HostDown when it does not; it is gone then."""
        name = slot.daemon.name
        self._report(f"starting {name}")
        began = trio.current_time()
        ready, ready_end = os.pipe()
        try:
            with _log_file(self.paths, name) as (output, offset):
                slot.process = await trio.lowlevel.open_process(
                    [*slot.daemon.argv, "--ready-fd", str(ready_end)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[ready_end],
                    start_new_session=True,
                    cwd="/",
                    env={**os.environ, "PYTHONFAULTHANDLER": "1"},
                )
            os.close(ready_end)
            ready_end = -1
            pid = slot.process.pid
            slot.pidfd = os.pidfd_open(pid)
            slot.state = DaemonState(
                name, pid, _start_ticks(pid) or 0, time.time(), self._restarts.get(name, 0), log_offset=offset
            )
            self._write_state()
            with trio.move_on_after(self._ready_seconds) as waiting:
                await trio.lowlevel.wait_readable(ready)
            if not waiting.cancelled_caught and os.read(ready, 1):
                slot.state = replace(slot.state, ready=True)
                self._write_state()
                log.info("ready", daemon=name, pid=pid)
                self._report(f"ready {name} {trio.current_time() - began:.2f}")
                return
        except OSError as error:
            raise self._failed(name, str(error)) from error
        finally:
            os.close(ready)
            if ready_end >= 0:
                os.close(ready_end)
        if waiting.cancelled_caught:
            slot.kill(signal.SIGABRT)  # its stacks go to its log
            await self._wait_or_kill(slot, _ABORT_SECONDS)
            raise self._failed(name, f"did not serve within {self._ready_seconds:g} s")
        how = await self._wait_or_kill(slot, self._stop_seconds)
        raise self._failed(name, how or "closed its --ready-fd without a word")

    @staticmethod
    async def _wait_or_kill(slot: _Slot, seconds: float) -> str | None:
        """How the process ended by itself; None when it did not within `seconds` and was killed."""
        with trio.move_on_after(seconds):
            return await slot.wait_ended()
        slot.kill(signal.SIGKILL)
        await slot.wait_ended()
        return None

    def _failed(self, name: str, why: str) -> HostDown:
        self._report(f"failed {name} {why}")
        log.error("daemon did not start", daemon=name, why=why)
        return HostDown(name, f"{name} did not start: {why}")

    async def _keep(self, slot: _Slot) -> None:
        name = slot.daemon.name
        while True:
            how = await slot.wait_ended()
            self._write_state()
            if slot.daemon.critical:
                raise HostDown(name, f"{name} is gone: {how}")
            log.warning("daemon ended", daemon=name, how=how)
            while slot.state is None:
                await self._pause_before_restart(slot)
                self._restarts[name] = self._restarts.get(name, 0) + 1
                try:
                    await self._start(slot)
                except HostDown:
                    continue  # said and logged; it counts as one more end

    async def _pause_before_restart(self, slot: _Slot) -> None:
        now = trio.current_time()
        slot.deaths.append(now)
        if len(slot.deaths) == BURST and now - slot.deaths[0] < BURST_SECONDS + slot.backoff * BURST:
            slot.backoff = min(MAX_BACKOFF_SECONDS, slot.backoff * 2 or 1.0)
            log.warning("daemon ends again and again", daemon=slot.daemon.name, next_try_seconds=slot.backoff)
            await trio.sleep(slot.backoff)
        else:
            slot.backoff = 0.0

    async def _stop_one(self, slot: _Slot) -> None:
        if slot.state is None:
            return
        name = slot.daemon.name
        self._report(f"stopping {name}")
        slot.kill(signal.SIGTERM)
        if await self._wait_or_kill(slot, self._stop_seconds) is None:
            log.warning("daemon ignored SIGTERM and was killed", daemon=name, seconds=self._stop_seconds)

    def _write_state(self) -> None:
        running = tuple(slot.state for slot in self._slots if slot.state is not None)
        HostState(self.paths.name, _boot_id(), self._self, running, self._up).write(self.paths)


def adopt_orphans() -> None:
    """Children of a killed daemon become this process's, not init's: they belong to the host still.

    The NAT process of a network outlives netback and is taken over by the next one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> set[int]:
    """Pids of our children; none where the kernel does not tell."""
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return set()
    return set(map(int, text.split()))


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def stop_leftovers(paths: HostPaths) -> bool:
    """Stop the daemons of a host whose supervisor is gone, and remove its runtime folder.

    Returns: whether there was anything. Raises: AlreadyRunning when the supervisor is there after all.
    """
    if not paths.runtime.exists():
        return False
    with supervisor_lock(paths):
        supervisor = Supervisor(paths, daemons(paths.name))
        supervisor.adopt()
        await supervisor.stop()
    return True


@contextmanager
def supervisor_lock(paths: HostPaths) -> Iterator[None]:
    """Hold the host's lock. Raises AlreadyRunning; never waits."""
    while True:
        fd = os.open(paths.supervisor_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder is removed under the lock: a lock on a file that is gone is nobody's lock.
            if os.fstat(fd).st_nlink:
                yield
                return
        except BlockingIOError:
            raise AlreadyRunning(f"host {paths.name} has a supervisor already") from None
        finally:
            os.close(fd)
        paths.create()


def supervised(paths: HostPaths) -> bool:
    """Whether a supervisor holds the host's lock. Never blocks."""
    try:
        fd = os.open(paths.supervisor_lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def _log_file(paths: HostPaths, name: str) -> Iterator[tuple[int, int]]:
    """The daemon's log, open to append, and its size; a big one is set aside first."""
    path = paths.logs / f"{name}.log"
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd, os.fstat(fd).st_size
    finally:
        os.close(fd)


def _record(paths: HostPaths) -> Path:
    return paths.runtime / "supervisor.json"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _first(group: BaseExceptionGroup[HostDown]) -> HostDown:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert isinstance(leaf, HostDown)
    return leaf


def _reporter(fd: int | None) -> Callable[[str], None]:
    """Write each line to `fd` until its reader goes away, and close it after the last word."""
    if fd is None:
        return lambda line: None
    os.set_inheritable(fd, False)
    open_fd: list[int] = [fd]

    def report(line: str) -> None:
        if not open_fd:
            return
        try:
            os.write(open_fd[0], f"{line}\n".encode())
        except BrokenPipeError:
            os.close(open_fd.pop())
        if line == "up" and open_fd:
            os.close(open_fd.pop())

    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped as asked, 1 the host is down, 3 already running."""
    parser = argparse.ArgumentParser(prog="python -m dom0.supervisor", description="Run a host's daemons.")
    parser.add_argument(
        "--host", default=None, metavar="NAME", help="host instance (default: $UMXEN_HOST, default)"
    )
    parser.add_argument("--cpus", type=int, default=None, metavar="N", help="physical CPUs (default: all)")
    parser.add_argument("--memory", default=None, metavar="SIZE", help="machine memory, for example 4G")
    parser.add_argument("--scheduler", default=None, metavar="NAME", help="credit or null")
    parser.add_argument(
        "--progress-fd", type=int, default=None, metavar="FD", help="hears one line for each step"
    )
    options = parser.parse_args(argv)
    daemon.configure_logging()
    daemon.harden()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    adopt_orphans()
    report = _reporter(options.progress_fd)
    wanted = daemons(
        (paths := HostPaths.from_environment(options.host)).name,
        cpus=options.cpus,
        memory=options.memory,
        scheduler=options.scheduler,
    )
    try:
        paths.create()
        with supervisor_lock(paths):
            trio.run(Supervisor(paths, wanted, report, reaps=True).run)
    except AlreadyRunning as error:
        report(f"failed supervisor {error}")
        log.error(str(error))
        return 3
    except (HostDown, OSError) as error:
        report(f"failed supervisor {error}")
        log.error("host is down", why=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
