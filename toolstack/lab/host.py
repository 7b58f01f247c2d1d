"""A host instance from outside: start and stop it, run xm on it, make guests, look what it holds.

Synchronous, for the `umxen` command and for tests. A test's host is private: it has folders of its own.
"""

from __future__ import annotations

import array
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from dom0.supervisor import AlreadyRunning, DaemonState, HostState, stop_leftovers, supervised
from hyper.public import wire
from hyper.public.errors import XenErrno
from hyper.public.paths import HostPaths
from toolstack.xm.client import Server

if TYPE_CHECKING:
    from toolstack.lab.guest import Guest
    from toolstack.lab.network import Capture

START_SECONDS = 120.0
STOP_SECONDS = 90.0
_TAIL_LINES = 8


class HostError(Exception):
    """The host did not do what was asked; the text says why."""


@dataclass(frozen=True)
class Resources:
    """What a host holds: hyper's counters, its processes, and what each of them has open.

    `open_files` and `threads` are by process; a process whose files may not be counted is left out.
    """

    statistics: Mapping[str, int]
    processes: Mapping[str, int]
    open_files: Mapping[int, int]
    threads: Mapping[int, int]
    names: Mapping[int, str]

    def growth(self, later: Resources, *, everything: bool = False) -> list[str]:
        """What there is more of later (of free frames: less), in words; empty when nothing is lost.

        Open files and threads are hyper's; with `everything` all daemons', which take some seconds to settle:
        idle connections and worker threads linger.
        """
        found = []
        for name, before in self.statistics.items():
            after = later.statistics.get(name, before)
            if (after < before) if name == "free_frames" else (after > before):
                found.append(f"{name}: {before} before, {after} after")
        for name in self.processes.keys() | later.processes.keys():
            before, after = self.processes.get(name, 0), later.processes.get(name, 0)
            if before != after:
                found.append(f"{name} processes: {before} before, {after} after")
        for what, mine, theirs in (
            ("open files", self.open_files, later.open_files),
            ("threads", self.threads, later.threads),
        ):
            found += [
                f"{what} of {self.names[pid]}: {mine[pid]} before, {theirs[pid]} after"
                for pid in mine.keys() & theirs.keys()
                if theirs[pid] > mine[pid] and (everything or self.names[pid] == "hyper")
            ]
        return found


