"""The seam between xend and the processes of guests written in Python (process domains): a Protocol, and the
real one.

A guest is `python -m domu.run`, in a session of its own: it outlives xend, and is known to the next one by
its pid and start time. Whatever happens to xend, hyper hangs up on a domain that is destroyed, and its
process ends.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
import trio

from hyper.public.daemon import start_ticks
from toolstack.xend.errors import XendError

log = structlog.get_logger("xend")

PREFIX = "python:"
START_SECONDS = 30.0
"""A guest's module may take so long to be imported."""
END_SECONDS = 5.0
"""What a process may take to be gone after SIGKILL."""
MAX_LOG_BYTES = 8 << 20
_ENVIRONMENT = ("PYTHONPATH",)
"""All that a guest gets of xend's environment: it can read it."""
_SPEC = re.compile(r"(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|/[^:\x00-\x1f\x7f]+\.py)(?::[A-Za-z_]\w*)?", re.ASCII)


def spec_of(kernel: str) -> str | None:
    """What follows `python:` in a kernel's name; None for the kernel of an ordinary guest."""
    return kernel.removeprefix(PREFIX) if kernel.startswith(PREFIX) else None


def is_spec(text: str) -> bool:
    """Whether it is `package.module[:attribute]` or `/path/to/file.py[:attribute]`."""
    return _SPEC.fullmatch(text) is not None


@dataclass(frozen=True)
class GuestProcess:
    """A process, named so that its pid cannot be mistaken for a later one's."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class Started:
    process: GuestProcess
    isolation: str
    """`full`, or `fault isolation only (why)`."""


class Processes(Protocol):
    async def start(self, name: str, spec: str, words: Sequence[str], sock: socket.socket) -> Started:
        """Starts the guest of domain `name`, which is still paused, on its connection.

        Raises: XendError with the guest's own words; the process is gone then.
        """

    def stop(self, process: GuestProcess) -> None:
        """Takes the CPU away from a guest. Does nothing to one that is gone."""

    def resume(self, process: GuestProcess) -> None: ...

    async def kill(self, process: GuestProcess) -> None:
        """Ends a guest and waits until it is gone. Never fails."""


class HostProcesses:
    """Processes of this host. `log_path` is where the standard error of a domain's guest goes."""

    def __init__(self, log_path: Callable[[str], Path]) -> None:
        self._log_path = log_path
        self._children: dict[int, trio.Process] = {}
        """Those of this xend: it must reap them."""

    async def start(self, name: str, spec: str, words: Sequence[str], sock: socket.socket) -> Started:
        command = [sys.executable, "-m", "domu.run", "--fd", str(sock.fileno()), "--", spec, *words]
        errors, offset = _opened(self._log_path(name))
        try:
            child = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=[sock.fileno()],
                start_new_session=True,
                cwd="/",
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            )
        finally:
            os.close(errors)
        try:
            said: dict[str, str] = {}
            with trio.move_on_after(START_SECONDS):
                said = await _first_words(child)
            if "ready" not in said:
                raise XendError(f"{PREFIX}{spec}: {said.get('failed') or self._last_line(name, offset)}")
        except BaseException:
            child.kill()
            with trio.CancelScope(shield=True):
                await child.wait()
            raise
        self._children[child.pid] = child
        return Started(GuestProcess(child.pid, start_ticks(child.pid) or 0), said.get("isolation", "unknown"))

    def _last_line(self, name: str, offset: int) -> str:
        with open(self._log_path(name), "rb") as file:
            file.seek(offset)
            lines = file.read(1 << 16).decode(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        return lines[-1] if lines else f"it was not ready within {START_SECONDS:g} s"

    def stop(self, process: GuestProcess) -> None:
        for pid in _tree(process):
            _signal(pid, signal.SIGSTOP)

    def resume(self, process: GuestProcess) -> None:
        for pid in _tree(process):
            _signal(pid, signal.SIGCONT)

    async def kill(self, process: GuestProcess) -> None:
        child = self._children.pop(process.pid, None)
        if start_ticks(process.pid) == process.start_ticks:
            pidfd = os.pidfd_open(process.pid)
            try:
                if start_ticks(process.pid) == process.start_ticks:  # the same process still, so pidfd is its
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    with trio.move_on_after(END_SECONDS) as waiting:
                        await trio.lowlevel.wait_readable(pidfd)
                    if waiting.cancelled_caught:
                        log.error("the process of a guest does not end", pid=process.pid)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)
        if child is not None:
            with trio.move_on_after(END_SECONDS):
                await child.wait()


def _opened(path: Path) -> tuple[int, int]:
    """A log, open to append, and where its next line begins; one that is too long is begun anew."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.fstat(fd).st_size > MAX_LOG_BYTES:
        os.ftruncate(fd, 0)
    return fd, os.fstat(fd).st_size


async def _first_words(child: trio.Process) -> dict[str, str]:
    """The lines a guest says until it is ready, has failed, or says no more."""
    assert child.stdout is not None
    text = b""
    said: dict[str, str] = {}
    async with child.stdout as stdout:
        while not said.keys() & {"ready", "failed"}:
            chunk = await stdout.receive_some(4096)
            text += chunk
            for line in text.decode(errors="replace").split("\n")[:-1]:
                key, _, value = line.partition(":")
                said[key.strip()] = value.strip()
            if not chunk or len(text) > 1 << 16:
                break
    return said


def _tree(process: GuestProcess) -> list[int]:
    """The process and all below it; none when it is gone."""
    if start_ticks(process.pid) != process.start_ticks:
        return []
    found = [process.pid]
    for pid in found:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            continue
        found += map(int, children)
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
