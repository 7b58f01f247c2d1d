"""A guest's log file: raw bytes, at most 1 MiB and one older file of as much.

A slow or full disk holds up nobody: bytes wait in a bounded buffer, a thread writes them, and what finds no
room is counted and left out. A line in the file says how much is missing, once it can be written.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import structlog
import trio

MAX_FILE_BYTES = 1 << 20
MAX_WAITING_BYTES = 256 << 10
_LAST_SECONDS = 1.0

log = structlog.get_logger("xenconsoled")


def log_path(folder: Path, name: str) -> Path:
    """`name` is what the guest's owner calls it, so not to be trusted as a file name."""
    return folder / f"console-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:100]}.log"


class RotatingFile:
    """Plain, blocking."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def write(self, data: bytes | bytearray) -> None:
        """Raises: OSError: the disk is full, or worse. Some of `data` may be written."""
        if self._fd is None:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while data:
            room = MAX_FILE_BYTES - os.fstat(self._fd).st_size
            if room <= 0:
                self._rotate()
                continue
            data = data[os.write(self._fd, data[:room]) :]

    def _rotate(self) -> None:
        self.close()
        self.path.replace(self.path.with_name(self.path.name + ".1"))
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class LogWriter:
    """put() never blocks; run() writes."""

    def __init__(self, path: Path) -> None:
        self._file = RotatingFile(path)
        self._waiting = bytearray()
        self._lost_before = 0  # bytes that are missing in front of what waits: they could not be written
        self._lost_behind = 0  # and behind it: there was no room
        self._work = trio.Event()
        self._closing = False
        self._failing = False

    def put(self, data: bytes) -> None:
        room = 0 if self._lost_behind else MAX_WAITING_BYTES - len(self._waiting)
        self._waiting += data[:room]
        self._lost_behind += max(0, len(data) - room)
        self._work.set()

    async def run(self) -> None:
        """Writes until it is cancelled; then what is left, as long as that takes no longer than a second."""
        scope = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_all, scope)
            try:
                await trio.sleep_forever()
            finally:
                self._closing = True
                self._work.set()
                scope.deadline = trio.current_time() + _LAST_SECONDS

    async def _write_all(self, scope: trio.CancelScope) -> None:
        with scope:
            while self._waiting or not self._closing:
                await self._work.wait()
                if not self._closing:
                    self._work = trio.Event()
                await self._write()
            self._file.close()  # not reached while a thread hangs in it

    async def _write(self) -> None:
        lost = self._lost_before + len(self._waiting) + self._lost_behind
        data = _missing(self._lost_before) + self._waiting + _missing(self._lost_behind)
        self._waiting = bytearray()
        self._lost_before = self._lost_behind = 0
        if not data:
            return
        try:
            await trio.to_thread.run_sync(self._file.write, data, abandon_on_cancel=True)
        except OSError as error:
            self._lost_before = lost
            if not self._failing:
                log.warning("console log not written", path=str(self._file.path), error=error.strerror)
            self._failing = True
        else:
            self._failing = False


def _missing(nbytes: int) -> bytes:
    return b"\r\n[xenconsoled: %d bytes are missing here]\r\n" % nbytes if nbytes else b""