@dataclass
class Host:
    """The host instance of `paths`. `environment` is what its daemons and xm run with."""

    paths: HostPaths
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    _process: subprocess.Popen[bytes] | None = None
    _private: Path | None = None
    _made: int = 0

    @classmethod
    def named(cls, name: str | None = None) -> Host:
        """The user's host of that name. Raises: ValueError for a name that is none."""
        return cls(HostPaths.from_environment(name))

    @classmethod
    def private(cls, name: str = "lab") -> Host:
        """A host in folders of its own, which vanish when it is stopped."""
        base = Path(tempfile.mkdtemp(prefix="umxen-lab-"))
        environment = dict(os.environ)
        environment |= {
            "XDG_RUNTIME_DIR": str(base / "run"),
            "XDG_STATE_HOME": str(base / "state"),
            "UMXEN_HOST": name,
            "UMXEN_MINIMUM_RESTART": "0",  # xend destroys what restarts twice within 60 s; not in a test
        }
        paths = HostPaths(name, base / "run" / "umxen" / name, base / "state" / "umxen" / name)
        return cls(paths, environment, _private=base)

    def start(
        self,
        *,
        cpus: int | None = None,
        memory: str | None = None,
        scheduler: str | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start the supervisor and wait until all daemons serve. `report` hears its lines.

        Raises: HostError with the reason and the last lines of the log that knows more.
        """
        self.paths.create()
        if supervised(self.paths):
            raise HostError(f"host {self.paths.name} is up already")
        if self._process is not None:
            self._process.wait()  # a supervisor of ours that was killed
        options = {"--cpus": cpus, "--memory": memory, "--scheduler": scheduler}
        command = [sys.executable, "-m", "dom0.launch", "dom0.supervisor", "--host", self.paths.name]
        command += [
            text for name, value in options.items() if value is not None for text in (name, str(value))
        ]
        log_sizes = {path.name: path.stat().st_size for path in self.paths.logs.glob("*.log")}
        lines, lines_end = os.pipe()
        with open(self.paths.logs / "supervisor.log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, "--progress-fd", str(lines_end)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lines_end],
                env=self.environment,
                start_new_session=True,
                cwd="/",
            )
        os.close(lines_end)
        why = self._follow(lines, report)
        if why is not None:
            self._process.wait()
            daemon = why.split()[0]
            raise HostError(why + self._tail(daemon, log_sizes.get(f"{daemon}.log", 0)))

    def stop(self, report: Callable[[str], None] = lambda line: None) -> bool:
        """Stop the supervisor, and whatever a killed one left. Returns: whether there was anything to stop.

        Raises: HostError.
        """
        there = False
        if supervised(self.paths):
            there = True
            self._stop_supervisor(report)
        try:
            there = trio.run(stop_leftovers, self.paths) or there
        except AlreadyRunning as error:
            raise HostError(str(error)) from error
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)
        return there

    def is_up(self) -> bool:
        """Whether a supervisor runs and all daemons have been started."""
        state = self.state()
        return state is not None and state.up and supervised(self.paths)

    def state(self) -> HostState | None:
        """The supervisor's record; None when there is none."""
        return HostState.read(self.paths)

    def daemon(self, name: str) -> DaemonState:
        """The daemon as it runs at present. Raises: HostError when it does not."""
        state = self.state()
        for daemon in state.daemons if state else ():
            if daemon.name == name and daemon.alive():
                return daemon
        raise HostError(f"{name} does not run")

    def kill_daemon(self, name: str, *, wait_seconds: float = 20.0) -> None:
        """SIGKILL a daemon and wait until its successor serves. Raises: HostError."""
        before = self.daemon(name)
        os.kill(before.pid, signal.SIGKILL)
        deadline = time.monotonic() + wait_seconds
        while time.monotonic() < deadline:
            state = self.state()
            for daemon in state.daemons if state else ():
                if daemon.name == name and daemon.pid != before.pid and daemon.ready:
                    return
            time.sleep(0.01)
        raise HostError(f"{name} was not started again within {wait_seconds:g} s")

    def xm(
        self, *words: str, check: bool = True, timeout: float = 60.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run xm. Raises: HostError when it fails (unless `check` is off) or takes too long."""
        command = [sys.executable, "-m", "toolstack.xm", *words]
        try:
            done = subprocess.run(
                command,
                env=self.xm_environment(),
                input=stdin or "",
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"xm {' '.join(words)} did not end within {timeout:g} s") from error
        if check and done.returncode:
            raise HostError(f"xm {' '.join(words)}: status {done.returncode}: {done.stderr.strip()}")
        return done

    def xm_environment(self) -> dict[str, str]:
        """The environment in which xm finds this host."""
        environment = {**self.environment, "UMXEN_HOST": self.paths.name}
        environment.pop("XM_SERVER", None)
        return environment

    def call(self, method: str, *params: Any) -> Any:
        """One XML-RPC call to xend, `domain.pause` for `xend.domain.pause`. Raises: Fault, OSError."""
        server = Server(f"httpu://{self.paths.xend}")
        try:
            return server.call(f"xend.{method}", *params)
        finally:
            server.close()

    def create(
        self,
        name: str | None = None,
        *,
        kernel: Path,
        ramdisk: Path | None = None,
        memory: int = 128,
        vcpus: int = 1,
        extra: str = "",
        paused: bool = False,
        disks: Sequence[Path | str] = (),
        vifs: int | Sequence[str] = 0,
        **settings: Any,
    ) -> Guest:
        """`xm create` of a config with these settings (more keys in `settings`), its console attached.

        A path among `disks` is a plain file or, by its suffix, another format; it becomes xvda, xvdb, ... by
        its place, writable. A string is an entry as in a config. `vifs` is how many, or the entries.

        Raises: HostError with xm's words.
        """
        from toolstack.lab.guest import Guest

        self._made += 1
        name = name or f"guest{self._made}"
        config: dict[str, Any] = {"name": name, "kernel": str(kernel), "memory": memory, "vcpus": vcpus}
        if disks:
            config["disk"] = [_disk_entry(disk, index) for index, disk in enumerate(disks)]
        if vifs:
            config["vif"] = [""] * vifs if isinstance(vifs, int) else list(vifs)
        config |= (
            ({"ramdisk": str(ramdisk)} if ramdisk else {}) | ({"extra": extra} if extra else {}) | settings
        )
        with tempfile.NamedTemporaryFile("w", prefix=f"{name}-", suffix=".cfg") as file:
            file.write("".join(f"{key} = {value!r}\n" for key, value in config.items()))
            file.flush()
            self.xm("create", "-p", file.name)
        guest = Guest(self, name)
        if not paused:
            guest.unpause()
        return guest

    @contextmanager
    def network(self, name: str, *uplinks: str, **settings: Any) -> Iterator[str]:
        """A network for the block (see `umxen network create` for uplinks; groups, forwards, mtu,
        storm_pps, ageing_s). Guests on it must be gone at its end. Raises: NetworkError.
        """
        from toolstack.lab import network

        network.create(self.paths, name, uplinks, **settings)
        try:
            yield name
        except BaseException:
            with suppress(network.NetworkError):  # what went wrong before is what matters
                network.ask(self.paths, "delete", name=name)
            raise
        network.ask(self.paths, "delete", name=name)

    def forward(self, name: str, forward: str) -> None:
        """Leads a port of the machine to a guest on that network. Raises: NetworkError."""
        from toolstack.lab import network

        network.ask(self.paths, "forward", name=name, forward=forward)

    def capture(self, name: str, port: str | None = None) -> AbstractContextManager[Capture]:
        """A capture of a network, or of one port, for the block: `.frames`. Raises: NetworkError."""
        from toolstack.lab import network

        return network.capturing(self.paths, name, port)

    def statistics(self) -> dict[str, int]:
        """hyper's counters (struct hv_statistics). Raises: OSError, HostError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(10)
            sock.connect(str(self.paths.control))
            _ask(sock, wire.Hello(wire.VERSION))
            reply = _ask(sock, wire.Statistics())
        found: dict[str, int] = reply["statistics"]
        return found

    def engine_statistics(self) -> dict[int, dict[str, int]]:
        """The CPU engine's counters by domid (struct hv_engine_statistics). Raises: OSError, HostError."""
        found: dict[int, dict[str, int]] = {}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(10)
            sock.connect(str(self.paths.control))
            _ask(sock, wire.Hello(wire.VERSION))
            domid = 0
            while (reply := _ask(sock, wire.EngineStatistics(domid), XenErrno.ESRCH)).get("ret") == 0:
                found[reply["domid"]] = reply["statistics"]
                domid = reply["domid"] + 1
        return found

    def resources(self) -> Resources:
        """What the host holds just now. Raises: OSError, HostError."""
        state = self.state()
        pids = _descendants(state.supervisor.pid) if state else {}
        open_files = {pid: count for pid in pids if (count := _count(Path(f"/proc/{pid}/fd"))) is not None}
        threads = {pid: count for pid in pids if (count := _count(Path(f"/proc/{pid}/task"))) is not None}
        names = {daemon.pid: daemon.name for daemon in state.daemons} if state else {}
        names |= {pid: command for pid, command in pids.items() if pid not in names}
        return Resources(self.statistics(), Counter(names[pid] for pid in pids), open_files, threads, names)

    def lost_since(
        self, before: Resources, settle_seconds: float = 15.0, *, everything: bool = False
    ) -> list[str]:
        """What the host holds more than `before` (see growth), once it has settled; empty when nothing."""
        deadline = time.monotonic() + settle_seconds
        while found := before.growth(self.resources(), everything=everything):
            if time.monotonic() >= deadline:
                return found
            time.sleep(0.05)
        return []

    def log(self, daemon: str) -> str:
        """The daemon's log of this host, "" when there is none."""
        try:
            return (self.paths.logs / f"{daemon}.log").read_text(errors="replace")
        except OSError:
            return ""

    def _follow(self, lines: int, report: Callable[[str], None]) -> str | None:
        """Read the supervisor's lines until it is up; otherwise why it failed."""
        why = None
        deadline = time.monotonic() + START_SECONDS
        with os.fdopen(lines) as stream:
            while select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
                line = stream.readline().strip()
                if not line:
                    return why or "supervisor ended without a word"
                report(line)
                if line == "up":
                    return None
                if line.startswith("failed ") and why is None:
                    why = line.removeprefix("failed ")
        assert self._process is not None
        self._process.terminate()
        return why or f"supervisor was not up within {START_SECONDS:g} s"

    def _stop_supervisor(self, report: Callable[[str], None]) -> None:
        state = self.state()
        if state is None or not state.supervisor.alive():
            raise HostError(f"host {self.paths.name} is just being started or stopped; try again")
        pidfd = os.pidfd_open(state.supervisor.pid)
        try:
            report(f"stopping {self.paths.name}")
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if not select.select([pidfd], [], [], STOP_SECONDS)[0]:
                report("killing the supervisor: it does not stop")
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], STOP_SECONDS)
        finally:
            os.close(pidfd)

    def _tail(self, daemon: str, offset: int) -> str:
        """The last new lines of a daemon's log, to put below an error."""
        new = self.log(daemon).encode()[offset:].decode(errors="replace")
        lines = [f"\n  {daemon}.log: {line}" for line in new.splitlines() if line.strip()]
        return "".join(lines[-_TAIL_LINES:])


def _disk_entry(disk: Path | str, index: int) -> str:
    if isinstance(disk, str):
        return disk
    kind = {".qcow2": "tap:qcow2", ".vmdk": "tap:vmdk", ".vhd": "tap:vhd", ".vdi": "tap:vdi"}
    return f"{kind.get(disk.suffix, 'file')}:{disk.resolve()},xvd{chr(ord('a') + index)},w"


def hosts() -> list[Host]:
    """The user's hosts that have a runtime folder, by name."""
    base = HostPaths.from_environment("default").runtime.parent
    names = sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
    return [Host.named(name) for name in names]


def _ask(sock: socket.socket, request: wire.Request, allowed: int = 0) -> dict[str, Any]:
    """One request on the control socket; descriptors that come along are closed. -`allowed` is no error."""
    sock.send(wire.encode_request(request))
    packet, ancillary, _, _ = sock.recvmsg(wire.MAX_FRAME, 1024, socket.MSG_CMSG_CLOEXEC)
    for _level, _kind, data in ancillary:
        fds = array.array("i")
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        for fd in fds:
            os.close(fd)
    if not packet:
        raise HostError("hyper closed the connection")
    reply = wire.decode_reply(packet)
    if reply.get("ret") not in (0, -allowed):
        raise HostError(f"hyper refuses {type(request).__name__}: {reply.get('error', reply.get('ret'))}")
    return reply


def _descendants(root: int) -> dict[int, str]:
    """The processes below `root` by pid, with the name the kernel has for them."""
    parents: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        try:
            head, _, rest = (path / "stat").read_text().rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if state not in "ZX":
            parents[int(path.name)] = (int(parent), head.partition("(")[2])
    found: dict[int, str] = {}
    wanted = {root}
    while wanted:
        wanted = {pid for pid, (parent, _) in parents.items() if parent in wanted and pid not in found}
        found |= {pid: parents[pid][1] for pid in wanted}
    return found


def _count(folder: Path) -> int | None:
    """How many entries; None where we may not look, or it is gone."""
    try:
        return len(os.listdir(folder))
    except OSError:
        return None
